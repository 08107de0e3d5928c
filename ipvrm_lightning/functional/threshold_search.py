"""The exact best threshold of step F1, for any number of weightings of the same solutions at once.

A solution is judged right for exactly one interval of thresholds t, because the first step below t moves forward only
as t grows: label -1 is predicted for t <= min(scores); label k for scores[k] < t <= min(scores[:k]). Once the ends of
these intervals are sorted, in O(n log n), the accuracies at every threshold are cumulative sums, for any weights: ones,
folds of problems, bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class ThresholdChoice(NamedTuple):
    """The best threshold of each weighting.

    Args:
        f1: NaN where a class has no weight, float64, [R].
        threshold: NaN where nothing has weight, float64, [R].
    """

    f1: Tensor
    threshold: Tensor


class ThresholdSearch:
    """Finds best thresholds under weights.

    Args:
        scores: one list of step scores per solution, higher is better.
        labels: index of the first wrong step of each, -1 for none.
    """

    def __init__(self, scores: Sequence[Sequence[float]], labels: Sequence[int]) -> None:
        bounds = [_right_for(row, label) for row, label in zip(scores, labels, strict=True)]
        self.low, self.high = torch.tensor(bounds, dtype=torch.float64).reshape(-1, 2).T.contiguous()
        self.has_error = torch.tensor([label >= 0 for label in labels])
        possible = self.low < self.high
        ends = torch.cat((self.low[possible], self.high[possible]))
        self.ends = ends[ends.isfinite()].unique()
        # segment j holds the thresholds with ends[j - 1] < t <= ends[j]
        first = torch.where(self.low.isinf(), 0, torch.searchsorted(self.ends, self.low) + 1)
        last = torch.searchsorted(self.ends, self.high)
        self.first, self.last = first[possible], last[possible]
        self.possible = possible

    def right_at(self, thresholds: Tensor) -> Tensor:
        """Whether the first step below each solution's own threshold is its first wrong one.

        Args:
            thresholds: one for all or one per solution, float64, [1] or [n].

        Returns:
            Boolean, [n].
        """
        return (self.low < thresholds) & (thresholds <= self.high)

    def best(self, weights: Tensor) -> ThresholdChoice:
        """The threshold with the highest weighted step F1.

        It is the lowest of several optima; where a class has no weight, what is best for the other. What has no weight
        decides nothing: a threshold lies midway between two scores of solutions that have some.

        Args:
            weights: of each solution in each weighting, whole numbers, float64, [R, n].
        """
        found, wrong = self._right(weights * self.has_error)
        passed, right = self._right(weights * ~self.has_error)
        product, total = passed * found, passed * wrong + found * right
        # whole numbers: equal F1 compares equal
        f1 = torch.where(total > 0, product / total.clamp_min(1), 0.0)
        goal = torch.where(wrong == 0, passed, torch.where(right == 0, found, f1))
        segment = goal.argmax(dim=1, keepdim=True)
        best_f1 = harmonic_mean(passed.gather(1, segment) / right, found.gather(1, segment) / wrong)
        # the first of the best segments lies above an end that has weight; the stretch goes on to the next such end
        numbers = torch.arange(self.ends.numel() + 1).expand(len(weights), -1)
        later = torch.where(self._weighted_ends(weights) & (numbers >= segment), numbers, self.ends.numel())
        threshold = self._middles(segment - 1, later.amin(1, keepdim=True))
        return ThresholdChoice(best_f1[:, 0], torch.where(wrong + right > 0, threshold, math.nan)[:, 0])

    def curve(self) -> ThresholdChoice:
        """Step F1 as a function of the threshold, every solution counting once.

        It is constant between neighbouring scores that matter, so one threshold of each stretch says all.

        Returns:
            Thresholds from the lowest to the highest, and the F1 at each, [segments] both.
        """
        once = torch.ones(1, len(self.has_error), dtype=torch.float64)
        found, wrong = self._right(once * self.has_error)
        passed, right = self._right(once * ~self.has_error)
        above = torch.arange(self.ends.numel() + 1)
        return ThresholdChoice(harmonic_mean(passed / right, found / wrong)[0], self._middles(above - 1, above))

    def _right(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weight judged right in each segment [R, segments], and weight in all [R, 1]."""
        hits = weights[:, self.possible]
        change = torch.zeros(len(weights), self.ends.numel() + 2, dtype=torch.float64)
        change.index_add_(1, self.first, hits)
        change.index_add_(1, self.last + 1, -hits)
        return change.cumsum(1)[:, :-1], weights.sum(1, keepdim=True)

    def _weighted_ends(self, weights: Tensor) -> Tensor:
        """Which ends belong to a solution with weight, [R, ends + 1]; the last column stands for infinity."""
        hits = weights[:, self.possible]
        weight = torch.zeros(len(weights), self.ends.numel() + 2, dtype=torch.float64)
        weight.index_add_(1, self.first, hits)
        weight.index_add_(1, self.last + 1, hits)
        return weight[:, 1:] > 0

    def _middles(self, below: Tensor, above: Tensor) -> Tensor:
        """A threshold between the ends of two numbers, -1 for none below and the number of ends for none above."""
        ends = torch.cat((self.ends.new_tensor([-math.inf]), self.ends, self.ends.new_tensor([math.inf])))
        low, high = ends[below + 1], ends[above + 1]
        middle = low / 2 + high / 2
        # the middle of two neighbouring floats may round down to the lower one, which is outside
        middle = torch.where(middle > low, middle, high)
        highest = torch.maximum(low + 1, torch.nextafter(low, torch.full_like(low, math.inf)))
        unbounded = torch.where(low.isinf(), 0.0, highest)
        return torch.where(high.isinf(), unbounded, torch.where(low.isinf(), high - 1, middle))


def _right_for(scores: Sequence[float], label: int) -> tuple[float, float]:
    if label < 0:
        return -math.inf, min(scores, default=math.inf)
    return scores[label], min(scores[:label], default=math.inf)


def harmonic_mean(first: Tensor, second: Tensor) -> Tensor:
    """2ab / (a + b), 0 where both are 0, NaN where either is."""
    total = first + second
    return torch.where(total == 0, 0.0, 2 * first * second / total)
