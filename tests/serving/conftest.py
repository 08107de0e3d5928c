"""A tiny pair of models, and servers of it: in a thread of the test's process, or in a process of their own."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import torch

from ipvrm_lightning.scoring import PrefixValueModel
from ipvrm_lightning.serving.app import create_app
from ipvrm_lightning.serving.command import make_server
from ipvrm_lightning.serving.schema import Limits

from ..fuzz.bases import MODEL, build_tokenizer


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    json: Any


@dataclass
class Client:
    """Talks to a server on this machine, with a connection for each request."""

    port: int
    model: PrefixValueModel | None = None

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Answer:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask("POST", path, content, {"Content-Type": "application/json", **(headers or {})})

    def score(self, *solutions: dict[str, Any], **options: Any) -> Answer:
        return self.post("/score", {"solutions": list(solutions), **options})

    def get(self, path: str, headers: dict[str, str] | None = None) -> Answer:
        return self.ask("GET", path, None, headers or {})

    def ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), json.loads(response.read()))


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Folders of a reward model and its reference."""
    from transformers import AutoConfig, AutoModelForCausalLM

    def save(name: str, seed: int) -> str:
        folder: Path = tmp_path_factory.mktemp("pair") / name
        torch.manual_seed(seed)
        config = AutoConfig.for_model(**{**MODEL, "max_position_embeddings": 4096})
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)
        return str(folder)

    return save("reward", 1), save("reference", 0)


def load(pair: tuple[str, str]) -> PrefixValueModel:
    reward, reference = pair
    return PrefixValueModel.from_pretrained(reward, reference=reference, beta=1.0, threshold=0.0, device="cpu")


@pytest.fixture(scope="session")
def direct(pair: tuple[str, str]) -> PrefixValueModel:
    """What a server's answers are compared with."""
    return load(pair)


Start = Callable[..., Client]


@pytest.fixture
def start(pair: tuple[str, str]) -> Iterator[Start]:
    """Starts servers in threads; limits, a token and names may be given."""
    running: list[tuple[Any, threading.Thread]] = []

    def start(token: str | None = None, hosts: tuple[str, ...] | None = None, **limits: Any) -> Client:
        model, chosen = load(pair), Limits(**limits)
        listener = socket.create_server(("127.0.0.1", 0))
        server = make_server(create_app(model, limits=chosen, token=token, hosts=hosts), chosen)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        running.append((server, thread))
        return Client(listener.getsockname()[1], model)

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
