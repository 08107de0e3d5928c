"""A model in this process as a source of responses."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from ipvrm_lightning.models import RandomLanguageModel
from ipvrm_lightning.rollouts.ends import response_text
from ipvrm_lightning.rollouts.sampler import sample_responses
from ipvrm_lightning.rollouts.sources import InProcess, Sampling
from ipvrm_lightning.types import PromptExample
from tests.data.tokenizers import byte_level
from tests.modules.conftest import QWEN

TOKENIZER = byte_level()
PROMPTS = [PromptExample(TOKENIZER.encode("3 and 4"), "3 and 4", "7", "tests", f"p{n}") for n in range(4)]
SAMPLING = Sampling(group_size=6, max_new_tokens=60)


def source(folder: Path, **options: object) -> InProcess:
    TOKENIZER.save_pretrained(folder)
    config = {**QWEN, "vocab_size": len(TOKENIZER), "eos_token_id": TOKENIZER.eos_token_id, "initializer_range": 0.3}
    factory = RandomLanguageModel(config=config, tokenizer=str(folder))
    return InProcess(language_model=factory, device="cpu", **options)  # type: ignore[arg-type]


def test_only_the_token_that_ended_a_response_is_left_out(tmp_path: Path) -> None:
    stop, kept = "<|im_start|>", "<s>"
    answered = list(source(tmp_path, stop_tokens=[stop]).respond(PROMPTS, SAMPLING))
    assert [answer.prompt.id for answer in answered] == ["p0", "p1", "p2", "p3"]
    responses = [response for answer in answered for response in answer.responses]
    assert len(responses) == 24 and {response.finished for response in responses} == {True, False}
    assert not any(stop in response.text or TOKENIZER.eos_token in response.text for response in responses)
    assert any(kept in response.text for response in responses)  # special tokens are text like any other
    assert all(response.finished or response.tokens == 60 for response in responses)
    without = [response for answer in source(tmp_path).respond(PROMPTS, SAMPLING) for response in answer.responses]
    assert any(stop in response.text for response in without)
    for response, longer in zip(responses, without, strict=True):
        assert longer.text.startswith(response.text.rstrip("\ufffd"))
        assert response.text.rstrip("\ufffd") == longer.text.partition(stop)[0].rstrip("\ufffd")


def test_responses_are_drawn_as_the_settings_say(tmp_path: Path) -> None:
    sampling, own = Sampling(3, temperature=1.7, top_p=0.8, max_new_tokens=9, seed=5), source(tmp_path, batch_size=2)
    ends = TOKENIZER.eos_token_id
    expected = sample_responses(
        own.language_model.build_model(),
        [prompt.input_ids for prompt in PROMPTS],
        num_return_sequences=3,
        max_new_tokens=9,
        eos_token_id=ends,
        pad_token_id=ends,
        temperature=1.7,
        top_p=0.8,
        seed=5,
        keys=[prompt.id for prompt in PROMPTS],
    )
    found = [answer.responses for answer in own.respond(PROMPTS, sampling)]
    of_each = [[(response_text(TOKENIZER, one), one.finished, len(one.input_ids)) for one in of] for of in expected]
    assert [[tuple(response) for response in responses] for responses in found] == of_each
    assert len({response.text for responses in found for response in responses}) > 6


def test_prompts_that_the_model_cannot_read_are_refused(tmp_path: Path) -> None:
    own, sampling = source(tmp_path), Sampling(2, max_new_tokens=9)
    own.language_model.config["max_position_embeddings"] = 38  # type: ignore[attr-defined]
    for input_ids, message in (([5] * 30, "up to 39 tokens .* made for 38"), ([5, 999, 5], "holds token 999")):
        with pytest.raises(ValueError, match=message):
            next(own.respond([PROMPTS[0], replace(PROMPTS[1], input_ids=input_ids), PROMPTS[2]], sampling))


def test_an_unknown_stop_token_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop_tokens: the tokenizer has no token '<end>'"):
        next(source(tmp_path, stop_tokens=["<end>"]).respond(PROMPTS, SAMPLING))


def test_settings_out_of_range_are_refused(tmp_path: Path) -> None:
    Sampling(group_size=1, temperature=0.0, top_p=1.0, max_new_tokens=1)
    for name, value in (("group_size", 0), ("max_new_tokens", 0)):
        with pytest.raises(ValueError, match=rf"^sampling\.{name} must be at least 1, not 0$"):
            Sampling(**{name: value})
    for name, wrong in (("temperature", -0.1), ("temperature", math.nan), ("top_p", 0.0), ("top_p", 1.1)):
        with pytest.raises(ValueError, match=r"^sampling needs temperature >= 0 and 0 < top_p <= 1, not "):
            Sampling(**{name: wrong})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        source(tmp_path, batch_size=0)


def test_seeds_of_requests_are_stable() -> None:
    seeds = {Sampling(seed=seed).request_seed(key, number) for seed in (0, 1) for key in "ab" for number in range(50)}
    assert len(seeds) == 200 and all(0 <= seed < 2**31 for seed in seeds)
    assert Sampling().request_seed("a", 0) == Sampling(temperature=0.5).request_seed("a", 0)
