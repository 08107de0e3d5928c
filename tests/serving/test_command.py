"""`ipvrm serve` as a process: options, tokens, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from ipvrm_lightning import serve_cli
from ipvrm_lightning.cli import main
from ipvrm_lightning.scoring import PrefixValueModel
from ipvrm_lightning.serving.command import TOKEN_VARIABLE, read_token

from ..processes import Started
from .conftest import Client
from .test_batching import wait_for

TOKEN = "correct-horse-battery"


@contextmanager
def served(pair: tuple[str, str], *options: str, **environment: str) -> Iterator[tuple[Started, Client]]:
    """A process, and a client of it; whatever happens, it is gone afterwards."""
    command = ["serve", "--model", pair[0], "--reference", pair[1]]
    command += ["--beta", "1", "--threshold", "0", "--device", "cpu", "--port", "0", *options]
    with mock.patch.dict(os.environ, environment):
        process = Started(main, command)
    try:
        while not (found := re.search(r"answers at http://127.0.0.1:(\d+)", process.said())):
            assert process.poll() is None, "the server did not start"
            time.sleep(0.02)
        yield process, Client(int(found[1]))
    finally:
        process.kill()
        process.wait()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["serve", *arguments])
    assert ended.value.code == 1
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_process_answers_and_ends_when_all_is_answered(
    stop: signal.Signals, pair: tuple[str, str], direct: PrefixValueModel
) -> None:
    with served(pair, **{TOKEN_VARIABLE: TOKEN}) as (process, client), ThreadPoolExecutor(1) as pool:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert client.get("/status").status == 401
        long = {"solutions": [{"problem": "?", "steps": [f"{n} " * 1200]} for n in range(9)] * 5}
        answer = pool.submit(client.post, "/score", long, headers)
        wait_for(lambda: client.get("/status", headers).json["waiting"] > 0)
        os.kill(process.pid, stop)
        assert answer.result().status == 200
        expected = [direct.score("?", [f"{n} " * 1200]).final_value for n in range(9)] * 5
        values = [one["final_value"] for one in answer.result().json["scores"]]
        assert values == pytest.approx(expected, abs=1e-5)
        assert process.wait(30) == 0
        assert "Traceback" not in process.said() and TOKEN not in process.said()


def test_what_is_open_to_others_needs_a_token(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.com", ""):
        assert "open to other machines: set a token" in refused(capsys, "--model", "x", "--host", host)
    missing = str(tmp_path / "missing")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    for way in (("--token_file", str(tmp_path / "token")), ("--without_token",)):
        assert "missing" in refused(capsys, "--model", missing, "--beta", "1", "--host", "0.0.0.0", "--port", "0", *way)


def test_a_token_is_read_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_token(None) is None
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert read_token(None) == TOKEN
    assert TOKEN_VARIABLE not in os.environ
    file = tmp_path / "token"
    for bad in ("", "short", "two words of some length", "ünusual-characters-in-it"):
        file.write_text(bad)
        with pytest.raises(ValueError, match=r"token: a token has at least 16 visible ASCII characters") as error:
            read_token(file)
        assert not bad or bad not in str(error.value)
    file.write_text(f"  {TOKEN}\n")
    assert read_token(file) == TOKEN


def test_a_port_that_is_taken_is_refused_before_anything_loads(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"cannot listen at 127.0.0.1, port {port}" in refused(capsys, "--model", "missing", "--port", port)
    assert "cannot listen at 127.0.0.1, port 70000" in refused(capsys, "--model", "missing", "--port", "70000")


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("timeout", "-1", "greater than 0"),
        ("timeout", "inf", "finite"),
        ("max_waiting", "3", "greater than or equal to 128"),
        ("max_body", "0", "0"),
    ],
)
def test_limits_that_cannot_be_are_refused(
    capsys: pytest.CaptureFixture[str], option: str, value: str, told: str
) -> None:
    line = refused(capsys, "--model", "missing", f"--{option}", value)
    assert line.startswith(f"ipvrm serve: --{option}: ") and told in line


def test_without_its_libraries_it_says_how_to_get_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = serve_cli.find_spec

    def find(name: str) -> Any:
        return None if name == "fastapi" else found(name)

    monkeypatch.setattr(serve_cli, "find_spec", find)
    line = refused(capsys, "--model", "missing")
    assert line == 'ipvrm serve: fastapi not installed: pip install -e ".[serve]" in the repository'
