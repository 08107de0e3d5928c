"""Many at once: the same answers, one's trouble is not another's, and nobody waits for ever."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import pytest

from ipvrm_lightning.scoring import PrefixValueModel, ScoreRequest
from ipvrm_lightning.scoring.encoding import EncodedSolution

from .conftest import Client, Start

SOLUTIONS = [
    {"problem": f"What is {n} + {n}?" + " Think." * (n % 5), "steps": [f"add {n} é" * (1 + n % 7), "so"][: 1 + n % 2]}
    for n in range(60)
]


def intercept(client: Client, before: Callable[[Sequence[EncodedSolution]], None]) -> None:
    """Do something before each batch of a server's model."""
    model = client.model
    assert model is not None
    score = model.score_encoded

    def intercepted(solutions: Sequence[EncodedSolution], *, tokens: bool = False) -> Any:
        before(solutions)
        return score(solutions, tokens=tokens)

    model.score_encoded = intercepted  # type: ignore[method-assign]


class Gate:
    """Holds the model until it is opened, and counts what went in."""

    def __init__(self, client: Client) -> None:
        self.opened, self.entered = threading.Event(), threading.Event()
        self.batches: list[list[str]] = []
        intercept(client, self._hold)

    def _hold(self, solutions: Sequence[EncodedSolution]) -> None:
        self.batches.append([one.request.steps[0] for one in solutions])
        self.entered.set()
        assert self.opened.wait(30)


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_everybody_gets_what_the_model_says_of_his_solution_alone(start: Start, direct: PrefixValueModel) -> None:
    client = start()
    with ThreadPoolExecutor(len(SOLUTIONS)) as pool:
        answers = list(pool.map(lambda n: client.score(SOLUTIONS[n], tokens=n % 2 == 0), range(len(SOLUTIONS))))
    for number, (solution, answer) in enumerate(zip(SOLUTIONS, answers, strict=True)):
        (alone,) = direct.score_many([ScoreRequest(**solution)])
        (given,) = answer.json["scores"]
        assert ("tokens" in given) == (number % 2 == 0)  # whatever was asked for beside it
        assert given["final_value"] == pytest.approx(alone.final_value, abs=1e-5)
        for one, step in zip(given["steps"], alone.steps, strict=True):
            assert one["scores"] == pytest.approx(step.scores, abs=1e-5)
    status = client.get("/status").json
    assert status["scored"] == 60 and status["batches"] < 60


def test_a_batch_is_the_oldest_and_what_fits_beside_it(start: Start) -> None:
    client = start()
    gate = Gate(client)
    client.model.max_tokens = 330  # type: ignore[union-attr]
    names = ["first", "a" * 60, "b" * 60, "c" * 300, "d" * 70, "e" * 60]
    with ThreadPoolExecutor(6) as pool:
        for waiting, name in enumerate(names, 1):
            pool.submit(client.score, {"problem": "?", "steps": [name]})
            wait_for(lambda waiting=waiting: client.get("/status").json["waiting"] == waiting)
        gate.opened.set()
    # those of 60 have about 100 tokens: three fit; that of 300 is a batch of its own
    assert [[name[0] for name in batch] for batch in gate.batches] == [["f"], ["a", "b", "e"], ["c"], ["d"]]


@pytest.mark.parametrize(
    ("error", "told"),
    [(RuntimeError("index out of range"), "the server's log"), (ValueError("values are not finite"), "not finite")],
)
def test_who_breaks_the_model_breaks_it_for_himself(start: Start, error: Exception, told: str) -> None:
    client = start()

    def break_on_poison(solutions: Sequence[EncodedSolution]) -> None:
        time.sleep(0.05)
        if any("poison" in one.request.steps for one in solutions):
            raise error

    intercept(client, break_on_poison)
    bad = {"problem": "?", "steps": ["poison"]}
    with ThreadPoolExecutor(21) as pool:
        answers = list(pool.map(client.score, [*SOLUTIONS[:10], bad, *SOLUTIONS[10:20]]))
    failed = answers.pop(10)
    assert failed.status == 500 and told in failed.json["error"]
    assert [answer.status for answer in answers] == [200] * 20


def test_a_bad_request_does_not_disturb_the_batch(start: Start) -> None:
    client = start()
    mixed = [solution if n % 2 else {"problem": "?", "steps": [""]} for n, solution in enumerate(SOLUTIONS[:20])]
    with ThreadPoolExecutor(20) as pool:
        statuses = [answer.status for answer in pool.map(client.score, mixed)]
    assert statuses == [422, 200] * 10


def test_who_waits_too_long_is_told_so(start: Start) -> None:
    client = start(timeout=0.5)
    gate = Gate(client)
    with ThreadPoolExecutor(2) as pool:
        computed = pool.submit(client.score, {"problem": "?", "steps": ["slow"]})
        assert gate.entered.wait(10)
        queued = pool.submit(client.score, {"problem": "?", "steps": ["queued"]})
        for late in (computed, queued):
            assert late.result().status == 504
            assert "not answered within 0.5 s" in late.result().json["error"]
    gate.opened.set()
    assert client.score(SOLUTIONS[0]).status == 200
    assert gate.batches == [["slow"], [SOLUTIONS[0]["steps"][0]]]  # nothing is computed for who has left


def ask_and_leave(client: Client, until: Callable[[], None]) -> None:
    """Ask for the score of a step named gone, and hang up."""
    body = b'{"solutions": [{"problem": "?", "steps": ["gone"]}]}'
    head = "POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", client.port)) as leaving:
        leaving.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until()


def test_a_client_that_hangs_up_is_not_computed_for(start: Start) -> None:
    client = start()
    gate = Gate(client)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.score, {"problem": "?", "steps": ["slow"]})
        assert gate.entered.wait(10)
        ask_and_leave(client, lambda: wait_for(lambda: client.get("/status").json["waiting"] == 2))
        wait_for(lambda: client.get("/status").json["waiting"] == 1)
        gate.opened.set()
        assert running.result().status == 200
    assert client.score(SOLUTIONS[0]).status == 200
    assert "gone" not in chain(*gate.batches)


def test_a_model_that_fails_on_who_has_hung_up_goes_on_with_the_others(start: Start) -> None:
    client = start(timeout=20)
    computing, opened = threading.Event(), threading.Event()

    def fail_on_gone(solutions: Sequence[EncodedSolution]) -> None:
        if any("gone" in one.request.steps for one in solutions):
            computing.set()
            assert opened.wait(30)
            raise RuntimeError("index out of range")

    intercept(client, fail_on_gone)
    with ThreadPoolExecutor(1) as pool:
        ask_and_leave(client, lambda: wait_for(computing.is_set))
        wait_for(lambda: client.get("/status").json["waiting"] == 0)
        after = pool.submit(client.score, SOLUTIONS[0])
        wait_for(lambda: client.get("/status").json["waiting"] == 1)
        opened.set()
        assert after.result().status == 200


def test_a_full_queue_refuses_and_says_when_to_come_back(start: Start) -> None:
    client = start(max_waiting=130)
    gate = Gate(client)
    many = {"solutions": [{"problem": "?", "steps": ["a"]}] * 128}
    with ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(client.post, "/score", many)
        assert gate.entered.wait(10)
        refused = client.score(*SOLUTIONS[:3])
        assert refused.status == 503 and refused.headers["retry-after"] == "1"
        assert "128 solutions are waiting" in refused.json["error"]
        assert client.get("/health").status == 200
        gate.opened.set()
        assert accepted.result().status == 200
    assert client.score(SOLUTIONS[0]).status == 200
