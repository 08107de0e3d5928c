"""Threads of tokenizers: many texts at once use them, and processes that are forked later do not wait for them."""

from __future__ import annotations

import os
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from ipvrm_lightning.data.chat import encode_prompts
from ipvrm_lightning.tokenizer_threads import one_thread
from tests.data.tokenizers import byte_level

VARIABLE = "TOKENIZERS_PARALLELISM"
TEXTS = [f"{number} + 1 = ?" for number in range(512)]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """What tokenizers read in the environment, call by call."""
    found: list[str | None] = []
    call = PreTrainedTokenizerFast.__call__

    def spy(self: PreTrainedTokenizerFast, *args: Any, **kwargs: Any) -> Any:
        found.append(os.environ.get(VARIABLE))
        return call(self, *args, **kwargs)

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", spy)
    monkeypatch.delenv(VARIABLE)
    return found


def test_many_texts_are_tokenised_on_all_cores(said: list[str | None]) -> None:
    tokenizer = byte_level(None)
    one_thread()
    found = encode_prompts(tokenizer, TEXTS)
    assert said == ["true"] and os.environ[VARIABLE] == "off"
    assert found == [encode_prompts(tokenizer, [text])[0] for text in TEXTS]


@pytest.mark.parametrize("choice", ["false", "true", "0"])
def test_what_the_environment_says_stays(choice: str, said: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, choice)
    one_thread()
    encode_prompts(byte_level(None), TEXTS)
    assert said == [choice] and os.environ[VARIABLE] == choice


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_process_that_is_forked_afterwards_tokenises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    one_thread()
    tokenizer = byte_level(None)
    encode_prompts(tokenizer, TEXTS)
    child = os.fork()
    if child == 0:
        tokenizer(TEXTS)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
