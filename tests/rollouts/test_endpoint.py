"""Requests to a server that speaks the OpenAI API, and to one that misbehaves."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from ipvrm_lightning.rollouts.endpoint import Endpoint, EndpointError
from ipvrm_lightning.rollouts.sources import Answered, Refused, Response, Sampling
from ipvrm_lightning.types import PromptExample
from tests.data.tokenizers import byte_level

from .fake_server import FakeServer, Trouble, drop, hang, replies, serve, status

KEY = "sk-very-secret"
PROMPTS = [PromptExample([5, 6, n], f"problem {n}", str(n), "tests", f"p{n}") for n in range(6)]
SAMPLING = Sampling(group_size=3, temperature=0.7, top_p=0.9, max_new_tokens=40, seed=1)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serve() as running:
        yield running


def answers(server: FakeServer, prompts: list[PromptExample] = PROMPTS, **options: Any) -> list[Answered]:
    endpoint = Endpoint(url=server.url, model="m", **options)
    found = sorted(endpoint.respond(prompts, SAMPLING), key=lambda answered: answered.prompt.id)
    assert all(isinstance(answered, Answered) for answered in found)
    return cast("list[Answered]", found)


def completion(text: Any = "4", reason: Any = "stop", **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": reason, **more}]}


def chat(content: Any = "4", reason: Any = "stop", **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, **more}
    return {"choices": [{"index": 0, "message": message, "finish_reason": reason}]}


def one(server: FakeServer, content: Any, api: Any = "completions") -> Response:
    """What is made of one answer with status 200."""
    server.troubles = [replies(content)]
    endpoint = Endpoint(url=server.url, model="m", api=api, max_retries=0)
    (answered,) = endpoint.respond(PROMPTS[:1], Sampling(group_size=1))
    assert isinstance(answered, Answered)
    return answered.responses[0]


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_every_prompt_gets_its_group(server: FakeServer, api: Any) -> None:
    found = answers(server, api=api, extra_body={"top_k": -1, "n": 1, "echo": False})
    assert [answered.prompt for answered in found] == PROMPTS
    assert len(server.requests) == 18 and {len(answered.responses) for answered in found} == {3}
    texts = [response.text for answered in found for response in answered.responses]
    expected = [f"seed {SAMPLING.request_seed(p.id, number)}" for p in PROMPTS for number in range(3)]
    assert texts == expected and len(set(texts)) == 18  # in order, though requests finish in any
    assert all(response.finished and response.tokens == 7 for answered in found for response in answered.responses)
    assert {request["path"] for request in server.requests} == {
        "/v1/completions" if api == "completions" else "/v1/chat/completions"
    }
    body = server.requests[0]["body"]
    sent = {name: body[name] for name in ("model", "max_tokens", "temperature", "top_p", "top_k")}
    assert sent == {"model": "m", "max_tokens": 40, "temperature": 0.7, "top_p": 0.9, "top_k": -1}
    if api == "completions":
        assert body["prompt"] in [prompt.input_ids for prompt in PROMPTS]
    else:
        assert body["messages"] in [[{"role": "user", "content": prompt.prompt}] for prompt in PROMPTS]


@pytest.mark.parametrize(
    ("reason", "finished"),
    [
        ("stop", True),
        ("eos_token", True),
        ("stop_sequence", True),
        ("eos", True),
        ("length", False),
        ("model_length", False),
    ],
)
def test_what_the_length_limit_cut_off_is_not_finished(server: FakeServer, reason: str, finished: bool) -> None:
    server.finish_reason = reason
    assert {response.finished for answered in answers(server) for response in answered.responses} == {finished}


@pytest.mark.parametrize("usage", [None, {}, {"completion_tokens": None}, {"completion_tokens": "7"}, "7"])
def test_a_length_that_is_not_told_is_not_known(server: FakeServer, usage: Any) -> None:
    assert one(server, {**completion(), "usage": usage}) == Response("4", True, None)
    assert one(server, chat(None, reasoning_content=None, reasoning="", tool_calls=[]), "chat") == Response(
        "", True, None
    )


@pytest.mark.parametrize(
    "trouble",
    [
        *(status(429), status(500), status(503), drop, hang),
        *(
            replies(b'{"choices": [{"te'),
            replies(b""),
            replies(completion("4", "abort")),
            replies(completion("4", None)),
        ),
    ],
    ids=["429", "500", "503", "connection dropped", "no answer", "half an answer", "empty", "given up", "no reason"],
)
def test_a_request_that_meets_trouble_is_made_again(server: FakeServer, trouble: Trouble) -> None:
    server.troubles = [trouble, trouble]
    found = answers(server, PROMPTS[:2], timeout=0.5, max_retries=4)
    assert [len(answered.responses) for answered in found] == [3, 3]
    seeds = [request["body"]["seed"] for request in server.requests]
    assert len(seeds) >= 8 and len(set(seeds)) == 6  # made again with the same seed


def test_retry_after_is_waited_for(server: FakeServer) -> None:
    server.troubles = [status(429, Retry_After="2")]  # without it, the first pause is below a second
    answers(server, PROMPTS[:1], max_concurrency=1)
    first, again = server.requests[:2]
    assert first["body"] == again["body"] and again["at"] - first["at"] >= 2


def test_no_more_requests_are_under_way_than_allowed(server: FakeServer) -> None:
    server.delay = 0.1
    answers(server, max_concurrency=4)
    assert 1 < server.most_busy <= 4


@pytest.mark.parametrize("code", [401, 403, 404])
def test_a_refused_request_is_not_repeated(server: FakeServer, code: int) -> None:
    server.troubles = [status(code, "prompt\nis too long")]
    with pytest.raises(EndpointError) as error:
        answers(server, PROMPTS[:1], max_concurrency=1)
    assert str(error.value) == f"{server.url} answered {code}: prompt is too long"
    seeds = [request["body"]["seed"] for request in server.requests]
    assert seeds.count(seeds[0]) == 1  # one of another response may have begun


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (status(400, "filtered\nby policy"), "answered 400: filtered by policy"),
        (status(413, "too long"), "answered 413: too long"),
        (status(422, "no"), "answered 422: no"),
        (replies(completion("", "content_filter")), "held an answer back (finish_reason 'content_filter')"),
    ],
    ids=["400", "413", "422", "filter"],
)
def test_a_refused_prompt_leaves_the_others(server: FakeServer, trouble: Trouble, message: str) -> None:
    server.troubles = [trouble]
    found = list(Endpoint(url=server.url, model="m", max_concurrency=1).respond(PROMPTS, SAMPLING))
    assert len(found) == 6
    assert [one for one in found if isinstance(one, Refused)] == [Refused(PROMPTS[0], f"{server.url} {message}")]
    assert {len(one.responses) for one in found if isinstance(one, Answered)} == {3}


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking", "tool_calls"])
@pytest.mark.parametrize(("content", "reason"), [("The answer is 4.", "stop"), (None, "length")])
def test_thoughts_in_a_field_of_their_own_are_not_dropped(
    server: FakeServer, name: str, content: str | None, reason: str
) -> None:
    with pytest.raises(EndpointError) as error:
        one(server, chat(content, reason, **{name: ["2 + 2"]}), "chat")
    assert str(error.value).startswith(f"{server.url} took {name} out of what the model wrote: start it without")
    assert "api: completions" in str(error.value)


@pytest.mark.parametrize(
    ("content", "api", "message"),
    [
        (b"<html>hello", "completions", "answered without whole JSON: '<html>hello' in 1 attempts"),
        (b"", "chat", "answered without whole JSON: '' in 1 attempts"),
        ({"error": {"message": "no\nGPU", "code": 502}}, "chat", "answered with an error: no GPU"),
        ({"error": "no GPU"}, "completions", "answered with an error: no GPU"),
        ({"choices": None}, "completions", "answered without choices with text: is completions the API"),
        ([1], "completions", "answered without choices with text"),
        (None, "chat", "answered without choices with a message: is chat the API"),
        (chat(), "completions", "answered without choices with text: is completions the API"),
        (completion(), "chat", "answered without choices with a message: is chat the API"),
        (completion(None), "completions", "answered with text that is no string: None"),
        (chat([{"type": "text", "text": "4"}]), "chat", "answered with text that is no string: [{'type'"),
        (completion("4", "abort"), "completions", "gave a request up (finish_reason 'abort') in 1 attempts"),
        (completion("4", "error"), "completions", "gave a request up (finish_reason 'error') in 1 attempts"),
        (completion("4", None), "completions", "gave a request up (finish_reason None) in 1 attempts"),
        (
            chat(None, "tool_calls"),
            "chat",
            "ended a response for a reason that is not known (finish_reason 'tool_calls')",
        ),
        (
            completion("4", "done"),
            "completions",
            "ended a response for a reason that is not known (finish_reason 'done')",
        ),
    ],
)
def test_what_is_no_response_is_one_line(server: FakeServer, content: Any, api: str, message: str) -> None:
    with pytest.raises(EndpointError) as error:
        one(server, content, api)
    assert str(error.value).startswith(f"{server.url} {message}") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (status(500, "broken"), "answered 500: broken"),
        (drop, r"cannot be reached in 2 attempts \("),
        (hang, "gave no answer within 0.5 s in 2 attempts"),
    ],
    ids=["500", "connection dropped", "no answer"],
)
def test_trouble_that_lasts_is_one_line(server: FakeServer, trouble: Trouble, message: str) -> None:
    server.troubles = [trouble] * 50
    with pytest.raises(EndpointError, match=message) as error:
        answers(server, PROMPTS[:1], max_concurrency=1, timeout=0.5, max_retries=1)
    assert "\n" not in str(error.value)


def test_nobody_listens() -> None:
    with serve() as server:
        url = server.url
    with pytest.raises(EndpointError, match="cannot be reached in 1 attempts"):
        list(Endpoint(url=url, model="m", max_retries=0).respond(PROMPTS, SAMPLING))


def test_prompts_that_were_answered_come_before_the_error(server: FakeServer) -> None:
    found = []
    with pytest.raises(EndpointError):
        for answered in Endpoint(url=server.url, model="m", max_concurrency=1).respond(PROMPTS, SAMPLING):
            found.append(answered.prompt.id)
            server.troubles = [status(401)] if len(found) == 2 else []
    assert found == ["p0", "p1"]


def test_a_reader_that_stops_early_leaves_nothing_under_way(server: FakeServer) -> None:
    answered = Endpoint(url=server.url, model="m", max_concurrency=3).respond(PROMPTS, SAMPLING)
    next(answered)
    answered.close()
    made = len(server.requests)
    assert made < 18 and next(answered, None) is None


def test_the_key_is_sent_and_shown_nowhere(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-service")
    caplog.set_level(logging.DEBUG)
    answers(server, PROMPTS[:1])
    assert not any("sk-" in request["key"] for request in server.requests)
    server.requests.clear()
    answers(server, PROMPTS[:1], api_key_env="MY_KEY")
    assert {request["key"] for request in server.requests} == {f"Bearer {KEY}"}
    server.troubles = [status(401, f"bad key {KEY}")]
    with pytest.raises(EndpointError, match=r"answered 401: bad key \*\*\*") as error:
        answers(server, PROMPTS[:1], api_key_env="MY_KEY", max_concurrency=1)
    assert error.value.__cause__ is None and error.value.__suppress_context__
    assert KEY not in caplog.text
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ValueError, match="environment variable MY_KEY is not set"):
        answers(server, api_key_env="MY_KEY")


def test_nothing_that_the_client_finds_in_the_environment_is_sent(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    ours = {
        "OPENAI_ORG_ID": "org-ours",
        "OPENAI_PROJECT_ID": "project-ours",
        "OPENAI_ADMIN_KEY": "admin-ours",
        "OPENAI_CUSTOM_HEADERS": "Authorization: Bearer ours\nX-Gateway: ours",
    }
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    answers(server, PROMPTS[:1], api_key_env="MY_KEY", extra_body={"max_tokens": None})
    assert {request["key"] for request in server.requests} == {f"Bearer {KEY}"}
    assert not [request for request in server.requests if "ours" in str(request["headers"])]
    assert {request["body"]["max_tokens"] for request in server.requests} == {None}
    assert {name: os.environ[name] for name in ours} == ours


@pytest.mark.parametrize("bos", [False, True])
def test_text_is_sent_only_where_it_reads_as_the_same_tokens(server: FakeServer, bos: bool, tmp_path: Path) -> None:
    tokenizer = byte_level(None, bos=bos)
    tokenizer.save_pretrained(tmp_path)
    ids = tokenizer("The sum of 3 and 4 is")["input_ids"]
    options = {"prompt_as": "text", "tokenizer": str(tmp_path)}
    answers(server, [PromptExample(ids, "as in the data", "7", "tests", "p")], **options)
    assert {request["body"]["prompt"] for request in server.requests} == {"The sum of 3 and 4 is"}
    apart = [*ids[:1], *(token for letter in "sum" for token in tokenizer.encode(letter, add_special_tokens=False))]
    with pytest.raises(EndpointError, match="'p' as text would be read as other tokens"):
        answers(server, [PromptExample(apart, "sum", "7", "tests", "p")], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "localhost:8000"}, "must begin with http"),
        ({"url": "http://me:secret@host/v1"}, "url of host holds a user"),
        ({"max_concurrency": 0}, "out of range"),
        ({"timeout": 0}, "out of range"),
        ({"extra_body": {"top_k": -1, "seed": 3}}, "extra_body: seed is sent already"),
        ({"extra_body": {"max_tokens": None, "temperature": 0.5}}, "extra_body: temperature is sent already"),
        ({"extra_body": {"echo": True}}, "extra_body: with echo an answer is not one response"),
        ({"extra_body": {"best_of": 1, "n": 2}}, "extra_body: with n an answer is not one response"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Endpoint(**{"url": "http://host/v1", "model": "m", **options})
    assert "secret" not in str(error.value)
