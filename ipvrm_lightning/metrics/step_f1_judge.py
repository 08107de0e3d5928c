"""Judging scored solutions: folds, thresholds, bootstrap and floors; the numbers of a `StepF1Report`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ipvrm_lightning.functional.threshold_search import ThresholdSearch, harmonic_mean
from ipvrm_lightning.metrics.resampling import (
    Interval,
    Resampled,
    assign_folds,
    basic_interval,
    bootstrap_weights,
    joint_bootstrap_weights,
    mean_of,
    percentile_interval,
    seed_of,
)
from ipvrm_lightning.metrics.score_file import in_stable_order
from ipvrm_lightning.metrics.step_f1_report import (
    JudgeSettings,
    RandomFloor,
    StepF1Report,
    SubsetReport,
    ThresholdedResult,
)
from ipvrm_lightning.types import AVERAGE, ScoredSolution

#: Origins of a threshold: fitted to the data, or given.
CHOSEN = ("oracle", "cross_fitted")
FIXED = "fixed"
#: What an average over subsets is the plain mean of.
_AVERAGED = ("f1", "correct_accuracy", "error_accuracy", "right_answer_accuracy")


class _Judged(NamedTuple):
    result: ThresholdedResult
    draws: Tensor  # F1 on each resample of all subsets together, [R]


class _JudgedSubset(NamedTuple):
    report: SubsetReport
    problems: set[str]
    protocols: dict[str, dict[str, _Judged]]
    longest_step: dict[str, _Judged]
    random_f1: dict[str, Tensor]  # oracle and cross-fitted F1 of each random seed, [seeds]


class _SubsetJudge:
    """Folds and resamples of one subset, shared by all of its scorers so that their intervals are paired.

    Args:
        name: of the subset.
        solutions: all of it.
        settings: how to judge.
        together: its weights in the resamples of all subsets together; None where its own resamples are that too,
            because no other subset has any of its problems.
    """

    def __init__(
        self,
        name: str,
        solutions: Sequence[ScoredSolution],
        settings: JudgeSettings,
        together: Tensor | None = None,
    ) -> None:
        # a seed of the subset's own: judging another subset beside it changes nothing here
        self.seed = seed_of((name,), settings.seed)
        self.settings, self.solutions = settings, solutions
        self.labels = [solution.label for solution in solutions]
        self.has_error = torch.tensor([label >= 0 for label in self.labels])
        answer_is_right = torch.tensor([solution.final_answer_correct is True for solution in solutions])
        self.right_answer_with_error = self.has_error & answer_is_right
        self.fold_of = assign_folds([one.problem for one in solutions], folds=settings.folds, seed=self.seed)
        keys = [one.resampled_as for one in solutions]
        self.weights = bootstrap_weights(keys, resamples=settings.resamples, seed=self.seed)
        self.together = self.weights if together is None else together
        self.everything = torch.ones(1, len(solutions), dtype=torch.float64)

    def by_origin(self, scores: Sequence[Sequence[float]], fixed: float | None = None) -> dict[str, _Judged]:
        """Judge one scorer with every origin of the threshold."""
        search = ThresholdSearch(scores, self.labels)
        judged = {origin: self._judge(search, origin) for origin in CHOSEN}
        return judged if fixed is None else {**judged, FIXED: self._judge(search, FIXED, fixed)}

    def resampled(self, protocol: str, origin: str) -> Resampled:
        """F1 of one protocol, on the data and on each resample of all subsets together."""
        search = ThresholdSearch([one.step_scores[protocol] for one in self.solutions], self.labels)
        judged = self._judge(search, origin)
        return Resampled(judged.result.f1, judged.draws)

    def random_floor(self, step_counts: Sequence[int]) -> dict[str, Tensor]:
        """F1 of i.i.d. uniform scores for each random seed, by origin."""
        found: dict[str, list[Tensor]] = {origin: [] for origin in CHOSEN}
        for draw in range(self.settings.random_seeds):
            generator = torch.Generator().manual_seed(self.seed + 1 + draw)
            flat = torch.rand(sum(step_counts), generator=generator, dtype=torch.float64)
            search = ThresholdSearch([part.tolist() for part in flat.split(list(step_counts))], self.labels)
            for origin, values in found.items():
                values.append(self._f1(self._right(search, self.thresholds(search, origin)), self.everything)[0])
        return {origin: torch.stack(values) for origin, values in found.items()}

    def thresholds(
        self, search: ThresholdSearch, origin: str, weights: Tensor | None = None, fixed: float = math.nan
    ) -> Tensor:
        """The threshold of each solution, [R, n], or [R, 1] where all have the same: on the data, or on resamples.

        Args:
            search: of the scorer.
            origin: of the threshold.
            weights: of the solutions in each resample, [R, n]; None for the data, R = 1.
            fixed: the threshold that is given.
        """
        weights = self.everything if weights is None else weights
        if origin == FIXED:
            return weights.new_full((1, 1), fixed)
        if origin == "oracle":
            return search.best(weights).threshold[:, None]
        found = torch.empty_like(weights)
        for fold in range(int(self.fold_of.max()) + 1):
            own = self.fold_of == fold
            found[:, own] = search.best(weights * ~own).threshold[:, None]
        return found

    def _judge(self, search: ThresholdSearch, origin: str, fixed: float = math.nan) -> _Judged:
        def resampled(weights: Tensor) -> Tensor:
            # a threshold that was fitted to the data is fitted anew to each resample
            return self._f1(self._right(search, self.thresholds(search, origin, weights, fixed)), weights)

        thresholds = self.thresholds(search, origin, fixed=fixed)
        (right,) = self._right(search, thresholds)
        f1, draws = float(self._f1(right, self.everything)), resampled(self.weights)
        result = ThresholdedResult(
            f1=f1,
            threshold=float(thresholds.mean()),
            correct_accuracy=float(right[~self.has_error].mean()),
            error_accuracy=float(right[self.has_error].mean()),
            right_answer_accuracy=float(right[self.right_answer_with_error].mean()),
            f1_interval=_interval(f1, draws, self.settings.confidence, oracle=origin == "oracle"),
        )
        return _Judged(result, draws if self.together is self.weights else resampled(self.together))

    def _right(self, search: ThresholdSearch, thresholds: Tensor) -> Tensor:
        """1 where a solution is judged right, else 0, float64, [R, n]; NaN where no other problem gave a threshold."""
        return torch.where(thresholds.isnan(), math.nan, search.right_at(thresholds).double())

    def _f1(self, right: Tensor, weights: Tensor) -> Tensor:
        accuracies = [(weights * of * right).sum(1) / (weights * of).sum(1) for of in (self.has_error, ~self.has_error)]
        return harmonic_mean(*accuracies)


def thresholds_of_solutions(
    name: str, solutions: Sequence[ScoredSolution], settings: JudgeSettings
) -> dict[str, dict[str, list[float]]]:
    """The threshold that judges each solution of a subset.

    Args:
        name: of the subset.
        solutions: all of the subset, in stable order.
        settings: as they were judged.

    Returns:
        Protocol to origin to one threshold per solution, NaN where there was no other problem to choose it on.
    """
    judge = _SubsetJudge(name, solutions, settings)
    chosen = {}
    for protocol in solutions[0].step_scores:
        scores = [one.step_scores[protocol] for one in solutions]
        search = ThresholdSearch(scores, judge.labels)
        chosen[protocol] = {
            origin: judge.thresholds(search, origin).expand(1, len(solutions))[0].tolist() for origin in CHOSEN
        }
        if (fixed := settings.fixed_for(protocol)) is not None:
            chosen[protocol][FIXED] = [fixed] * len(solutions)
    return chosen


def _interval(f1: float, draws: Tensor, confidence: float, *, oracle: bool) -> Interval:
    """The best of all thresholds is better on a resample than on the data, as it is there than on new problems."""
    return basic_interval(f1, draws, confidence) if oracle else percentile_interval(draws, confidence)


def _random_floor(f1: Mapping[str, Tensor]) -> RandomFloor:
    oracle, cross_fitted = f1["oracle"], f1["cross_fitted"]
    return RandomFloor(float(oracle.mean()), float(oracle.std()), float(cross_fitted.mean()), float(cross_fitted.std()))


def _results(judged: Mapping[str, _Judged]) -> dict[str, ThresholdedResult]:
    return {origin: one.result for origin, one in judged.items()}


def _judge_subset(judge: _SubsetJudge) -> _JudgedSubset:
    solutions, settings = judge.solutions, judge.settings
    protocols = {
        protocol: judge.by_origin([one.step_scores[protocol] for one in solutions], settings.fixed_for(protocol))
        for protocol in solutions[0].step_scores
    }
    longest_step = judge.by_origin([[-float(length) for length in one.step_lengths] for one in solutions])
    random_f1 = judge.random_floor([len(one.step_lengths) for one in solutions])
    problems = {one.resampled_as for one in solutions}
    report = SubsetReport(
        solutions=len(solutions),
        with_error=int(judge.has_error.sum()),
        right_answer_with_error=int(judge.right_answer_with_error.sum()),
        problems=len(problems),
        protocols={protocol: _results(judged) for protocol, judged in protocols.items()},
        random=_random_floor(random_f1),
        longest_step=_results(longest_step),
    )
    return _JudgedSubset(report, problems, protocols, longest_step, random_f1)


def _mean_over_subsets(parts: Sequence[Mapping[str, _Judged]], confidence: float) -> dict[str, ThresholdedResult]:
    averaged = {}
    for origin in parts[0]:
        results = [part[origin].result for part in parts]
        means = {name: sum(getattr(one, name) for one in results) / len(results) for name in _AVERAGED}
        draws = torch.stack([part[origin].draws for part in parts]).mean(0)
        averaged[origin] = ThresholdedResult(
            **means,
            threshold=results[0].threshold if origin == FIXED else math.nan,
            f1_interval=_interval(means["f1"], draws, confidence, oracle=origin == "oracle"),
        )
    return averaged


def _average(subsets: Sequence[_JudgedSubset], settings: JudgeSettings) -> SubsetReport:
    reports = [subset.report for subset in subsets]
    return SubsetReport(
        solutions=sum(report.solutions for report in reports),
        with_error=sum(report.with_error for report in reports),
        right_answer_with_error=sum(report.right_answer_with_error for report in reports),
        problems=len(set().union(*(subset.problems for subset in subsets))),
        protocols={
            protocol: _mean_over_subsets([subset.protocols[protocol] for subset in subsets], settings.confidence)
            for protocol in subsets[0].protocols
        },
        random=_random_floor(
            {origin: torch.stack([subset.random_f1[origin] for subset in subsets]).mean(0) for origin in CHOSEN}
        ),
        longest_step=_mean_over_subsets([subset.longest_step for subset in subsets], settings.confidence),
    )


def judge_solutions(solutions: Iterable[ScoredSolution], settings: JudgeSettings | None = None) -> StepF1Report:
    """Step F1 with floors and intervals; the order of the solutions does not matter.

    Args:
        solutions: what to judge.
        settings: how; the defaults of `JudgeSettings` if None.

    Raises:
        ValueError: no solutions, ids that occur twice in a subset, solutions with different protocols, a fixed
            threshold for a protocol that is not there, or a subset beside others that is named as their average.
    """
    settings = settings or JudgeSettings()
    judged = {name: _judge_subset(judge) for name, judge in _subset_judges(solutions, settings).items()}
    return StepF1Report(
        subsets={name: one.report for name, one in judged.items()},
        average=_average(list(judged.values()), settings),
        settings=settings,
    )


def f1_on_resamples(
    solutions: Iterable[ScoredSolution], settings: JudgeSettings, *, protocol: str, origin: str
) -> dict[str, Resampled]:
    """Step F1 of each subset on the data and on resamples of its problems; of several, their average too.

    Problems and settings alone decide the resamples: those of two models are the same, number by number, where both
    were judged on the same solutions.

    Args:
        solutions: what to judge, in any order.
        settings: how.
        protocol: of step scores.
        origin: of the threshold, `oracle` or `cross_fitted`; chosen anew on each resample.

    Raises:
        ValueError: as `judge_solutions`.
    """
    judges = _subset_judges(solutions, settings)
    found = {name: judge.resampled(protocol, origin) for name, judge in judges.items()}
    return found | ({AVERAGE: mean_of(list(found.values()))} if len(found) > 1 else {})


def _subset_judges(solutions: Iterable[ScoredSolution], settings: JudgeSettings) -> dict[str, _SubsetJudge]:
    ordered = in_stable_order(solutions)
    if not ordered:
        raise ValueError("no scored solutions to judge")
    protocols = set(ordered[0].step_scores)
    for solution in ordered:
        if set(solution.step_scores) != protocols:
            raise ValueError(
                f"solution {solution.id!r}: step_scores: expected the protocols {sorted(protocols)} of the first "
                f"solution, found {sorted(solution.step_scores)}"
            )
    if isinstance(settings.fixed_threshold, Mapping) and not set(settings.fixed_threshold) <= protocols:
        raise ValueError(
            f"fixed_threshold: expected some of {sorted(protocols)}, found {sorted(settings.fixed_threshold)}"
        )
    parts: dict[str, list[ScoredSolution]] = {}
    for solution in ordered:
        parts.setdefault(solution.subset, []).append(solution)
    if AVERAGE in parts and len(parts) > 1:
        raise ValueError(f"a subset is named {AVERAGE!r}, as the mean over subsets is: rename it")
    keys = {name: [one.resampled_as for one in part] for name, part in parts.items()}
    together = joint_bootstrap_weights(keys, resamples=settings.resamples, seed=settings.seed)
    return {name: _SubsetJudge(name, part, settings, together.get(name)) for name, part in parts.items()}
