"""Responses from a server that speaks the OpenAI completions or chat API: vLLM, SGLang, `transformers serve`, ...

One request per response, each with a seed of its own (a hash of the run's seed, the prompt's id and the response's
number), rather than one request with `n`: not every server knows `n`, a failed request costs one response, and where a
server honours seeds a response does not depend on the others. Servers that cache prefixes read the prompt once.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from ipvrm_lightning.pretrained import load_tokenizer
from ipvrm_lightning.rollouts.server_answers import (
    EndpointError,
    PassingError,
    PromptRefusedError,
    read_answer,
    said_in,
)
from ipvrm_lightning.rollouts.sources import Answered, Refused, Response, ResponseSource, Sampling
from ipvrm_lightning.types import PromptExample

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from transformers import PreTrainedTokenizerBase

# statuses that are about what was asked; a key, a model or an address that is wrong has others
_REFUSALS = (400, 413, 422)
# what the client would send by itself, to whatever server: these are for OpenAI's alone
_VARIABLES = ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_CUSTOM_HEADERS", "OPENAI_ADMIN_KEY")
# fields that extra_body would take the place of, and the values at which an answer is one response
_SENT = {"model", "prompt", "messages", "max_tokens", "temperature", "top_p", "seed"}
_ONE_RESPONSE = {"n": 1, "best_of": 1, "echo": False}


class Endpoint(ResponseSource):
    """A server with the OpenAI API.

    Requests that meet 408, 409, 429, 5xx, a lost connection or the time limit are made again, with exponential back-off
    and jitter or after what `Retry-After` says, up to two minutes; so are those that the server gave up or answered in
    part. A prompt that meets 400, 413, 422 or a content filter is passed over. All else stops the run with the server's
    message, an answer without all that the model wrote (a reasoning parser put thoughts in a field of their own) too.

    What a server samples from is its own business: some add the `top_k`, `top_p` or penalties of the model's generation
    config. `temperature` and `top_p` are always sent; send the rest in `extra_body`, such as `{top_k: -1}` for vLLM.

    Args:
        url: up to and with `/v1`.
        model: its name on the server.
        api: "completions" continues the prompt's own tokens; "chat" leaves the template to the server, and often
            white space around the answer; the prompts' `chat_template_kwargs` go into `extra_body` once more.
        prompt_as: for completions: token ids, or "text" for servers that take no ids (`transformers serve`); text is
            sent only where it reads as the same tokens.
        api_key_env: environment variable that holds the key; None for a server that needs none.
        max_concurrency: requests under way at a time, at most 1000.
        timeout: seconds that the server may let a request wait.
        max_retries: further attempts at a request.
        tokenizer: name or folder of the model's tokenizer; None for `model`.
        extra_body: further fields of every request; null leaves the server's default to one that is sent.

    Raises:
        ValueError: an argument that cannot work; says which.
    """

    incidental = frozenset({"url", "api_key_env", "max_concurrency", "timeout", "max_retries", "tokenizer"})

    def __init__(
        self,
        *,
        url: str,
        model: str,
        api: Literal["completions", "chat"] = "completions",
        prompt_as: Literal["tokens", "text"] = "tokens",
        api_key_env: str | None = None,
        max_concurrency: int = 64,
        timeout: float = 600.0,
        max_retries: int = 6,
        tokenizer: str | None = None,
        extra_body: dict[str, Any] | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url must begin with http:// or https:// and name a host, not {url!r}")
        if parts.username or parts.password or parts.query:
            raise ValueError(f"url of {parts.hostname} holds a user, password or query: name a key in api_key_env")
        if not 1 <= max_concurrency <= 1000 or timeout <= 0 or max_retries < 0:
            found = f"{max_concurrency}, {timeout} and {max_retries}"
            raise ValueError(f"max_concurrency (1 to 1000), timeout or max_retries out of range: {found}")
        given = {name: value for name, value in (extra_body or {}).items() if value is not None}
        if taken := sorted(given.keys() & _SENT):
            raise ValueError(f"extra_body: {taken[0]} is sent already, as sampling and prompts say: leave it out")
        if taken := sorted(name for name, one in _ONE_RESPONSE.items() if given.get(name, one) != one):
            raise ValueError(f"extra_body: with {taken[0]} an answer is not one response: leave it out")
        self.url, self.model, self.api, self.prompt_as = url, model, api, prompt_as
        self.api_key_env, self.max_concurrency = api_key_env, max_concurrency
        self.timeout, self.max_retries = timeout, max_retries
        self.tokenizer, self.extra_body = tokenizer, extra_body
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def build_tokenizer(self) -> PreTrainedTokenizerBase:
        """That of the model served, from the hub or a folder."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.tokenizer or self.model)
        return self._tokenizer

    def respond(self, prompts: Sequence[PromptExample], sampling: Sampling) -> Iterator[Answered | Refused]:
        """Answer prompts as the server gets them done.

        Raises:
            EndpointError: the server cannot be used, or gave no answer to any attempt.
            ValueError: the environment variable of the key is not set.
        """
        loop = asyncio.new_event_loop()
        answers = self._respond(prompts, sampling, self._key())
        try:
            while True:
                try:
                    answered = loop.run_until_complete(anext(answers))
                except StopAsyncIteration:
                    return
                yield answered
        finally:
            loop.run_until_complete(_stop(answers))
            loop.close()

    def _key(self) -> str | None:
        if self.api_key_env is None:
            return None
        if not (key := os.environ.get(self.api_key_env)):
            raise ValueError(f"api_key_env: the environment variable {self.api_key_env} is not set")
        return key

    async def _respond(
        self, prompts: Sequence[PromptExample], sampling: Sampling, key: str | None
    ) -> AsyncGenerator[Answered | Refused, None]:
        from openai import AsyncOpenAI

        remaining = iter(prompts)
        gate = asyncio.Semaphore(self.max_concurrency)
        at_a_time = self.max_concurrency // sampling.group_size + 2  # enough to keep every request slot busy
        running: set[asyncio.Task[Answered | Refused]] = set()
        with _without_variables():
            # without a key of its own the client would send that of OPENAI_API_KEY
            made = AsyncOpenAI(
                base_url=self.url, api_key=key or "none", timeout=self.timeout, max_retries=self.max_retries
            )
        async with made as client:
            ask = _Request(self, client, sampling, gate, key)
            try:
                while True:
                    for prompt in islice(remaining, at_a_time - len(running)):
                        running.add(asyncio.create_task(ask.group(prompt)))
                    if not running:
                        return
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in sorted(done, key=lambda task: task.exception() is not None):
                        yield task.result()
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)


async def _stop(answers: AsyncGenerator[Answered | Refused, None]) -> None:
    """End what is under way, also where an interrupt left the generator in the middle of a step."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await answers.aclose()


@contextmanager
def _without_variables() -> Iterator[None]:
    """No variable of the environment that the client would send unasked."""
    taken = {name: os.environ.pop(name) for name in _VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)


class _Request:
    """Requests of one run."""

    def __init__(
        self, endpoint: Endpoint, client: AsyncOpenAI, sampling: Sampling, gate: asyncio.Semaphore, key: str | None
    ) -> None:
        self.endpoint, self.client, self.sampling, self.gate, self.key = endpoint, client, sampling, gate, key

    async def group(self, prompt: PromptExample) -> Answered | Refused:
        """All responses to a prompt, or why the server gives none."""
        content = self._content(prompt)
        numbers = range(self.sampling.group_size)
        tasks = [asyncio.create_task(self._one(prompt.id, number, content)) for number in numbers]
        try:
            return Answered(prompt, list(await asyncio.gather(*tasks)))
        except PromptRefusedError as refusal:
            return Refused(prompt, str(refusal))
        finally:  # the first failure leaves its siblings under way
            for task in tasks:
                task.cancel()

    def _content(self, prompt: PromptExample) -> dict[str, Any]:
        if self.endpoint.api == "chat":
            messages = prompt.prompt
            return {"messages": [{"role": "user", "content": messages}] if isinstance(messages, str) else messages}
        ids = prompt.input_ids
        return {"prompt": ids if self.endpoint.prompt_as == "tokens" else self._text(prompt)}

    def _text(self, prompt: PromptExample) -> str:
        """Text that the server's tokenizer, which puts its own special tokens in front, reads as the same tokens."""
        tokenizer, ids = self.endpoint.build_tokenizer(), prompt.input_ids
        for skipped in (0, 1):
            text = tokenizer.decode(ids[skipped:])
            if tokenizer(text)["input_ids"] == ids:
                return str(text)
        raise EndpointError(f"prompt {prompt.id!r} as text would be read as other tokens: use prompt_as: tokens")

    async def _one(self, key: str, number: int, content: dict[str, Any]) -> Response:
        attempts = self.endpoint.max_retries + 1
        attempt = 1
        async with self.gate:
            while True:
                try:
                    return read_answer(await self._body(key, number, content), self.endpoint.api)
                except PassingError as error:
                    if attempt == attempts:
                        raise EndpointError(self._line(f"{error} in {attempts} attempts")) from None
                except EndpointError as error:
                    raise type(error)(self._line(str(error))) from None
                await asyncio.sleep(random.uniform(0.25, 0.5) * min(2**attempt, 16))  # the client's own pauses
                attempt += 1

    async def _body(self, key: str, number: int, content: dict[str, Any]) -> bytes:
        """Body of the answer: read here, for the client fails on what is no JSON without a word of the server."""
        from openai import OpenAIError

        completions = self.client.completions if self.endpoint.api == "completions" else self.client.chat.completions
        create: Any = completions.with_raw_response.create
        try:
            answer = await create(
                **content,
                model=self.endpoint.model,
                max_tokens=self.sampling.max_new_tokens,
                temperature=self.sampling.temperature,
                top_p=self.sampling.top_p,
                seed=self.sampling.request_seed(key, number),
                extra_body=self.endpoint.extra_body,
            )
        except OpenAIError as error:
            # without the original, whose text may repeat what was sent
            raise self._failure(error) from None
        return bytes(answer.http_response.content)

    def _failure(self, error: Exception) -> EndpointError:
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        attempts = f"in {self.endpoint.max_retries + 1} attempts"
        if isinstance(error, APITimeoutError):
            return EndpointError(f"gave no answer within {self.endpoint.timeout:g} s {attempts}")
        if isinstance(error, APIConnectionError):
            return EndpointError(f"cannot be reached {attempts} ({error.__cause__ or error})")
        if isinstance(error, APIStatusError):
            kind = PromptRefusedError if error.status_code in _REFUSALS else EndpointError
            said = said_in(error.body) or error.response.text[:300] or error.message
            return kind(f"answered {error.status_code}: {said}")
        return EndpointError(f"failed ({type(error).__name__}: {error})")

    def _line(self, text: str) -> str:
        text = " ".join(f"{self.endpoint.url} {text}".split())
        return text.replace(self.key, "***") if self.key else text
