"""How often a 95 % interval of step F1, or of the difference between two models, holds what it is an interval of.

    python benchmarks/interval_coverage.py       # twenty minutes on one core; no model

Solutions have 2 to 7 steps with normal scores; in half of them one step is wrong, and its score lower by `signal`. With
several solutions a problem, a problem's scores share a shift, and its solutions a rate of errors. A second model's
scores share 0.7 of the variance with those of the first, and its signal is larger by a half.

What an interval is to hold: with the oracle threshold the best F1 of a population of 20,000 solutions of the kind, with
cross-fitted ones the mean F1 over all data sets of the size; of two models, the difference of these.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from measuring import versions
from numpy.random import Generator

from ipvrm_lightning.functional.threshold_search import ThresholdSearch, harmonic_mean
from ipvrm_lightning.metrics.resampling import Interval, basic_interval, bootstrap_weights, percentile_interval, seed_of
from ipvrm_lightning.metrics.score_file import in_stable_order
from ipvrm_lightning.metrics.step_f1_judge import f1_on_resamples, thresholds_of_solutions
from ipvrm_lightning.metrics.step_f1_report import JudgeSettings
from ipvrm_lightning.types import ScoredSolution

#: Problems, solutions of each.
SIZES = ((30, 1), (60, 1), (143, 1), (400, 1), (36, 4), (100, 4))
SIGNALS = (0.0, 1.0, 2.0)
SHARED, LARGER = 0.7, 0.5
#: What is told of each kind of data: a number, and ways to its interval; marked are those that the package takes.
COLUMNS = (
    "oracle: percentiles", "oracle: mirrored *", "cross-fitted: thresholds kept", "cross-fitted: chosen anew *",
    "difference, oracle: percentiles *", "difference, oracle: mirrored", "difference, cross-fitted: kept",
    "difference, cross-fitted: anew *",
)  # fmt: skip


class Found(NamedTuple):
    """Of one data set: the estimate, and its interval."""

    estimate: float
    interval: Interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--data-sets", type=int, default=200, help="of each kind")
    parser.add_argument("--out", default="outputs/benchmarks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        f"Share of {arguments.data_sets} data sets whose 95 % interval (200 resamples) holds what it should; * marks"
        " what the package reports.",
        "",
        f"| problems | solutions of each | signal | {' | '.join(COLUMNS)} |",
        f"| {' | '.join(['---'] * (3 + len(COLUMNS)))} |",
    ]
    for problems, each in SIZES:
        for signal in SIGNALS:
            held = coverage(problems, each, arguments.data_sets, signal, arguments.seed)
            shares = " | ".join(f"{share:.1%}" for share in held)
            lines.append(f"| {problems} | {each} | {signal:g} | {shares} |")
            print(lines[-1], flush=True)
    command = f"python benchmarks/interval_coverage.py --seed {arguments.seed} --data-sets {arguments.data_sets}"
    lines += ["", f"`{command}`; {versions()}"]
    out = Path(arguments.out) / "interval_coverage.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def coverage(problems: int, each: int, count: int, signal: float, seed: int) -> list[float]:
    """The share of `count` data sets in which each of the `COLUMNS` holds what it should."""
    draws = np.random.default_rng(seed)
    population = draw(draws, 20_000 // each, each, signal)
    labels = [one.label for one in population]
    searches = [ThresholdSearch([one.step_scores[name] for one in population], labels) for name in ("one", "two")]
    one, two = (float(search.best(torch.ones(1, len(labels), dtype=torch.float64)).f1) for search in searches)
    found = [list(intervals(draw(draws, problems, each, signal), number)) for number in range(count)]
    means = [sum(column.estimate for column in columns) / count for columns in zip(*found, strict=True)]
    wanted = [one, one, *means[2:4], two - one, two - one, *means[6:]]
    return [
        sum(column.interval.low <= goal <= column.interval.high for column in columns) / count
        for goal, columns in zip(wanted, zip(*found, strict=True), strict=True)
    ]


def intervals(solutions: list[ScoredSolution], number: int) -> Iterator[Found]:
    """What each of the `COLUMNS` says of a data set."""
    settings = JudgeSettings(seed=number)

    def judged(name: str, origin: str) -> tuple[float, torch.Tensor]:
        found = f1_on_resamples(solutions, settings, protocol=name, origin=origin)["only"]
        return found.value, found.draws

    (best, best_draws), (other_best, other_best_draws) = judged("one", "oracle"), judged("two", "oracle")
    (fair, fair_draws), (other, other_draws) = judged("one", "cross_fitted"), judged("two", "cross_fitted")
    kept, other_kept = (at_kept_thresholds(solutions, settings, name) for name in ("one", "two"))
    yield Found(best, percentile_interval(best_draws, 0.95))
    yield Found(best, basic_interval(best, best_draws, 0.95))
    yield Found(fair, percentile_interval(kept, 0.95))
    yield Found(fair, percentile_interval(fair_draws, 0.95))
    difference, low, high = other_best - best, *percentile_interval(other_best_draws - best_draws, 0.95)
    yield Found(difference, Interval(low, high))
    yield Found(difference, Interval(2 * difference - high, 2 * difference - low))
    yield Found(other - fair, percentile_interval(other_kept - kept, 0.95))
    yield Found(other - fair, percentile_interval(other_draws - fair_draws, 0.95))


def at_kept_thresholds(solutions: list[ScoredSolution], settings: JudgeSettings, name: str) -> torch.Tensor:
    """F1 on each resample at the cross-fitted thresholds of the data, [R]."""
    ordered = in_stable_order(solutions)
    search = ThresholdSearch([one.step_scores[name] for one in ordered], [one.label for one in ordered])
    thresholds = thresholds_of_solutions("only", ordered, settings)[name]["cross_fitted"]
    right = search.right_at(torch.tensor(thresholds, dtype=torch.float64)).double()
    seed = seed_of(("only",), settings.seed)
    weights = bootstrap_weights([one.problem for one in ordered], resamples=settings.resamples, seed=seed)
    parts = [weights * of for of in (search.has_error, ~search.has_error)]
    return harmonic_mean(*((part * right).sum(1) / part.sum(1) for part in parts))


def draw(draws: Generator, problems: int, each: int, signal: float) -> list[ScoredSolution]:
    """Solutions of new problems, scored by both models."""
    drawn, shared = [], each > 1
    for problem in range(problems):
        shift = draws.normal() * shared
        errors = 1 / (1 + math.exp(-2 * draws.normal() * shared))
        for number in range(each):
            steps = int(draws.integers(2, 8))
            label = int(draws.integers(0, steps)) if draws.random() < errors else -1
            noise = draws.normal(size=steps)
            others = math.sqrt(SHARED) * noise + math.sqrt(1 - SHARED) * draws.normal(size=steps)
            lower = np.arange(steps) == label
            scores = {"one": noise + shift - signal * lower, "two": others + shift - (signal + LARGER) * lower}
            drawn.append(
                ScoredSolution(
                    id=f"{problem}-{number}",
                    subset="only",
                    problem=f"p{problem}",
                    label=label,
                    step_scores={name: values.tolist() for name, values in scores.items()},
                    step_lengths=[1] * steps,
                )
            )
    return drawn


if __name__ == "__main__":
    main()
