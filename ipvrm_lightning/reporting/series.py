"""The numbers behind the pictures: thresholds, reliability, values along solutions, curves of training."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipvrm_lightning.metrics.step_f1_report import StepF1Report
from ipvrm_lightning.metrics.token_file import TokenRecord
from ipvrm_lightning.types import ScoredSolution


@dataclass(frozen=True)
class ThresholdCurve:
    """Step F1 of one subset over all thresholds.

    Args:
        subset: its name.
        thresholds: from the lowest to the highest, one for each stretch in which F1 is constant.
        f1: at each, in [0, 1]; NaN where the subset has only right or only wrong solutions.
        chosen: origin to the threshold it chose and the F1 this gave.
    """

    subset: str
    thresholds: list[float]
    f1: list[float]
    chosen: dict[str, tuple[float, float]]


def threshold_curves(solutions: Sequence[ScoredSolution], report: StepF1Report, protocol: str) -> list[ThresholdCurve]:
    """One curve for each subset.

    Args:
        solutions: all that the report judges.
        report: their step F1.
        protocol: of the step scores.
    """
    from ipvrm_lightning.functional.threshold_search import ThresholdSearch

    curves = []
    for subset, part in report.subsets.items():
        own = [one for one in solutions if one.subset == subset]
        search = ThresholdSearch([one.step_scores[protocol] for one in own], [one.label for one in own])
        curve = search.curve()
        chosen = {origin: (result.threshold, result.f1) for origin, result in part.protocols[protocol].items()}
        curves.append(ThresholdCurve(subset, curve.threshold.tolist(), curve.f1.tolist(), chosen))
    return curves


@dataclass(frozen=True)
class ReliabilityLine:
    """A reliability diagram: in each bin the probability said, the share of right ends, and how many there are."""

    name: str
    said: list[float]
    right: list[float]
    counts: list[int]


def reliability_of_finals(solutions: Sequence[ScoredSolution], bins: int = 10) -> ReliabilityLine | None:
    """Reliability of the final values of solutions whose final answer was checked; None where there are none."""
    import torch

    from ipvrm_lightning.functional.calibration import reliability_bins

    pairs = [
        (one.final_value, float(one.final_answer_correct))
        for one in solutions
        if one.final_value is not None and one.final_answer_correct is not None
    ]
    if not pairs:
        return None
    values, outcomes = torch.tensor(pairs, dtype=torch.float64).T
    table = reliability_bins(values.sigmoid(), outcomes, bins)
    return ReliabilityLine(
        "final values of judged solutions", table.confidence.tolist(), table.accuracy.tolist(), table.counts.tolist()
    )


def probability(value: float) -> float:
    """Sigmoid of a logit."""
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


@dataclass(frozen=True)
class Spread:
    """Quartiles of probabilities at a place, and of how many solutions they are."""

    place: float
    low: float
    middle: float
    high: float
    count: int


def _spread(place: float, values: list[float]) -> Spread:
    ordered = sorted(values)

    def quantile(share: float) -> float:
        position = share * (len(ordered) - 1)
        below = math.floor(position)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (position - below) * (ordered[above] - ordered[below])

    return Spread(place, quantile(0.25), quantile(0.5), quantile(0.75), len(ordered))


def values_by_position(records: Sequence[TokenRecord], parts: int = 20) -> dict[str, list[Spread]]:
    """Probability of a right end by relative position, of solutions without and with a wrong step.

    Args:
        records: judged solutions with their tokens.
        parts: places, equally far apart; the last is the end.
    """
    groups = {
        "every step is right": [one for one in records if one.label < 0],
        "with a wrong step": [one for one in records if one.label >= 0],
    }
    return {
        name: [
            _spread(
                part / parts,
                [probability(one.values[max(1, part * len(one.values) // parts) - 1]) for one in group],
            )
            for part in range(1, parts + 1)
        ]
        for name, group in groups.items()
        if group
    }


def values_around_error(records: Sequence[TokenRecord], reach: int = 4) -> list[Spread]:
    """Probability of a right end after the steps around the labelled first wrong one.

    Args:
        records: judged solutions with their tokens; those without a wrong step are left out.
        reach: steps to each side.
    """
    found: dict[int, list[float]] = defaultdict(list)
    for record in records:
        if record.label >= 0:
            for step, value in step_end_values(record).items():
                found[step - record.label].append(probability(value))
    return [_spread(float(offset), found[offset]) for offset in range(-reach, reach + 1) if offset in found]


def step_end_values(record: TokenRecord) -> dict[int, float]:
    """Step to the value after its last token."""
    return {step: value for step, value in zip(record.step_ids, record.values, strict=True) if step >= 0}


Curve = tuple[list[float], list[float]]


def read_curves(path: str | Path) -> dict[str, Curve]:
    """Columns of a `metrics.csv`: optimiser steps and values where there is one.

    A last line without a line break is left out: a run that goes on, or was killed, may have written half of it.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no column `step`, or a cell that is not a number; names row and column.
    """
    curves: dict[str, Curve] = defaultdict(lambda: ([], []))
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(line for line in file if line.endswith(("\n", "\r")))
            if "step" not in (reader.fieldnames or ()):
                raise ValueError(f"{path}: step: missing column; found {list(reader.fieldnames or ())[:10]}")
            for number, row in enumerate(reader, 2):
                _add_row(curves, row, f"{path}, row {number}")
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a table ({error})") from None
    return dict(sorted(curves.items()))


def _add_row(curves: dict[str, Curve], row: Mapping[str | None, str | None], where: str) -> None:
    step = _number(row.get("step") or "", f"{where}: step")
    for name, cell in row.items():
        if name is None:
            raise ValueError(f"{where}: more cells than columns")
        if name not in ("step", "epoch") and cell:
            steps, values = curves[name]
            steps.append(step)
            values.append(_number(cell, f"{where}: {name}"))


def _number(cell: str, where: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"{where}: expected a number, found {cell!r:.60}") from None
