"""Random right-padded batches, and what padding and permuting do to them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Case(NamedTuple):
    ratios: Tensor
    mask: Tensor
    outcomes: Tensor
    groups: Tensor


def random_case(seed: int = 0, rows: int = 6, length: int = 7) -> Case:
    generator = torch.Generator().manual_seed(seed)
    ratios = torch.randn(rows, length, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, length + 1, (rows,), generator=generator)
    lengths[0], lengths[1] = length, 1
    mask = torch.arange(length) < lengths.unsqueeze(-1)
    outcomes = (torch.arange(rows) % 3 == 0).double()
    return Case(ratios, mask, outcomes, torch.arange(rows) // 3)


def padded(values: Tensor, mask: Tensor, extra: int = 3, fill: float = float("nan")) -> tuple[Tensor, Tensor]:
    """The batch with more columns, and `fill` wherever the mask is False."""
    spread = mask if values.dim() == 2 else mask.unsqueeze(-1)
    dirty = torch.where(spread, values, fill)
    width = (0, extra) if values.dim() == 2 else (0, 0, 0, extra)
    return torch.nn.functional.pad(dirty, width, value=fill), torch.nn.functional.pad(mask, (0, extra))
