"""Step F1 of scored solutions: how well the first step below a threshold is the first wrong step.

Per subset and protocol, with three origins of the threshold: `oracle` (best on the same solutions, as papers report),
`cross_fitted` (each solution judged with the threshold that is best on other problems: what a user gets) and `fixed`
(given). Sums of log-ratios grow with the length of a step, so every subset also carries two floors that know nothing of
the content: random scores, and "the longest step is the wrong one".

Thresholds are chosen per subset, and the average is the plain mean over subsets, as ProcessBench (Zheng et al.,
arXiv:2412.06559) averages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ipvrm_lightning.metrics.resampling import Interval

if TYPE_CHECKING:
    from rich.table import Table


@dataclass
class JudgeSettings:
    """How solutions are judged.

    Args:
        folds: number of folds of problems for the cross-fitted threshold.
        resamples: bootstrap resamples of problems for the confidence intervals.
        confidence: probability the intervals should cover.
        random_seeds: draws of random scores for the random floor.
        seed: of folds, resamples and random scores.
        fixed_threshold: one threshold for all protocols, or one per protocol; none by default.
    """

    folds: int = 5
    resamples: int = 200
    confidence: float = 0.95
    random_seeds: int = 100
    seed: int = 0
    fixed_threshold: float | dict[str, float] | None = None

    def __post_init__(self) -> None:
        for name, least in (("folds", 2), ("resamples", 2), ("random_seeds", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, found {getattr(self, name)}")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence: expected a number between 0 and 1, found {self.confidence}")
        fixed = self.fixed_threshold
        given = [] if fixed is None else list(fixed.values()) if isinstance(fixed, Mapping) else [fixed]
        if not all(map(math.isfinite, given)):
            raise ValueError(f"fixed_threshold: expected finite numbers, found {fixed}")

    def fixed_for(self, protocol: str) -> float | None:
        """The fixed threshold of a protocol, None if there is none."""
        if isinstance(self.fixed_threshold, Mapping):
            return self.fixed_threshold.get(protocol)
        return self.fixed_threshold


@dataclass
class ThresholdedResult:
    """What one way of choosing the threshold gives; shares between 0 and 1, NaN where undefined.

    Args:
        f1: harmonic mean of the two accuracies.
        threshold: the threshold; the mean over solutions for `cross_fitted`; NaN for an average over subsets.
        correct_accuracy: share of solutions without an error in which none is found.
        error_accuracy: share of solutions with an error in which exactly the first wrong step is found.
        right_answer_accuracy: `error_accuracy` on those solutions whose final answer is right all the same.
        f1_interval: bootstrap interval of `f1` over problems: percentiles, mirrored at `f1` for an oracle threshold,
            whose F1 errs upward. Oracle and cross-fitted thresholds are chosen anew on each resample.
    """

    f1: float
    threshold: float
    correct_accuracy: float
    error_accuracy: float
    right_answer_accuracy: float
    f1_interval: Interval


@dataclass
class RandomFloor:
    """Step F1 of i.i.d. uniform scores: mean and standard deviation over seeds."""

    oracle_mean: float
    oracle_std: float
    cross_fitted_mean: float
    cross_fitted_std: float


@dataclass
class SubsetReport:
    """Everything about one subset, or the average of all.

    Args:
        solutions: number of solutions.
        with_error: those with a wrong step.
        right_answer_with_error: those with a wrong step and yet the right final answer.
        problems: number of distinct problems.
        protocols: protocol to origin of the threshold to result.
        random: floor of random scores.
        longest_step: floor of "the longest step (in characters) is the wrong one", by origin.
    """

    solutions: int
    with_error: int
    right_answer_with_error: int
    problems: int
    protocols: dict[str, dict[str, ThresholdedResult]]
    random: RandomFloor
    longest_step: dict[str, ThresholdedResult]


@dataclass
class StepF1Report:
    """Step F1 of every subset, their average, and the settings that led to it."""

    subsets: dict[str, SubsetReport]
    average: SubsetReport
    settings: JudgeSettings

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dictionaries."""
        return asdict(self)

    def tables(self) -> list[Table]:
        """The report as rich tables."""
        from ipvrm_lightning.metrics.step_f1_tables import step_f1_tables

        return step_f1_tables(self)
