"""What `ipvrm serve` does: check what can be checked, take the port, load the model, answer until it is stopped."""

from __future__ import annotations

import argparse
import ipaddress
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

import uvicorn
from pydantic import ValidationError
from starlette.types import ASGIApp

from ipvrm_lightning.scoring.command import described
from ipvrm_lightning.scoring.model import PrefixValueModel
from ipvrm_lightning.scoring.opening import open_encoder
from ipvrm_lightning.serving.app import create_app
from ipvrm_lightning.serving.guard import BODY_SECONDS, TimedProtocol
from ipvrm_lightning.serving.schema import Limits, mistake

TOKEN_VARIABLE = "IPVRM_TOKEN"
_SHORTEST_TOKEN = 16
_THIS_MACHINE = ("localhost", "127.0.0.1", "[::1]")
_MOST_CONNECTIONS = 512


def serve_command(chosen: argparse.Namespace) -> None:
    """Run the command; SIGTERM and Ctrl-C end it once what was accepted is answered.

    Args:
        chosen: options, see `ipvrm_lightning.serve_cli`.

    Raises:
        ValueError: a token, address or model that cannot be used.
    """
    try:
        limits = Limits(timeout=chosen.timeout, max_waiting=chosen.max_waiting, max_body=chosen.max_body)
    except ValidationError as error:
        problem, option = mistake(error.errors()[0])
        raise ValueError(f"--{option}: {problem}") from None
    token = read_token(chosen.token_file)
    if token is None and not chosen.without_token and not _is_loopback(chosen.host):
        raise ValueError(
            f"--host {chosen.host} is open to other machines: set a token ({TOKEN_VARIABLE} or --token_file), or say"
            " --without_token"
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with suppress(KeyboardInterrupt), _listen(chosen.host, chosen.port) as listener:
        description = described(chosen)
        encoder = open_encoder(description, max_length=chosen.max_length)
        model = PrefixValueModel(description, encoder=encoder, device=chosen.device, max_tokens=chosen.max_tokens)
        listener.listen(_MOST_CONNECTIONS)
        host, port = listener.getsockname()[:2]
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        print(f"{description.name} answers at http://{address}, schema at /openapi.json", flush=True)
        hosts = (*_THIS_MACHINE, chosen.host) if token is None and _is_loopback(chosen.host) else None
        make_server(create_app(model, limits=limits, token=token, hosts=hosts), limits).run(sockets=[listener])


def read_token(file: Path | None) -> str | None:
    """The token, from a file or the environment, which it is taken out of; None where there is none.

    Args:
        file: that holds it, white space around it aside.

    Raises:
        ValueError: it is empty, short, or not of visible ASCII characters.
        OSError: the file cannot be read.
    """
    given = os.environ.pop(TOKEN_VARIABLE, None)
    if file is not None:
        given = file.read_text(encoding="utf-8")
    if given is None:
        return None
    token, where = given.strip(), TOKEN_VARIABLE if file is None else str(file)
    if len(token) < _SHORTEST_TOKEN or not all("!" <= character <= "~" for character in token):
        raise ValueError(f"{where}: a token has at least {_SHORTEST_TOKEN} visible ASCII characters and no spaces")
    return token


def make_server(app: ASGIApp, limits: Limits) -> uvicorn.Server:
    """The server, quiet and with limits for connections.

    Args:
        app: from `create_app`.
        limits: of requests.
    """

    class Protocol(TimedProtocol):
        busy_seconds = BODY_SECONDS + limits.timeout + 60

    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=Protocol,
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_graceful_shutdown=int(limits.timeout) + 5,
        )
    )


def _listen(host: str, port: int) -> socket.socket:
    """A socket of this address, before the model is loaded; who connects is refused until it listens."""
    listener = None
    try:
        family, kind, protocol, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        if listener is not None:
            listener.close()
        raise ValueError(f"cannot listen at {host}, port {port} ({error})") from error
    return listener


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
