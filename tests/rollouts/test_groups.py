"""Prompts answered and judged: which response is whose, what counts as right, and how many prompts are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from ipvrm_lightning.models import RandomLanguageModel
from ipvrm_lightning.rollouts.groups import Attempt, Group, answer_prompts, collect_mixed
from ipvrm_lightning.rollouts.sampler import sample_responses
from ipvrm_lightning.rollouts.sources import Sampling
from ipvrm_lightning.rollouts.verifiers import Submission, Verdict, Verifier
from ipvrm_lightning.types import PromptExample
from tests.data.tokenizers import byte_level

from ..models.conftest import QWEN

TOKENIZER = byte_level(None)
END = TOKENIZER.eos_token_id
#: What the policy may say, so that all kinds of responses occur: two letters, a space, and what ends a response.
SAID = torch.zeros(len(TOKENIZER), dtype=torch.bool)
SAID[TOKENIZER.convert_tokens_to_ids(["4", "q", "Ġ", "<s>", "<|im_end|>"])] = True
PROMPTS = [PromptExample([10 + i] * (3 - i), f"prompt {i}", f"truth {i}", "", f"id {i}") for i in range(3)]


class Recorder(Verifier):
    """Writes down what it is shown; says that responses of an even number of characters are right."""

    def __init__(self) -> None:
        self.shown: list[Submission] = []

    def verify(self, submissions: Sequence[Submission]) -> list[Verdict]:
        self.shown += submissions
        return [Verdict(len(s.response) % 2 == 0, s.ground_truth, s.response[:1]) for s in submissions]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (2.0, 0.9)])
def test_attempts_are_their_prompts_and_right_where_they_ended_and_are_said_to_be(
    temperature: float, top_p: float
) -> None:
    model = RandomLanguageModel(config={**QWEN, "vocab_size": len(TOKENIZER), "initializer_range": 0.2}).build_model()
    model.lm_head.register_forward_hook(lambda _, __, logits: logits.where(SAID, float("-inf")))
    ends, sampling = [END, TOKENIZER.bos_token_id], Sampling(16, temperature, top_p, max_new_tokens=4)
    verifier = Recorder()
    found = answer_prompts(model, TOKENIZER, verifier, PROMPTS, sampling, end_token_ids=ends, batch_size=5, seed=3)
    assert [group.prompt for group in found] == PROMPTS
    shown = iter(verifier.shown)
    kinds = set()
    for prompt, group in zip(PROMPTS, found, strict=True):
        (alone,) = sample_responses(
            model,
            [prompt.input_ids],
            num_return_sequences=16,
            max_new_tokens=4,
            eos_token_id=ends,
            pad_token_id=END,
            temperature=temperature,
            top_p=top_p,
            seed=3,
            keys=[prompt.id],
        )
        assert [(a.input_ids, a.finished) for a in group.attempts] == [(r.input_ids, r.finished) for r in alone]
        for attempt in group.attempts:
            ids = attempt.input_ids[:-1] if attempt.finished else attempt.input_ids
            assert attempt.text == TOKENIZER.decode(ids)
            blank = not attempt.text.strip()
            even = len(attempt.text) % 2 == 0
            if not blank:
                assert next(shown) == Submission(prompt.prompt, attempt.text, prompt.ground_truth)
            assert attempt.outcome == int(not blank and even and attempt.finished)
            said = (None, None) if blank else (prompt.ground_truth, attempt.text[:1])
            assert (attempt.answer, attempt.problem) == said
            kinds.add((attempt.finished, blank, even))
        assert group.accuracy == sum(attempt.outcome for attempt in group.attempts) / 16
    assert next(shown, None) is None
    assert {
        (True, False, True),
        (True, False, False),
        (False, False, True),
        (True, True, True),
        (True, True, False),
    } <= kinds


def test_nothing_is_sampled_for_no_prompt() -> None:
    model: Any = None
    assert answer_prompts(model, TOKENIZER, Recorder(), [], Sampling(), end_token_ids=[END], batch_size=5, seed=3) == []


class Stream:
    """Prompts 0, 1, 2, 0, ...; writes down how many it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def take(self, count: int) -> list[PromptExample]:
        before = sum(self.asked)
        self.asked.append(count)
        return [PROMPTS[(before + i) % 3] for i in range(count)]


def collected(mixed: str, **options: Any) -> tuple[list[str], list[str], list[int]]:
    """Names of what was kept and of what was sampled, and how many were asked for; prompt i is mixed where said so."""
    source = Stream()

    def answer(prompts: list[PromptExample]) -> list[Group]:
        outcomes = [(1, 0) if prompt.id.split()[1] in mixed else (0, 0) for prompt in prompts]
        return [
            Group(prompt, [Attempt([], "", True, o, None, None) for o in of])
            for prompt, of in zip(prompts, outcomes, strict=True)
        ]

    found = collect_mixed(source, answer, **options)
    kept, sampled = ([group.prompt.id for group in groups] for groups in found)
    return kept, sampled, source.asked


def test_prompts_are_drawn_until_enough_have_both_outcomes() -> None:
    every = ["id 0", "id 1", "id 2"]
    assert collected("012", wanted=3, oversampling=1.0, max_refills=5) == (every, every, [3])
    # one of three is mixed: 3 x 1.5 drawn, then 1.5 for each that is missing, and no more than wanted are kept
    kept, sampled, asked = collected("0", wanted=3, oversampling=1.5, max_refills=5)
    assert kept == ["id 0", "id 0 (2)", "id 0 (3)"] and asked == [4, 2, 2]
    assert sampled == [*every, "id 0 (2)", "id 1 (2)", "id 2 (2)", "id 0 (3)", "id 1 (3)"]
    kept, sampled, asked = collected("012", wanted=2, oversampling=2.0, max_refills=5)
    assert kept == every[:2] and len(sampled) == 4 and asked == [4]


def test_refills_come_to_an_end() -> None:
    assert collected("", wanted=2, oversampling=1.0, max_refills=0)[::2] == ([], [2])
    assert collected("", wanted=1, oversampling=0.1, max_refills=2)[::2] == ([], [1, 1, 1])
    assert collected("1", wanted=2, oversampling=1.0, max_refills=1)[::2] == (["id 1"], [2, 1])


@pytest.mark.parametrize(("outcomes", "mixed"), [((1, 1), False), ((0, 0), False), ((1, 0), True)])
def test_a_group_is_mixed_where_both_outcomes_occur(outcomes: tuple[int, ...], mixed: bool) -> None:
    assert Group(PROMPTS[0], [Attempt([], "", True, outcome, None, None) for outcome in outcomes]).mixed is mixed
