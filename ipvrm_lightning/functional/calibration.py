"""Do the values mean what they say? Calibration, ranking and correlation, all in float64 and exact under ties.

Letters: N predictions, p predicted probability, o outcome (1 right, 0 wrong), R bins.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ipvrm_lightning.functional.masking import check_outcomes


class ReliabilityBins(NamedTuple):
    """Predictions sorted into bins of equal width over [0, 1].

    Args:
        edges: bounds of the bins, [R + 1].
        counts: predictions in each bin, long, [R].
        confidence: mean predicted probability in each bin, NaN where it is empty, [R].
        accuracy: mean outcome in each bin, NaN where it is empty, [R].
    """

    edges: Tensor
    counts: Tensor
    confidence: Tensor
    accuracy: Tensor


@torch.no_grad()
def brier_score(probabilities: Tensor, outcomes: Tensor) -> float:
    """Mean of (p - o)^2; 0 is perfect, 0.25 is what always saying one half gets.

    Args:
        probabilities: p, [N].
        outcomes: o, or a true probability where it is known, in [0, 1], [N].

    Raises:
        ValueError: no predictions, shapes that differ, or anything outside [0, 1].
    """
    predicted, truth = _unit_pair(probabilities, outcomes)
    return float((predicted - truth).square().mean())


@torch.no_grad()
def reliability_bins(probabilities: Tensor, outcomes: Tensor, bins: int = 10) -> ReliabilityBins:
    """Mean prediction and mean outcome in R bins [k/R, (k+1)/R), the last closed on the right.

    Args:
        probabilities: p, [N].
        outcomes: o, in [0, 1], [N].
        bins: R.

    Raises:
        ValueError: no predictions, shapes that differ, anything outside [0, 1], or no bins.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, found {bins}")
    predicted, truth = _unit_pair(probabilities, outcomes)
    index = (predicted * bins).long().clamp_max(bins - 1)
    counts = torch.bincount(index, minlength=bins)
    zeros = torch.zeros(bins, dtype=torch.float64, device=predicted.device)
    confidence = zeros.index_add(0, index, predicted) / counts
    accuracy = zeros.index_add(0, index, truth) / counts
    edges = torch.arange(bins + 1, dtype=torch.float64, device=predicted.device) / bins
    return ReliabilityBins(edges, counts, confidence, accuracy)


@torch.no_grad()
def expected_calibration_error(probabilities: Tensor, outcomes: Tensor, bins: int = 10) -> float:
    """Sum over bins of (share of predictions in the bin) * |mean prediction - mean outcome|.

    Args:
        probabilities: p, [N].
        outcomes: o, in [0, 1], [N].
        bins: number of bins of equal width.

    Raises:
        ValueError: no predictions, shapes that differ, anything outside [0, 1], or no bins.
    """
    table = reliability_bins(probabilities, outcomes, bins)
    filled = table.counts > 0
    gaps = (table.confidence - table.accuracy)[filled].abs()
    return float((gaps * table.counts[filled]).sum() / table.counts.sum())


@torch.no_grad()
def auroc(scores: Tensor, outcomes: Tensor) -> float:
    """Probability that a right one scores above a wrong one, ties counting half (Mann-Whitney), in O(N log N).

    Args:
        scores: any numbers, the higher the likelier right, [N].
        outcomes: 1 right, 0 wrong, [N].

    Returns:
        A number in [0, 1]; NaN where one of the two classes is absent.

    Raises:
        ValueError: shapes that differ, NaN among the scores, or outcomes that are not 0 or 1.
    """
    right = check_outcomes(outcomes, len(scores)).double()
    positives = right.sum()
    pairs = positives * (len(right) - positives)
    wins = (ranks(scores) * right).sum() - positives * (positives + 1) / 2
    return float(wins / pairs)  # 0 / 0 where a class is absent


@torch.no_grad()
def ranks(values: Tensor) -> Tensor:
    """Rank of each number from 1, equal numbers sharing the mean of theirs, float64, [N].

    Args:
        values: any numbers, [N].

    Raises:
        ValueError: not one-dimensional, or NaN among them.
    """
    if values.dim() != 1:
        raise ValueError(f"expected one dimension, found shape {tuple(values.shape)}")
    if bool(values.isnan().any()):
        raise ValueError(f"value {int(values.isnan().nonzero()[0])} is NaN")
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    upper = counts.cumsum(0).double()
    return (upper - (counts.double() - 1) / 2)[inverse]


@torch.no_grad()
def pearson_correlation(first: Tensor, second: Tensor) -> float:
    """Linear correlation; NaN where either side is constant or there are fewer than two pairs.

    Args:
        first: any numbers, [N].
        second: any numbers, [N].

    Raises:
        ValueError: shapes that differ or are not one-dimensional.
    """
    if first.shape != second.shape or first.dim() != 1:
        raise ValueError(f"shapes {tuple(first.shape)} and {tuple(second.shape)} must be equal and one-dimensional")
    if len(first) < 2 or bool((first == first[0]).all()) or bool((second == second[0]).all()):
        return float("nan")
    x, y = first.double(), second.double()
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x.norm() * y.norm()))


@torch.no_grad()
def spearman_correlation(first: Tensor, second: Tensor) -> float:
    """Correlation of ranks, ties sharing theirs; NaN where either side is constant.

    Args:
        first: any numbers, [N].
        second: any numbers, [N].

    Raises:
        ValueError: shapes that differ or are not one-dimensional, or NaN among the numbers.
    """
    if first.shape != second.shape:
        raise ValueError(f"shapes {tuple(first.shape)} and {tuple(second.shape)} differ")
    return pearson_correlation(ranks(first), ranks(second))


def _unit_pair(probabilities: Tensor, outcomes: Tensor) -> tuple[Tensor, Tensor]:
    if probabilities.shape != outcomes.shape or probabilities.dim() != 1:
        raise ValueError(
            f"probabilities {tuple(probabilities.shape)} and outcomes {tuple(outcomes.shape)} must be equal and [N]"
        )
    if not len(probabilities):
        raise ValueError("no predictions to judge")
    pair = probabilities.double(), outcomes.double()
    for name, values in zip(("probabilities", "outcomes"), pair, strict=True):
        strange = ~((values >= 0) & (values <= 1))
        if bool(strange.any()):
            raise ValueError(f"{name} must lie in [0, 1], found {values[strange][0].item()}")
    return pair
