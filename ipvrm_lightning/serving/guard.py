"""What keeps clients in bounds before the application sees them: token, size and time of a body, time of a connection.

A body is read here, whole and within its limits, so that nothing behind waits for a client.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Collection
from hashlib import sha256
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

#: Open to all, for a load balancer has no token, and may give no name. It tells nothing but that the server is up.
OPEN_PATH = "/health"
#: Seconds in which a body must have arrived.
BODY_SECONDS = 30.0
#: So many times the limit is read and thrown away before a refusal: who is still sending does not see an answer.
_PATIENCE = 8


class Guard:
    """An ASGI middleware.

    Args:
        app: the application.
        token: bearer token that every request must carry; None lets all through.
        max_body: bytes of a body, at most.
        hosts: by which the server may be called, None for any name: a page in a browser on this machine can reach a
            server that is open to this machine alone, but only under a name of the page's own (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, *, token: str | None, max_body: int, hosts: Collection[str] | None) -> None:
        self.app, self.max_body, self.hosts = app, max_body, hosts
        self._digest = None if token is None else sha256(token.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            body = await asyncio.wait_for(self._read(receive), BODY_SECONDS)
        except asyncio.TimeoutError:
            return await _refusal(408, f"the body did not arrive within {BODY_SECONDS:g} s")(scope, receive, send)
        if scope["path"] != OPEN_PATH:
            if not self._knows_token(scope):
                return await _refusal(401, "a bearer token is needed")(scope, receive, send)
            if self.hosts is not None and _host(scope) not in self.hosts:
                return await _refusal(421, "called by a name that is not this machine's own")(scope, receive, send)
        if body is None:
            return await _refusal(413, f"the body has more than {self.max_body} bytes")(scope, receive, send)
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        return await self.app(scope, replay, send)

    def _knows_token(self, scope: Scope) -> bool:
        if self._digest is None:
            return True
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, token = (given[0] if len(given) == 1 else b"").partition(b" ")
        # digests are of one length: the comparison does not even tell how long the token is
        return hmac.compare_digest(sha256(token.strip()).digest(), self._digest) and scheme.lower() == b"bearer"

    async def _read(self, receive: Receive) -> bytes | None:
        """The body; None where it is too large."""
        body, size, more = bytearray(), 0, True
        while more and size <= _PATIENCE * self.max_body:
            message = await receive()
            size += len(message.get("body", b""))
            if size <= self.max_body:
                body += message.get("body", b"")
            more = message.get("more_body", False)
        return bytes(body) if size <= self.max_body else None


def _host(scope: Scope) -> str:
    """The name that the request gives the server, in small letters, without the port."""
    given = next((value.decode("latin-1").lower() for name, value in scope["headers"] if name == b"host"), "")
    return given.rpartition(":")[0] if given.rpartition(":")[2].isdigit() else given


def _refusal(status: int, why: str) -> JSONResponse:
    headers = {"Connection": "close"} | ({"WWW-Authenticate": "Bearer"} if status == 401 else {})
    return JSONResponse({"error": why, "field": None}, status, headers)


class TimedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which closes connections on which nothing moves on."""

    #: Seconds for the head of a request, and between two requests.
    idle_seconds = 10.0
    #: Seconds from the head of a request to the last byte of its answer; the server sets it.
    busy_seconds = 180.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Look after the connection from now on."""
        super().connection_made(transport)
        self._look(None, self.loop.time())

    def _look(self, seen: Any, since: float) -> None:
        """Close the connection where it has been at the same request, or waiting for one, for too long."""
        busy = self.cycle is not None and not self.cycle.response_complete
        now, state = self.loop.time(), (self.cycle, busy)
        since = since if state == seen else now
        if now - since >= (self.busy_seconds if busy else self.idle_seconds):
            self.transport.abort()
        elif not self.transport.is_closing():
            self.loop.call_later(self.idle_seconds / 4, self._look, state, since)
