"""Finding the first wrong step, and the score of doing so on ProcessBench (Zheng et al., arXiv:2412.06559).

The predicted first wrong step of a solution is the first whose score lies below a threshold, else -1. Step F1 is the
harmonic mean of two accuracies: on solutions that have a wrong step (found exactly), and on those that have none
(-1 predicted). Where one of the two classes is absent its accuracy and F1 are NaN, never 0 in silence.

All comparisons are made in float64, so that a threshold chosen here decides there exactly as it did here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

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


class _Flat(NamedTuple):
    """All steps of all solutions in a row: score, solution and number of each step; label of each solution."""

    scores: Tensor
    owners: Tensor
    numbers: Tensor
    labels: Tensor


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
    flat = _flatten(scores, labels)
    predictions = _predict(flat, threshold)
    right, wrong = flat.labels < 0, flat.labels >= 0
    hits = predictions == flat.labels
    return _result(
        int((hits & right).sum()), int((hits & wrong).sum()), int(right.sum()), int(wrong.sum()), float(threshold)
    )


def best_threshold(scores: Scores, labels: Sequence[int] | Tensor) -> StepF1Result:
    """The threshold with the highest step F1 of all there are, exactly: O(n log n) in all steps of all solutions.

    A solution whose first wrong step e has score v, and a as the least score before e (infinity for e = 0), is judged
    rightly for thresholds in (v, a]; one without a wrong step for thresholds up to its least score. So each solution
    changes the counts at most twice; the changes are sorted and summed.

    Counts are constant between two neighbouring changes, and the threshold returned lies midway between them (on the
    upper one where no float lies between). Below all changes it is the lowest minus 1, above all the highest plus 1
    (the next larger float where adding 1 changes nothing).
    Of several optima the lowest is taken. Where a class is absent F1 is NaN and the accuracy of the other is optimised.

    Args:
        scores: one sequence of step scores per solution.
        labels: index of each solution's first wrong step, -1 where every step is right.

    Raises:
        ValueError: no solutions, labels that do not fit their solution, scores that are not finite.
    """
    flat = _flatten(scores, labels)
    right, wrong = flat.labels < 0, flat.labels >= 0
    label_of_step = flat.labels[flat.owners]
    infinity = torch.full((len(flat.labels),), torch.inf, dtype=torch.float64)
    before = (label_of_step < 0) | (flat.numbers < label_of_step)
    least_before = infinity.scatter_reduce(0, flat.owners[before], flat.scores[before], "amin")
    at_label = flat.numbers == label_of_step
    own = infinity.scatter(0, flat.owners[at_label], flat.scores[at_label])
    findable = wrong & (own < least_before)

    gained, lost = own[findable], least_before[findable]
    lost = lost[lost.isfinite()]
    cleared = least_before[right]
    cleared = cleared[cleared.isfinite()]
    places = torch.cat((gained, lost, cleared))
    error_change = torch.cat((torch.ones_like(gained), -torch.ones_like(lost), torch.zeros_like(cleared)))
    correct_change = torch.cat((torch.zeros_like(gained), torch.zeros_like(lost), -torch.ones_like(cleared)))
    # State 0 lies below all changes, state k just above the k-th distinct place.
    distinct, inverse = torch.unique(places, return_inverse=True)
    zeros = torch.zeros(len(distinct) + 1, dtype=torch.float64)
    found = zeros.index_add(0, inverse + 1, error_change).cumsum(0)
    passed = int(right.sum()) + zeros.index_add(0, inverse + 1, correct_change).cumsum(0)
    best = _best_state(passed, found, int(right.sum()), int(wrong.sum()))
    return _result(
        int(passed[best]), int(found[best]), int(right.sum()), int(wrong.sum()), _threshold(distinct.tolist(), best)
    )


def _best_state(passed: Tensor, found: Tensor, right: int, wrong: int) -> int:
    if not right or not wrong:
        return int((found if wrong else passed).argmax())
    # F1 over the two accuracies as one fraction of whole numbers: equal values compare equal.
    product, total = passed * found, passed * wrong + found * right
    f1 = torch.where(total > 0, product / total.clamp_min(1), 0.0)
    return int((f1 == f1.max()).nonzero()[0])


def _threshold(places: list[float], state: int) -> float:
    if not places:
        return 0.0
    if state == 0:
        return places[0] - 1
    low = places[state - 1]
    if state == len(places):
        high = low + 1
        return high if high > low else math.nextafter(low, math.inf)
    middle = low / 2 + places[state] / 2
    return middle if low < middle <= places[state] else places[state]


def _predict(flat: _Flat, threshold: float) -> Tensor:
    none = int(flat.numbers.max()) + 1 if flat.numbers.numel() else 0
    below = flat.scores < threshold
    first = torch.full((len(flat.labels),), none, dtype=torch.long)
    first = first.scatter_reduce(0, flat.owners[below], flat.numbers[below], "amin")
    return torch.where(first == none, -1, first)


def _result(passed: int, found: int, right: int, wrong: int, threshold: float) -> StepF1Result:
    correct_accuracy = passed / right if right else float("nan")
    error_accuracy = found / wrong if wrong else float("nan")
    total = correct_accuracy + error_accuracy
    f1 = 2 * correct_accuracy * error_accuracy / total if total != 0 else 0.0
    return StepF1Result(f1, threshold, correct_accuracy, error_accuracy)


def _flatten(scores: Scores, labels: Sequence[int] | Tensor) -> _Flat:
    label_tensor = torch.as_tensor(labels, dtype=torch.long).cpu()
    if len(scores) != len(label_tensor):
        raise ValueError(f"{len(scores)} solutions for {len(label_tensor)} labels")
    if not len(scores):
        raise ValueError("no solutions to judge")
    rows = [row.tolist() if isinstance(row, Tensor) else row for row in scores]
    lengths = torch.tensor([len(row) for row in rows])
    flat = torch.tensor(list(chain.from_iterable(rows)), dtype=torch.float64)
    owners = torch.repeat_interleave(torch.arange(len(rows)), lengths)
    numbers = torch.arange(len(flat)) - (lengths.cumsum(0) - lengths)[owners]
    misfits = (label_tensor < -1) | (label_tensor >= lengths)
    if bool(misfits.any()):
        row = int(misfits.nonzero()[0])
        raise ValueError(f"solution {row}: label {int(label_tensor[row])} with {int(lengths[row])} steps")
    if not bool(flat.isfinite().all()):
        place = int((~flat.isfinite()).nonzero()[0])
        raise ValueError(f"solution {int(owners[place])}: step {int(numbers[place])} has score {flat[place].item()}")
    return _Flat(flat, owners, numbers, label_tensor)
