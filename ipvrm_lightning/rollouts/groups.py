"""Groups of responses to the same prompt, sampled in this process and verified."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ipvrm_lightning.rollouts.ends import response_text
from ipvrm_lightning.rollouts.sampler import sample_responses
from ipvrm_lightning.rollouts.sources import Sampling
from ipvrm_lightning.rollouts.verifiers import Submission, Verifier, judge
from ipvrm_lightning.types import PromptExample

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Attempt(NamedTuple):
    """One response and its outcome.

    Args:
        input_ids: response tokens, the one that ended it last where there is one.
        text: without that token.
        finished: it ended by itself; False where it was cut off.
        outcome: 1 right; 0 wrong, cut off, or without text.
        answer: what the verifier took for the final answer.
        problem: what kept the verifier from judging it.
    """

    input_ids: list[int]
    text: str
    finished: bool
    outcome: int
    answer: str | None
    problem: str | None


class Group(NamedTuple):
    """A prompt and its attempts."""

    prompt: PromptExample
    attempts: list[Attempt]

    @property
    def accuracy(self) -> float:
        """Share of right attempts."""
        return sum(attempt.outcome for attempt in self.attempts) / len(self.attempts)

    @property
    def mixed(self) -> bool:
        """Whether both outcomes occur: only then do attempts differ in what they earn."""
        return 0 < self.accuracy < 1


class PromptSource(Protocol):
    """Where a step's prompts come from."""

    def take(self, count: int) -> list[PromptExample]:
        """The next prompts."""


class Collection(NamedTuple):
    """Groups of one step.

    Args:
        kept: groups with both outcomes, as many as were wanted where enough were found.
        sampled: all groups that were sampled, the kept ones among them.
    """

    kept: list[Group]
    sampled: list[Group]


def answer_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    verifier: Verifier,
    prompts: Sequence[PromptExample],
    sampling: Sampling,
    *,
    end_token_ids: Sequence[int],
    batch_size: int,
    seed: int,
    on_progress: Callable[[int], None] | None = None,
) -> list[Group]:
    """Sample and verify responses.

    Args:
        model: the policy.
        tokenizer: of the policy.
        verifier: says which responses are right; is shown no response without text.
        prompts: to answer.
        sampling: how; its seed is not used.
        end_token_ids: tokens that end a response.
        batch_size: responses sampled at one time.
        seed: of the draws; a response depends on it, its prompt's id and its number, not on the batch.
        on_progress: called with the number of responses that a batch has added.
    """
    if not prompts:
        return []
    rollouts = sample_responses(
        model,
        [prompt.input_ids for prompt in prompts],
        num_return_sequences=sampling.group_size,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=end_token_ids,
        pad_token_id=end_token_ids[0],
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=seed,
        keys=[prompt.id for prompt in prompts],
        batch_size=batch_size,
        on_progress=on_progress,
    )
    flat = [(prompt, rollout) for prompt, group in zip(prompts, rollouts, strict=True) for rollout in group]
    texts = [response_text(tokenizer, rollout) for _, rollout in flat]
    shown = [index for index, text in enumerate(texts) if text.strip()]
    submissions = [Submission(flat[i][0].prompt, texts[i], flat[i][0].ground_truth) for i in shown]
    verdicts = dict(zip(shown, judge(verifier, submissions, [flat[i][0].id for i in shown]), strict=True))
    attempts = []
    for index, ((_, rollout), text) in enumerate(zip(flat, texts, strict=True)):
        verdict = verdicts.get(index)
        right = verdict is not None and verdict.correct and rollout.finished
        answer, problem = (verdict.answer, verdict.problem) if verdict else (None, None)
        attempts.append(Attempt(rollout.input_ids, text, rollout.finished, int(right), answer, problem))
    size = sampling.group_size
    return [Group(prompt, attempts[i * size : (i + 1) * size]) for i, prompt in enumerate(prompts)]


def collect_mixed(
    source: PromptSource,
    answer: Callable[[list[PromptExample]], list[Group]],
    *,
    wanted: int,
    oversampling: float,
    max_refills: int,
) -> Collection:
    """Sample until enough prompts have both outcomes, or the refills are used up.

    Args:
        source: of prompts.
        answer: samples and verifies, on all processes together; the same result on each.
        wanted: groups with both outcomes.
        oversampling: prompts drawn for each group that is still wanted, at least 1.
        max_refills: further draws after the first.
    """
    kept: list[Group] = []
    sampled: list[Group] = []
    drawn: Counter[str] = Counter()
    for _ in range(1 + max_refills):
        prompts = source.take(max(1, round((wanted - len(kept)) * oversampling)))
        groups = answer([_drawn_again(prompt, drawn) for prompt in prompts])
        sampled += groups
        kept += [group for group in groups if group.mixed]
        if len(kept) >= wanted:
            break
    return Collection(kept[:wanted], sampled)


def _drawn_again(prompt: PromptExample, drawn: Counter[str]) -> PromptExample:
    """A prompt under a name of its own each time it is drawn: by the same name it would get the same responses."""
    drawn[prompt.id] += 1
    times = drawn[prompt.id]
    return prompt if times == 1 else replace(prompt, id=f"{prompt.id} ({times})")
