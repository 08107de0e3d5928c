"""Finding the first wrong step, and the score of doing so on ProcessBench (Zheng et al., arXiv:2412.06559).

The predicted first wrong step of a solution is the first whose score lies below a threshold, else -1. Step F1 is the
harmonic mean of two accuracies: on solutions that have a wrong step (found exactly), and on those that have none
(-1 predicted). Where one of the two classes is absent its accuracy and F1 are NaN, never 0 in silence.

All comparisons are made in float64, so that a threshold chosen here decides there exactly as it did here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ipvrm_lightning.functional.threshold_search import ThresholdSearch

Scores = Sequence[Sequence[float]] | Sequence[Tensor]


class StepF1Result(NamedTuple):
    """How well first wrong steps are found at a threshold.

    Args:
        f1: harmonic mean of the two accuracies; NaN where a class is absent.
        threshold: a step whose score lies below it is called wrong.
        correct_accuracy: share of solutions without a wrong step for which -1 is predicted; NaN where there is none.
        error_accuracy: share of solutions with a wrong step whose first is found; NaN where there is none.
    """

    f1: float
    threshold: float
    correct_accuracy: float
    error_accuracy: float


def first_error(scores: Sequence[float] | Tensor, threshold: float) -> int:
    """Index of the first score below the threshold, else -1.

    Args:
        scores: one per step, [S].
        threshold: compared in float64.
    """
    values = scores.tolist() if isinstance(scores, Tensor) else scores
    return next((step for step, score in enumerate(values) if float(score) < threshold), -1)


def step_f1_at(scores: Scores, labels: Sequence[int] | Tensor, threshold: float) -> StepF1Result:
    """Step F1 at a given threshold.

    Args:
        scores: one sequence of step scores per solution.
        labels: index of each solution's first wrong step, -1 where every step is right.
        threshold: a step whose score lies below it is called wrong.

    Raises:
        ValueError: no solutions, labels that do not fit their solution, scores that are not finite.
    """
    return _judged(*_checked(scores, labels), threshold)


def _judged(rows: list[Sequence[float]], truth: list[int], threshold: float) -> StepF1Result:
    judged = [(first_error(row, threshold) == label, label) for row, label in zip(rows, truth, strict=True)]
    correct_accuracy = _share([hit for hit, label in judged if label < 0])
    error_accuracy = _share([hit for hit, label in judged if label >= 0])
    total = correct_accuracy + error_accuracy
    f1 = 2 * correct_accuracy * error_accuracy / total if total != 0 else 0.0
    return StepF1Result(f1, float(threshold), correct_accuracy, error_accuracy)


def best_threshold(scores: Scores, labels: Sequence[int] | Tensor) -> StepF1Result:
    """The threshold with the highest step F1 of all there are, exactly: O(n log n) in all steps of all solutions.

    Accuracies change only at some of the scores (`threshold_search` says at which). The threshold returned lies midway
    between two such neighbours (on the upper one where no float lies between), below all of them at the lowest minus 1,
    above all at the highest plus 1 (the next larger float where adding 1 changes nothing).
    Of several optima the lowest is taken. Where a class is absent F1 is NaN and the accuracy of the other is optimised.

    Args:
        scores: one sequence of step scores per solution.
        labels: index of each solution's first wrong step, -1 where every step is right.

    Raises:
        ValueError: no solutions, labels that do not fit their solution, scores that are not finite.
    """
    rows, truth = _checked(scores, labels)
    once = torch.ones(1, len(rows), dtype=torch.float64)
    return _judged(rows, truth, ThresholdSearch(rows, truth).best(once).threshold.item())


def _checked(scores: Scores, labels: Sequence[int] | Tensor) -> tuple[list[Sequence[float]], list[int]]:
    """Scores and labels as plain numbers, refused where they do not fit each other."""
    rows = [row.tolist() if isinstance(row, Tensor) else row for row in scores]
    truth = labels.tolist() if isinstance(labels, Tensor) else list(labels)
    if len(rows) != len(truth):
        raise ValueError(f"{len(rows)} solutions for {len(truth)} labels")
    if not rows:
        raise ValueError("no solutions to judge")
    for number, (row, label) in enumerate(zip(rows, truth, strict=True)):
        if not -1 <= label < len(row) or label != int(label):
            raise ValueError(f"solution {number}: label {label} with {len(row)} steps")
        for step, score in enumerate(row):
            if not math.isfinite(score):
                raise ValueError(f"solution {number}: step {step} has score {score}")
    return rows, [int(label) for label in truth]


def _share(hits: list[bool]) -> float:
    return sum(hits) / len(hits) if hits else math.nan
