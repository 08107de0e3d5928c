"""An OpenAI-compatible server that misbehaves on demand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: Does something to a request and says whether that was all.
Trouble = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        state: FakeServer = self.server.state  # type: ignore[attr-defined]
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with state.lock:
            state.requests.append({"path": self.path, "at": time.monotonic(), "key": self.headers["Authorization"]})
            state.requests[-1] |= {"body": self.body, "headers": dict(self.headers)}
            state.busy += 1
            state.most_busy = max(state.most_busy, state.busy)
            trouble = state.troubles.pop(0) if state.troubles else None
        try:
            if self.body.get("prompt", [None])[-1] in state.refused:
                status(400, f"prompt {self.body['prompt'][-1]} is too long")(self)
            elif trouble is None:
                time.sleep(state.delay)
                self.answer(200, state.reply(self.body))
            else:
                trouble(self)
        finally:
            with state.lock:
                state.busy -= 1

    def answer(self, status: int, content: Any, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass


class FakeServer:
    """Replies with the seed it was sent; `troubles` are what the next requests meet instead, in order.

    Prompts of `refused`, told by their last token, always meet 400.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.requests: list[dict[str, Any]] = []
        self.troubles: list[Trouble] = []
        self.refused: set[int] = set()
        self.busy = self.most_busy = 0
        self.delay = 0.0
        self.finish_reason = "stop"
        self.url = ""

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        text = f"seed {body['seed']}"
        content: dict[str, Any] = {"text": text} if "prompt" in body else {"message": {"role": "a", "content": text}}
        choice = {"index": 0, "finish_reason": self.finish_reason, **content}
        return {"id": "1", "choices": [choice], "usage": {"completion_tokens": 7, "prompt_tokens": 3}}


@contextmanager
def serve() -> Iterator[FakeServer]:
    """A server on a free port of this machine."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *arguments: Any) -> None:
            pass  # clients that gave up waiting

    with Server(("127.0.0.1", 0), Handler) as server:
        state = FakeServer()
        server.state = state  # type: ignore[attr-defined]
        state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield state
        server.shutdown()


def status(code: int, message: str = "no", **headers: str) -> Trouble:
    return lambda handler: handler.answer(code, {"error": {"message": message}}, **headers)


def replies(content: Any) -> Trouble:
    """Status 200 with a body of JSON, or of bytes."""
    return lambda handler: handler.answer(200, content)


def drop(handler: Handler) -> None:
    """Close the connection without an answer."""
    handler.close_connection = True
    handler.connection.close()


def hang(handler: Handler) -> None:
    """Longer than any client of the tests waits."""
    time.sleep(3)
