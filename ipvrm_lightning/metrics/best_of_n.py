"""`BestOfN`: choosing among rollouts of a prompt by a score, beside choosing by luck, by vote and with an oracle."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ipvrm_lightning.functional.best_of_n import best_of_n, majority_vote, oracle, pass_at_1
from ipvrm_lightning.functional.masking import check_outcomes
from ipvrm_lightning.metrics.records import RecordMetric
from ipvrm_lightning.metrics.resampling import Interval, bootstrap_weights, percentile_interval, seed_of

if TYPE_CHECKING:
    from rich.table import Table

PASS_AT_1, MAJORITY, ORACLE = "pass@1", "majority vote", "oracle"


@dataclass
class ChoiceResult:
    """Accuracy of one way of choosing: mean over prompts, NaN where it is unknown, and its bootstrap interval."""

    accuracy: float
    interval: Interval


@dataclass
class BestOfNReport:
    """Accuracy of the chosen rollout.

    Args:
        prompts: number of prompts.
        rollouts: number of rollouts of all prompts together.
        prompts_at: n to the number of prompts that have at least n rollouts; the others are left out there.
        accuracy: way of choosing (scorers, then "pass@1", "majority vote", "oracle") to n to result.
    """

    prompts: int
    rollouts: int
    prompts_at: dict[int, int]
    accuracy: dict[str, dict[int, ChoiceResult]]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dictionaries."""
        return asdict(self)

    def tables(self) -> list[Table]:
        """The report as rich tables."""
        from ipvrm_lightning.metrics.rollout_tables import best_of_n_tables

        return best_of_n_tables(self)


@dataclass
class _Prompt:
    key: str
    outcomes: Tensor
    scores: dict[str, Tensor]
    answers: list[str | None]

    @property
    def group_ids(self) -> Tensor:
        return torch.zeros(len(self.outcomes), dtype=torch.long)


def rollout_scores(final_values: Tensor, step_scores: Sequence[Sequence[float]]) -> dict[str, Tensor]:
    """The usual scores of whole rollouts.

    Args:
        final_values: value of each whole response, [B].
        step_scores: scores of each response's steps, at least one.

    Returns:
        `final_value`, `min_step` and `mean_step`, float64, [B] each.
    """
    return {
        "final_value": final_values.detach().double(),
        "min_step": torch.tensor([min(row) for row in step_scores], dtype=torch.float64),
        "mean_step": torch.tensor([math.fsum(row) / len(row) for row in step_scores], dtype=torch.float64),
    }


class BestOfN(RecordMetric):
    """Accuracy of the rollout with the highest score of n, in expectation over all choices of n rollouts of a prompt.

    Args:
        sizes: the numbers n of rollouts to choose from.
        resamples: bootstrap resamples of prompts for the confidence intervals.
        confidence: probability the intervals should cover.
        vote_draws: random choices of n rollouts over which a majority vote is averaged, where a prompt has more.
        seed: of resamples and draws.
        kwargs: of torchmetrics' Metric.
    """

    def __init__(
        self,
        *,
        sizes: Sequence[int] = (2, 4, 8),
        resamples: int = 200,
        confidence: float = 0.95,
        vote_draws: int = 64,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not sizes or min(sizes) < 1:
            raise ValueError(f"sizes: expected numbers of rollouts of at least 1, found {list(sizes)}")
        self.sizes = sorted(set(sizes))
        self.resamples = resamples
        self.confidence = confidence
        self.vote_draws = vote_draws
        self.seed = seed

    def update(
        self,
        scores: Mapping[str, Tensor],
        outcomes: Tensor,
        prompts: Sequence[str] | Tensor,
        answers: Sequence[str | None] | None = None,
    ) -> None:
        """Add rollouts.

        Args:
            scores: scorer to scores, higher is better, [B] each; `rollout_scores` makes the usual ones.
            outcomes: 1 right, 0 wrong, [B].
            prompts: key of each rollout's prompt, the same in all processes, [B].
            answers: final answers, None where unknown, [B].

        Raises:
            ValueError: sizes that differ, an outcome other than 0 and 1, or a score that is not finite.
        """
        keys = prompts.tolist() if isinstance(prompts, Tensor) else list(prompts)
        rows = {name: values.detach().double().tolist() for name, values in scores.items()}
        texts = list(answers) if answers is not None else [None] * len(keys)
        for name, column in {**rows, "outcomes": outcomes, "answers": texts}.items():
            if len(column) != len(keys):
                raise ValueError(f"{name}: expected one for each of {len(keys)} rollouts, found {len(column)}")
        check_outcomes(outcomes)
        for name, row in rows.items():
            if not all(map(math.isfinite, row)):
                raise ValueError(f"scores.{name}: expected finite numbers, found {row}")
        self.put_lines(
            json.dumps([str(key), int(outcome), texts[index], {name: row[index] for name, row in rows.items()}]) + "\n"
            for index, (key, outcome) in enumerate(zip(keys, outcomes.tolist(), strict=True))
        )

    def compute(self) -> BestOfNReport:
        """Judge the rollouts of all processes.

        Raises:
            ValueError: no rollouts, or rollouts with different scorers.
        """
        prompts = _by_prompt(self.read_lines())
        has_answers = any(answer is not None for prompt in prompts for answer in prompt.answers)
        ways = self._ways(list(prompts[0].scores), has_answers=has_answers)
        accuracy = {way: {n: self._result(prompts, n, function) for n in self.sizes} for way, function in ways.items()}
        return BestOfNReport(
            prompts=len(prompts),
            rollouts=sum(len(prompt.outcomes) for prompt in prompts),
            prompts_at={n: sum(len(prompt.outcomes) >= n for prompt in prompts) for n in self.sizes},
            accuracy=accuracy,
        )

    def _ways(self, scorers: Sequence[str], *, has_answers: bool) -> dict[str, Callable[[_Prompt, int], float]]:
        def by_score(name: str) -> Callable[[_Prompt, int], float]:
            return lambda prompt, n: best_of_n(prompt.scores[name], prompt.outcomes, prompt.group_ids, n=n)

        return {
            **{name: by_score(name) for name in scorers},
            PASS_AT_1: lambda prompt, n: pass_at_1(prompt.outcomes, prompt.group_ids),
            MAJORITY: self._vote if has_answers else lambda prompt, n: math.nan,
            ORACLE: lambda prompt, n: oracle(prompt.outcomes, prompt.group_ids, n=n),
        }

    def _vote(self, prompt: _Prompt, n: int) -> float:
        count = len(prompt.outcomes)
        if count == n:
            return majority_vote(prompt.answers, prompt.outcomes, prompt.group_ids)
        generator = torch.Generator().manual_seed(seed_of((prompt.key,), self.seed))
        drawn = torch.rand(self.vote_draws, count, generator=generator).argsort(dim=1)[:, :n].reshape(-1)
        groups = torch.arange(self.vote_draws).repeat_interleave(n)
        return majority_vote([prompt.answers[index] for index in drawn.tolist()], prompt.outcomes[drawn], groups)

    def _result(self, prompts: Sequence[_Prompt], n: int, function: Callable[[_Prompt, int], float]) -> ChoiceResult:
        enough = [prompt for prompt in prompts if len(prompt.outcomes) >= n]
        if not enough:
            return ChoiceResult(math.nan, Interval(math.nan, math.nan))
        values = torch.tensor([function(prompt, n) for prompt in enough], dtype=torch.float64)
        weights = bootstrap_weights([prompt.key for prompt in enough], resamples=self.resamples, seed=self.seed)
        draws = (weights * values).mean(1)
        return ChoiceResult(float(values.mean()), percentile_interval(draws, self.confidence))


def _by_prompt(lines: Sequence[str]) -> list[_Prompt]:
    if not lines:
        raise ValueError("no rollouts to choose from")
    # sorted as text, so that draws of rollouts do not depend on the order they arrived in
    records = [json.loads(line) for line in sorted(lines)]
    scorers = list(records[0][3])
    groups: dict[str, list[Any]] = {}
    for record in records:
        if list(record[3]) != scorers:
            raise ValueError(f"prompt {record[0]!r}: expected the scores {scorers}, found {list(record[3])}")
        groups.setdefault(record[0], []).append(record)
    return [
        _Prompt(
            key=key,
            outcomes=torch.tensor([record[1] for record in group], dtype=torch.float64),
            scores={name: torch.tensor([record[3][name] for record in group], dtype=torch.float64) for name in scorers},
            answers=[record[2] for record in group],
        )
        for key, group in sorted(groups.items())
    ]
