"""`StepF1`: step F1 of all protocols at once, with floors, cross-fitted thresholds and confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ipvrm_lightning.metrics.records import RecordMetric
from ipvrm_lightning.metrics.score_file import check_solution, solution_from_line, solution_to_line
from ipvrm_lightning.metrics.step_f1_judge import judge_solutions
from ipvrm_lightning.metrics.step_f1_report import JudgeSettings, StepF1Report
from ipvrm_lightning.types import ScoredSolution


class StepF1(RecordMetric):
    """Judges scored solutions; the report is the same for any number of processes and any order of updates.

    Args:
        folds: number of folds of problems for the cross-fitted threshold.
        resamples: bootstrap resamples of problems for the confidence intervals.
        confidence: probability the intervals should cover.
        random_seeds: draws of random scores for the random floor.
        seed: of folds, resamples and random scores.
        fixed_threshold: one threshold for all protocols, or one per protocol; none by default.
        kwargs: of torchmetrics' Metric.
    """

    def __init__(
        self,
        *,
        folds: int = 5,
        resamples: int = 200,
        confidence: float = 0.95,
        random_seeds: int = 100,
        seed: int = 0,
        fixed_threshold: float | dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.settings = JudgeSettings(
            folds=folds,
            resamples=resamples,
            confidence=confidence,
            random_seeds=random_seeds,
            seed=seed,
            fixed_threshold=fixed_threshold,
        )

    def update(self, solutions: Sequence[ScoredSolution]) -> None:
        """Add scored solutions.

        Raises:
            ValueError: a solution with wrong sizes or scores that are not finite.
        """
        for solution in solutions:
            check_solution(solution, f"solution {solution.id!r}")
        self.put_lines(map(solution_to_line, solutions))

    def solutions(self) -> list[ScoredSolution]:
        """The solutions this process has seen."""
        return [solution_from_line(line, f"record {number}") for number, line in enumerate(self.read_lines())]

    def compute(self) -> StepF1Report:
        """Judge the solutions of all processes.

        Raises:
            ValueError: no solutions, or ids that occur twice in a subset.
        """
        return judge_solutions(self.solutions(), self.settings)
