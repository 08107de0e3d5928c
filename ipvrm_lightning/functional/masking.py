"""Precision, masks, and statistics over the positions or the groups that count.

Masks are boolean and True means "counts". Values where a mask is False never enter a result or a gradient, not even
when they are NaN or infinite: they are replaced (`torch.where`), never multiplied by zero.

Letters: B sequences, T response positions, K candidates per position, N numbers in any order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EPSILON = 1e-6
"""Smallest standard deviation anything is divided by, and distance kept from probabilities 0 and 1."""


class GroupMoments(NamedTuple):
    """Moments of the numbers of each group, handed back to every member.

    Args:
        mean: mean of the member's group, [N].
        std: population standard deviation of the member's group, [N].
    """

    mean: Tensor
    std: Tensor


def widen(values: Tensor) -> Tensor:
    """The same numbers in float32, or in float64 where they already are."""
    return values if values.dtype in (torch.float32, torch.float64) else values.to(torch.float32)


def check_mask(mask: Tensor, like: Tensor, name: str = "mask") -> None:
    """Refuse a mask that is not boolean or not shaped like the values it belongs to.

    Args:
        mask: True where a position counts, bool.
        like: the values the mask belongs to.
        name: what to call the mask in the error.

    Raises:
        ValueError: the mask is not boolean, or the shapes differ.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"{name} must be boolean, found {mask.dtype}")
    if mask.shape != like.shape:
        raise ValueError(f"{name} has shape {tuple(mask.shape)}, its values have {tuple(like.shape)}")


def check_outcomes(outcomes: Tensor, count: int | None = None) -> Tensor:
    """Outcomes as float32 or wider, refused where they are not a vector of zeros and ones.

    Args:
        outcomes: 1 right, 0 wrong, [N].
        count: how many there must be.

    Raises:
        ValueError: not one-dimensional, not `count` long, or something other than 0 and 1 among them.
    """
    if outcomes.dim() != 1:
        raise ValueError(f"outcomes must be one-dimensional, found shape {tuple(outcomes.shape)}")
    if count is not None and outcomes.shape[0] != count:
        raise ValueError(f"{outcomes.shape[0]} outcomes for {count} sequences")
    strange = (outcomes != 0) & (outcomes != 1)
    if bool(strange.any()):
        raise ValueError(f"outcomes must be 0 or 1, found {outcomes[strange][0].item()}")
    return widen(outcomes)


def check_groups(group_ids: Tensor, count: int) -> None:
    """Refuse group ids that are not one integer per sequence.

    Args:
        group_ids: equal for rollouts of the same prompt, integer, [N].
        count: how many there must be.

    Raises:
        ValueError: another shape, or not integers.
    """
    if group_ids.shape != (count,):
        raise ValueError(f"group_ids has shape {tuple(group_ids.shape)}, expected ({count},)")
    if group_ids.is_floating_point() or group_ids.dtype == torch.bool:
        raise ValueError(f"group_ids must be integers, found {group_ids.dtype}")


def keep(values: Tensor, mask: Tensor) -> Tensor:
    """Values where the mask is True and zero elsewhere; nothing flows from or to the rest."""
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))


def position_numbers(mask: Tensor) -> Tensor:
    """Number of each response position within its sequence, counted from 1; 0 where the mask is False.

    Args:
        mask: True at response positions, bool, [B, T].

    Returns:
        t of the formulas, long, [B, T].
    """
    return torch.where(mask, mask.long().cumsum(-1), 0)


def last_positions(mask: Tensor) -> Tensor:
    """True at the last response position of each sequence (its end-of-turn token) and nowhere else, [B, T]."""
    numbers = position_numbers(mask)
    return mask & (numbers == mask.long().sum(-1, keepdim=True))


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean over the positions that count: all of them, or along one dimension; 0 where none counts.

    Args:
        values: anything, [...].
        mask: True where a position counts, bool, [...].
        dim: the dimension to reduce, or None for all.
    """
    return keep(values, mask).sum(dim) / mask.sum(dim).clamp_min(1)


def masked_std(values: Tensor, mask: Tensor, *, correction: int = 0) -> Tensor:
    """Standard deviation over all positions that count.

    Args:
        values: anything, [...].
        mask: True where a position counts, bool, [...].
        correction: 0 for the population's, 1 for the sample's (Bessel).
    """
    squares = keep(values - masked_mean(values, mask), mask).square()
    return (squares.sum() / (mask.sum() - correction).clamp_min(1)).sqrt()


@torch.no_grad()
def group_moments(values: Tensor, group_ids: Tensor, weights: Tensor | None = None) -> GroupMoments:
    """Mean and population standard deviation within each group, in two passes, without a gradient.

    Args:
        values: the numbers, [N].
        group_ids: which group each belongs to, integer, [N].
        weights: how many times each number counts, [N]; once where None.

    Returns:
        The moments of each number's own group, [N] each.
    """
    _, inverse = torch.unique(group_ids, return_inverse=True)
    ones = torch.ones_like(values) if weights is None else weights.to(values.dtype)
    groups = int(inverse.max()) + 1 if inverse.numel() else 0

    def total(numbers: Tensor) -> Tensor:
        return numbers.new_zeros(groups).index_add_(0, inverse, numbers)[inverse]

    count = total(ones).clamp_min(1)
    mean = total(values * ones) / count
    std = (total((values - mean).square() * ones) / count).sqrt()
    return GroupMoments(mean, std)
