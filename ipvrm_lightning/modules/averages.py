"""Weights averaged by Lightning's `WeightAveraging`: what is frozen stays as it is.

Lightning averages frozen weights as well. A sum of shares of equal weights is not always that weight again: off by
rounding in half precision, and in the bytes that hold weights in 4 bits another weight altogether. Validation would
judge these.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


def leave_frozen(trainer: Trainer) -> None:
    """Let the averages that callbacks have set up leave alone what does not change.

    Args:
        trainer: about to fit.
    """
    callbacks: list[Any] = getattr(trainer, "callbacks", [])
    for callback in callbacks:
        averages = callback._average_model if isinstance(callback, WeightAveraging) else None
        if averages is not None and averages.avg_fn is not None:
            averages.avg_fn = partial(_unless_equal, averages.avg_fn)


def _unless_equal(average: Callable[..., Tensor], averaged: Tensor, current: Tensor, count: Any) -> Tensor:
    return torch.where(averaged == current, averaged, average(averaged, current, count))
