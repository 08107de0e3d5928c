r"""Verifiers: is the final answer of a response right?

`ExactMatch` compares texts, `MathVerifier` compares mathematical values. Both take as the answer what a response boxes
last (`\boxed{...}`, closed and not empty), else what follows the last "Answer:", "the answer is" or closing "####";
behind `</think>` if an answer is there, else anywhere. A ground truth that is a worked solution, as those of GSM8K and
MATH are, counts by its answer, found in the same way.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ipvrm_lightning.failures import library_errors
from ipvrm_lightning.rollouts.answers import final_answer, is_proper, last_line, plain
from ipvrm_lightning.rollouts.worker_pool import WorkerPool

if TYPE_CHECKING:
    from ipvrm_lightning.types import PromptExample


class Submission(NamedTuple):
    """A response to judge.

    Args:
        prompt: text or chat messages it answers.
        response: what was sampled.
        ground_truth: the right answer.
    """

    prompt: str | list[dict[str, str]]
    response: str
    ground_truth: str


class Verdict(NamedTuple):
    """What a verifier says of a submission.

    Args:
        correct: the final answer agrees with the ground truth.
        answer: the final answer in a normal form, for majority votes; None where there is none.
        problem: what kept the answer from being judged ("time limit", "memory limit", "worker died"), else None.
    """

    correct: bool
    answer: str | None = None
    problem: str | None = None


class Verifier(ABC):
    """Judges final answers."""

    #: Constructor arguments that change no verdict: a store of rollouts may be continued with other ones.
    incidental: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def verify(self, submissions: Sequence[Submission]) -> list[Verdict]:
        """Verdicts, in the order of the submissions."""

    def check(self, prompts: Sequence[PromptExample]) -> None:  # noqa: B027 - most can compare with any text
        """Refuse ground truths that `verify` would fail on; before anything is sampled, or a run dies in the middle.

        Args:
            prompts: whose answers are to be judged.

        Raises:
            ValueError: names the prompt and its ground truth.
        """

    def close(self) -> None:  # noqa: B027 - most verifiers hold nothing
        """Let go of processes and other resources; they come back when needed."""


def judge(verifier: Verifier, submissions: Sequence[Submission], prompt_ids: Sequence[str]) -> list[Verdict]:
    """What a verifier says, checked: a share of being right, say, would count as right.

    Args:
        verifier: of any kind; is not asked where there is nothing to judge.
        submissions: responses to judge.
        prompt_ids: of the prompt that each of them answers.

    Raises:
        ValueError: it failed, or its verdicts are none; names verifier and prompt.
    """
    if not submissions:
        return []
    kind = type(verifier).__name__
    with library_errors(f"{kind}.verify failed on responses to prompt {prompt_ids[0]!r} and those judged with it"):
        verdicts = list(verifier.verify(submissions))
    if len(verdicts) != len(submissions):
        found = f"{len(verdicts)} verdicts on {len(submissions)} responses"
        raise ValueError(f"{kind}.verify, prompt {prompt_ids[0]!r} and those judged with it: it gave {found}")
    for verdict, prompt in zip(verdicts, prompt_ids, strict=True):
        for name, value, kinds in (
            ("verdict", verdict, (Verdict,)),
            ("correct", getattr(verdict, "correct", False), (bool,)),
            ("answer", getattr(verdict, "answer", None), (str, type(None))),
            ("problem", getattr(verdict, "problem", None), (str, type(None))),
        ):
            if not isinstance(value, kinds):
                wanted = " or ".join("None" if one is type(None) else one.__name__ for one in kinds)
                raise ValueError(f"{kind}.verify, prompt {prompt!r}: {name} must be {wanted}, found {value!r}")
    return verdicts


class ExactMatch(Verifier):
    """The answer equals the ground truth, letter for letter, but that runs of white space count as one space.

    Dollar signs around it and a final full stop are left out.

    Args:
        use_last_line: where a response states no answer, take its last line that is not blank.
        ignore_case: whether "Yes" equals "yes".
        response_characters: characters from the end of the response that are looked at.
    """

    def __init__(
        self, *, use_last_line: bool = True, ignore_case: bool = False, response_characters: int = 20_000
    ) -> None:
        _at_least_one("response_characters", response_characters)
        self.use_last_line = use_last_line
        self.ignore_case = ignore_case
        self.response_characters = response_characters

    def verify(self, submissions: Sequence[Submission]) -> list[Verdict]:
        """Verdicts, in the order of the submissions."""
        return [self._verdict(submission) for submission in submissions]

    def _verdict(self, submission: Submission) -> Verdict:
        text = submission.response[-self.response_characters :]
        found = final_answer(text)
        if found is None and self.use_last_line:
            found = last_line(text)
        if found is None:
            return Verdict(False, None, None)
        answer, truth = plain(found), plain(_truth(submission.ground_truth))
        if self.ignore_case:
            answer, truth = answer.casefold(), truth.casefold()
        return Verdict(answer == truth, answer, None)


class MathVerifier(Verifier):
    r"""The answer has the value of the ground truth, as math-verify sees it.

    Fractions equal decimals (to six places, numbers below 0.001 to five digits), sets and lists any order of their
    elements, units are left out, and 50 % equals both 0.5 and 50. What math-verify cannot read as a whole but is proper
    text is compared as text.

    Answers are judged in worker processes, which hold no torch. One that exceeds a limit costs its own time only: its
    worker is killed and replaced, and the answer counts as wrong with the problem named. Where a worker dies for
    another reason (the system ran out of memory), its answer is tried once more. Workers start when first needed and
    end with `close` or this process; pickles and copies of a verifier start their own.

    Args:
        workers: processes; None for the number of CPU cores that this process may use, at most 8.
        time_limit: seconds of processor time an answer may take; ten times as many by the clock.
        memory_limit: address space of a worker, MiB; none on macOS.
        response_characters: characters from the end of the response that are looked at; an answer before them is not
            found.
    """

    incidental = frozenset({"workers"})

    def __init__(
        self,
        *,
        workers: int | None = None,
        time_limit: float = 5.0,
        memory_limit: int = 1024,
        response_characters: int = 20_000,
    ) -> None:
        self.workers = min(8, _cores()) if workers is None else workers
        _at_least_one("workers", self.workers)
        _at_least_one("memory_limit", memory_limit)
        _at_least_one("response_characters", response_characters)
        if not time_limit > 0:
            raise ValueError(f"time_limit: expected more than 0 s, found {time_limit}")
        self.time_limit = time_limit
        self.memory_limit = memory_limit
        self.response_characters = response_characters
        self._pool: WorkerPool | None = None

    def check(self, prompts: Sequence[PromptExample]) -> None:
        """Refuse ground truths that are neither mathematics nor proper text.

        Raises:
            ValueError: names the first prompt with one.
            RuntimeError: workers do not start.
        """
        doubtful = [prompt for prompt in prompts if not is_proper(_truth(prompt.ground_truth))]
        tasks = [(_truth(prompt.ground_truth), None) for prompt in doubtful]
        for prompt, outcome in zip(doubtful, self._workers_here().run(tasks) if tasks else [], strict=True):
            if outcome.problem is None and not outcome.value.known:
                raise ValueError(f"prompt {prompt.id!r}: ground truth cannot be read: {prompt.ground_truth!r}")

    def verify(self, submissions: Sequence[Submission]) -> list[Verdict]:
        """Verdicts, in the order of the submissions.

        Raises:
            ValueError: a ground truth that is neither mathematics nor proper text.
            RuntimeError: workers do not start.
        """
        answers = [final_answer(submission.response[-self.response_characters :]) for submission in submissions]
        truths = [_truth(submission.ground_truth) for submission in submissions]
        tasks = list(zip(truths, answers, strict=True))
        verdicts = []
        for (truth, answer), outcome in zip(tasks, self._workers_here().run(tasks), strict=True):
            if outcome.problem is not None:
                verdicts.append(Verdict(False, answer and plain(answer), outcome.problem))
            elif not outcome.value.known:
                raise ValueError(f"ground truth cannot be read: {truth!r}")
            else:
                verdicts.append(Verdict(outcome.value.correct, outcome.value.answer, None))
        return verdicts

    def close(self) -> None:
        """End the workers; the next `verify` starts new ones."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _workers_here(self) -> WorkerPool:
        # after a fork the pool of the parent is not ours to talk to
        if self._pool is None or self._pool.owner != os.getpid():
            self._pool = WorkerPool(
                module="ipvrm_lightning.rollouts.math_worker",
                size=self.workers,
                time_limit=self.time_limit,
                memory_limit=self.memory_limit,
            )
        return self._pool

    def __getstate__(self) -> dict[str, Any]:
        """Settings alone: processes belong to one object."""
        return {**self.__dict__, "_pool": None}


def _truth(text: str) -> str:
    """The answer of a worked solution, else the text itself."""
    return final_answer(text) or text


def _cores() -> int:
    """CPU cores that this process may use: on a cluster's node often a few of many."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, found {value}")
