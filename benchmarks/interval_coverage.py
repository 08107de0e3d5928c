"""How often the 95 % interval of an oracle F1 holds the best F1 of the population: percentiles, and mirrored ones.

    python benchmarks/interval_coverage.py       # two minutes on one core; no model

Solutions have 2 to 7 steps with normal scores; in half of them one step is wrong, and its score lower by `signal`. With
several solutions a problem, a problem's scores share a shift, and its solutions a rate of errors. The population is
20,000 solutions of the kind.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from measuring import versions
from numpy.random import Generator

from ipvrm_lightning.functional.threshold_search import ThresholdSearch
from ipvrm_lightning.metrics.resampling import basic_interval, bootstrap_weights, percentile_interval

#: Problems, solutions of each, data sets drawn.
SIZES = ((30, 1, 1000), (60, 1, 1000), (143, 1, 1000), (400, 1, 500), (36, 4, 1000), (100, 4, 500))
SIGNALS = (0.0, 1.0, 2.0)


class Drawn(NamedTuple):
    """Solutions: the problem of each, its first wrong step (-1 for none), and the scores of its steps."""

    problems: list[str]
    labels: list[int]
    scores: list[list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", default="outputs/benchmarks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "Share of data sets whose 95 % interval of the oracle F1 holds the population's best F1 (200 resamples).",
        "",
        "| problems | solutions of each | signal | population's best F1 | data sets | percentiles | mirrored |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for problems, each, count in SIZES:
        for signal in SIGNALS:
            best, percentiles, mirrored = coverage(problems, each, count, signal, arguments.seed)
            lines.append(
                f"| {problems} | {each} | {signal:g} | {best:.3f} | {count} | {percentiles:.1%} | {mirrored:.1%} |"
            )
            print(lines[-1], flush=True)
    lines += ["", f"`python benchmarks/interval_coverage.py --seed {arguments.seed}`; {versions()}"]
    out = Path(arguments.out) / "interval_coverage.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def coverage(problems: int, each: int, count: int, signal: float, seed: int) -> tuple[float, float, float]:
    """The population's best F1, and the shares of `count` data sets in which either interval holds it."""
    draws = np.random.default_rng(seed)
    population = search_of(draw(draws, 20_000 // each, each, signal))
    best = float(population.best(torch.ones(1, 20_000 // each * each, dtype=torch.float64)).f1)
    held = [0, 0]
    for number in range(count):
        drawn = draw(draws, problems, each, signal)
        search = search_of(drawn)
        estimate = float(search.best(torch.ones(1, len(drawn.labels), dtype=torch.float64)).f1)
        found = search.best(bootstrap_weights(drawn.problems, resamples=200, seed=number)).f1
        for kind, interval in enumerate((percentile_interval(found, 0.95), basic_interval(estimate, found, 0.95))):
            held[kind] += interval.low <= best <= interval.high
    return best, held[0] / count, held[1] / count


def draw(draws: Generator, problems: int, each: int, signal: float) -> Drawn:
    """Solutions of new problems."""
    drawn, shared = Drawn([], [], []), each > 1
    for problem in range(problems):
        shift = draws.normal() * shared
        errors = 1 / (1 + math.exp(-2 * draws.normal() * shared))
        for _ in range(each):
            steps = int(draws.integers(2, 8))
            label = int(draws.integers(0, steps)) if draws.random() < errors else -1
            scores = draws.normal(size=steps) + shift
            if label >= 0:
                scores[label] -= signal
            drawn.problems.append(f"p{problem}")
            drawn.labels.append(label)
            drawn.scores.append(scores.tolist())
    return drawn


def search_of(drawn: Drawn) -> ThresholdSearch:
    return ThresholdSearch(drawn.scores, drawn.labels)


if __name__ == "__main__":
    main()
