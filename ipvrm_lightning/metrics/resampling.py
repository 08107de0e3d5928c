"""Folds and bootstrap resamples that depend on keys and a seed alone, never on the order things arrived in."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Interval(NamedTuple):
    """A confidence interval; both ends NaN where it cannot be known."""

    low: float
    high: float


class Resampled(NamedTuple):
    """A number on the data, and on each resample of its problems or prompts, float64, [R]."""

    value: float
    draws: Tensor


def mean_of(parts: Sequence[Resampled]) -> Resampled:
    """The plain mean of numbers, on the data and on each resample."""
    return Resampled(
        math.fsum(part.value for part in parts) / len(parts), torch.stack([part.draws for part in parts]).mean(0)
    )


def stable_hash(text: str, seed: int = 0) -> int:
    """A 63-bit hash of a text and a seed, the same in every process and on every machine."""
    digest = hashlib.blake2b(f"{seed}:{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_of(names: Sequence[str], seed: int) -> int:
    """The seed of what is drawn for these names (subsets, sources, a prompt): others draw independently of them."""
    return stable_hash("\n".join(names), seed) % 2**32


def assign_folds(keys: Sequence[str], *, folds: int, seed: int) -> Tensor:
    """Deal keys out to folds of nearly equal size, equal keys to the same fold.

    Args:
        keys: one per item, such as its problem.
        folds: number of folds; with fewer distinct keys there are as many folds as keys.
        seed: decides which keys go together.

    Returns:
        Fold of each item, long, [n].
    """
    distinct = sorted(set(keys), key=lambda key: (stable_hash(key, seed), key))
    fold = {key: position % folds for position, key in enumerate(distinct)}
    return torch.tensor([fold[key] for key in keys], dtype=torch.long)


def bootstrap_weights(keys: Sequence[str], *, resamples: int, seed: int) -> Tensor:
    """How often each item occurs in each resample, when whole keys are drawn with replacement.

    Args:
        keys: one per item, such as its problem: items of one key are drawn together.
        resamples: number of resamples R.
        seed: of the draws.

    Returns:
        Counts, float64, [R, n].
    """
    position = {key: place for place, key in enumerate(sorted(set(keys)))}
    generator = torch.Generator().manual_seed(seed)
    count = len(position)
    drawn = torch.randint(count, (resamples, count), generator=generator)
    weights = torch.zeros(resamples, count, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones_like(drawn, dtype=torch.float64)
    )
    return weights[:, torch.tensor([position[key] for key in keys], dtype=torch.long)]


def joint_bootstrap_weights(keys: Mapping[str, Sequence[str]], *, resamples: int, seed: int) -> dict[str, Tensor]:
    """Resamples of several subsets at once, in which a key counts as often in each subset that has it.

    Keys are drawn among those that the same subsets have, so that every resample of a subset keeps its size. A subset
    that shares none would draw as it does alone, with `seed_of` its name, and is left out.

    Args:
        keys: subset to one key per item, the subsets in sorted order.
        resamples: number of resamples R.
        seed: of the draws.

    Returns:
        Subset to counts, float64, [R, n].
    """
    owners: dict[str, tuple[str, ...]] = {}
    for name, own in keys.items():
        for key in set(own):
            owners[key] = (*owners.get(key, ()), name)
    sharing = {name for names in owners.values() if len(names) > 1 for name in names}
    drawn: dict[str, Tensor] = {}
    for names in set(owners.values()):
        if sharing.isdisjoint(names):
            continue
        among = [key for key, those in owners.items() if those == names]
        weights = bootstrap_weights(among, resamples=resamples, seed=seed_of(names, seed))
        drawn |= dict(zip(among, weights.T, strict=True))
    return {name: torch.stack([drawn[key] for key in keys[name]], dim=1) for name in keys if name in sharing}


def percentile_interval(draws: Tensor, confidence: float) -> Interval:
    """The percentile bootstrap interval.

    Args:
        draws: the statistic on each resample, NaN where it was undefined (left out), [R].
        confidence: probability it should cover, such as 0.95.
    """
    known = draws[~draws.isnan()]
    if known.numel() < 2:
        return Interval(float("nan"), float("nan"))
    tail = (1 - confidence) / 2
    low, high = torch.quantile(known, torch.tensor([tail, 1 - tail], dtype=known.dtype)).tolist()
    return Interval(low, high)


def basic_interval(estimate: float, draws: Tensor, confidence: float) -> Interval:
    """The basic bootstrap interval of a share: percentiles mirrored at the estimate, within [0, 1].

    For a statistic that errs to one side, as the best of many does: its percentiles err twice, once on the data and
    once more on the resamples; mirrored, the second error takes the first one off (Davison & Hinkley 1997, Eq. 5.6).

    Args:
        estimate: the statistic on the data.
        draws: the same on each resample, NaN where it was undefined (left out), [R].
        confidence: probability it should cover, such as 0.95.
    """
    low, high = percentile_interval(draws, confidence)
    if math.isnan(low):
        return Interval(low, high)
    return Interval(max(0.0, 2 * estimate - high), min(1.0, 2 * estimate - low))
