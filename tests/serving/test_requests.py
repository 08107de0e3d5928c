"""What is answered, what is refused, and in which words."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from ipvrm_lightning.scoring import PrefixValueModel, ScoreRequest
from ipvrm_lightning.serving import guard
from ipvrm_lightning.serving.schema import MAX_SOLUTIONS, MAX_STEPS

from .conftest import Client, Start

TOKEN = "correct-horse-battery"
FINE = {"problem": "1 + 1?", "steps": ["add", "so 2"]}


@pytest.fixture
def client(start: Start) -> Client:
    return start()


def assert_same(given: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert given.keys() == expected.keys()
        for key in expected:
            assert_same(given[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(given) == len(expected)
        for one, other in zip(given, expected, strict=True):
            assert_same(one, other)
    else:
        assert given == (pytest.approx(expected, abs=1e-5) if isinstance(expected, float) else expected)


def test_answers_are_those_of_the_model(client: Client, direct: PrefixValueModel) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 ≤ 日本?"}]
    answer = client.score(
        {**FINE, "id": "first"}, {"problem": chat, "solution": "Step 1: a é\n\n\nStep 2: b"}, tokens=True
    )
    asked = [ScoreRequest(FINE["problem"], FINE["steps"], "first"), ScoreRequest(chat, ["a é", "b"])]
    assert answer.status == 200
    assert_same(answer.json, {"scores": [one.to_dict() for one in direct.score_many(asked, tokens=True)]})
    without = client.score(FINE).json["scores"][0]
    assert without["first_error"] in (-1, 0, 1) and "tokens" not in without


def test_candidates_are_ranked(client: Client, direct: PrefixValueModel) -> None:
    candidates = ["it is\n\n2", ["no", "it is 3"], "2"]
    for by in ("final_value", "min_step"):
        answer = client.post("/rank", {"problem": "1 + 1?", "candidates": candidates, "by": by})
        expected = [one.to_dict() for one in direct.rank("1 + 1?", candidates, by=by)]
        assert_same(answer.json, {"ranking": expected})


MANY = "\n\n".join("a" * (MAX_STEPS + 1))
BAD: list[tuple[str, Any, str | None, str]] = [
    ("/score", {"solutions": [FINE, {"problem": "1", "steps": ["a", " "]}]}, "solutions[1].steps[1]", "empty step"),
    ("/score", {"solutions": [{"problem": "1", "steps": ["a", 3]}]}, "solutions[0].steps[1]", "valid string"),
    ("/score", {"solutions": [{"problem": "1", "steps": []}]}, "solutions[0].steps", "at least 1 item"),
    ("/score", {"solutions": [{"problem": "1", "solution": " "}]}, "solutions[0].steps", "empty list"),
    ("/score", {"solutions": [{"problem": 7, "steps": ["a"]}]}, "solutions[0].problem", "valid string"),
    ("/score", {"solutions": [{"problem": "", "steps": ["a"]}]}, "solutions[0].problem", "empty text"),
    ("/score", {"solutions": [{**FINE, "problem": "\ud800"}]}, "solutions[0].problem", "surrogate"),
    ("/score", {"solutions": [{**FINE, "problem": [{"role": "user"}]}]}, "solutions[0].problem[0]", "no content"),
    (
        "/score",
        {"solutions": [{**FINE, "problem": [{"role": "me", "content": "x"}]}]},
        "solutions[0].problem[0].role",
        "role is none of",
    ),
    ("/score", {"solutions": [{**FINE, "solution": "x"}]}, "solutions[0]", "either steps or solution"),
    ("/score", {"solutions": [{"problem": "1"}]}, "solutions[0]", "either steps or solution"),
    ("/score", {"solutions": [{**FINE, "step": 1}]}, "solutions[0].step", "Extra inputs"),
    ("/score", {"solutions": [{**FINE, "id": "x" * 201}]}, "solutions[0].id", "at most 200"),
    ("/score", {"solutions": [FINE], "tokens": 1}, "tokens", "valid boolean"),
    ("/score", {"solutions": []}, "solutions", "at least 1 item"),
    ("/score", {"solutions": [FINE] * (MAX_SOLUTIONS + 1)}, "solutions", f"at most {MAX_SOLUTIONS}"),
    ("/score", {"solutions": [{"problem": "1", "steps": ["a"] * (MAX_STEPS + 1)}]}, "solutions[0].steps", "at most"),
    (
        "/score",
        {"solutions": [{"problem": "1", "solution": MANY}]},
        "solutions[0].solution",
        "at most 1000 steps, found 1001",
    ),
    ("/rank", {"problem": "1", "candidates": [["a"], MANY]}, "candidates[1]", "at most 1000 steps, found 1001"),
    ("/score", {"solutions": [{"problem": "1", "steps": ["a" * 4096]}]}, "solutions[0].steps", "4096 tokens"),
    ("/score", {}, "solutions", "Field required"),
    ("/score", [], None, "the body: "),
    ("/score", b"", None, "the body: Field required"),
    ("/score", b'{"solutions": ', None, "the body: not JSON"),
    ("/rank", {"problem": "1", "candidates": ["a", ["b", ""]]}, "candidates[1][1]", "empty step"),
    ("/rank", {"problem": "1", "candidates": ["a", "\n\n"]}, "candidates[1]", "empty list"),
    ("/rank", {"problem": " ", "candidates": ["a"]}, "problem", "empty text"),
    ("/rank", {"problem": "1", "candidates": ["a"] * (MAX_SOLUTIONS + 1)}, "candidates", f"at most {MAX_SOLUTIONS}"),
    (
        "/score",
        {"solutions": [{**FINE, "problem": [{"role": "user", "content": "x"}] * 101}]},
        "solutions[0].problem",
        "at most 100",
    ),
    ("/rank", {"problem": "1", "candidates": [["a"], {}]}, "candidates[1]", "valid string"),
    ("/rank", {"problem": "1", "candidates": ["a"], "by": "best"}, "by", "min_step"),
]


def test_bad_requests_are_told_the_field(client: Client) -> None:
    for path, body, field, reason in BAD:
        answer = client.post(path, body)
        assert (answer.status, answer.json["field"]) == (422, field), (body, answer)
        assert reason in answer.json["error"] and "\n" not in answer.json["error"], answer
        assert answer.json["error"].startswith(field or "the body")
    assert client.score(FINE).status == 200


@pytest.mark.parametrize("body", [b"\xff{", b"[" * 100_000, b'{"solutions": ' + b"1" * 10_000 + b"}"])
def test_what_is_hardly_json_is_refused(client: Client, body: bytes) -> None:
    answer = client.post("/score", body)
    assert answer.status in (400, 422) and answer.json["error"]


@pytest.mark.parametrize("kind", ["", "application/x-www-form-urlencoded"])
def test_a_body_that_does_not_say_it_is_json_is_told_the_header(client: Client, kind: str) -> None:
    answer = client.post("/score", {"solutions": [FINE]}, {"Content-Type": kind})
    assert answer.status == 422 and "the header Content-Type: application/json" in answer.json["error"]


def test_other_paths_and_methods_are_told_in_the_same_form(client: Client) -> None:
    assert (client.get("/nothing").status, client.get("/score").status) == (404, 405)
    assert client.get("/nothing").json == {"error": "Not Found", "field": None}


def test_status_tells_model_and_limits(client: Client) -> None:
    client.score(FINE)
    status = client.get("/status").json
    assert status["max_length"] == 4096 and status["threshold"] == 0.0 and status["timeout"] == 60.0
    assert (status["scored"], status["batches"], status["waiting"]) == (1, 1, 0)


def test_the_schema_names_fields_and_limits(client: Client) -> None:
    schema = client.get("/openapi.json").json
    assert set(schema["paths"]) == {"/health", "/status", "/score", "/rank"}
    parts = schema["components"]["schemas"]
    assert parts["ScoreBody"]["properties"]["solutions"]["maxItems"] == MAX_SOLUTIONS
    assert {"value", "probability", "td_advantage", "is_first_error"} <= parts["StepScore"]["properties"].keys()
    assert "HTTPValidationError" not in parts


def test_large_bodies_are_refused_and_the_client_hears_it(start: Start) -> None:
    client = start(max_body=1000)
    for size in (1001, 7000, 300_000):
        try:
            answer = client.post("/score", b"x" * size)
        except (BrokenPipeError, ConnectionResetError):
            assert size == 300_000  # beyond what is read and thrown away
        else:
            assert (answer.status, answer.json["field"]) == (413, None)
    assert client.score({"problem": "1", "steps": ["a"]}).status == 200


def test_slow_clients_are_cut_off(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.4)
    monkeypatch.setattr(guard.TimedProtocol, "idle_seconds", 0.4)
    client = start()
    head = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
    for sent, expected in ((head + b"\r\n{", b"HTTP/1.1 408"), (head, b""), (b"", b"")):
        with socket.create_connection(("127.0.0.1", client.port), timeout=10) as slow:
            slow.sendall(sent)
            began = time.monotonic()
            try:
                assert slow.recv(100).startswith(expected)
            except ConnectionResetError:
                assert expected == b""
            assert 0.2 < time.monotonic() - began < 5
            assert client.score(FINE).status == 200  # and nobody waited for them


def test_a_token_is_asked_for(start: Start) -> None:
    client = start(token=TOKEN)
    assert client.get("/health").json == {"status": "ok"}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        for answer in (client.post("/score", {"solutions": [FINE]}, headers), client.get("/openapi.json", headers)):
            assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert answer.json == {"error": "a bearer token is needed", "field": None}
    allowed = {"Authorization": f"bearer {TOKEN}"}
    assert client.post("/score", {"solutions": [FINE]}, allowed).status == 200
    assert client.get("/openapi.json", allowed).json["components"]["securitySchemes"]["HTTPBearer"]
    assert client.post("/score", b"x" * 2**21).status == 401
    with socket.create_connection(("127.0.0.1", client.port), timeout=10) as twice:
        both = f"Authorization: Bearer {TOKEN}\r\nAuthorization: Bearer wrong\r\n"
        twice.sendall(f"GET /status HTTP/1.1\r\nHost: localhost\r\n{both}\r\n".encode())
        assert twice.recv(100).startswith(b"HTTP/1.1 401")


def test_a_name_that_is_not_this_machine_s_own_is_refused(start: Start) -> None:
    """A page in a browser that calls its own name, which leads here (DNS rebinding)."""
    client = start(hosts=("localhost", "127.0.0.1", "[::1]"))
    for name in ("localhost", "127.0.0.1:80", "[::1]", "[::1]:8000", f"LocalHost:{client.port}"):
        assert client.get("/status", {"Host": name}).status == 200, name
    for name in ("evil.example", f"evil.example:{client.port}", "localhost.evil.example", "127.0.0.1.evil.example", ""):
        answer = client.get("/status", {"Host": name})
        assert answer.status == 421 and "name" in answer.json["error"], name
    with socket.create_connection(("127.0.0.1", client.port), timeout=10) as checker:
        checker.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert checker.recv(100).startswith(b"HTTP/1.1 200")
