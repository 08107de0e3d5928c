"""Optimiser steps that a gradient which is not finite cannot spoil."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from ipvrm_lightning.models.sharding import is_sharded, whole
from ipvrm_lightning.modules.processes import Processes


def check_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Refuse an optimiser that cannot update its parameters; returns it.

    Raises:
        ValueError: one of bitsandbytes, on sharded parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if type(optimizer).__module__.startswith("bitsandbytes") and any(map(is_sharded, parameters)):
        raise ValueError(
            f"{type(optimizer).__name__} cannot update weights that are divided over processes:"
            " use torch.optim.AdamW, or train adapters (configs/strategy/lora.yaml)"
        )
    return optimizer


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Norm of all gradients, over all processes where they are sharded; the same on each.

    Args:
        parameters: all sharded or all whole; those without a gradient do not count.
    """
    return whole(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float, norm: Tensor) -> None:
    """Scale gradients down to a norm.

    Args:
        parameters: of the gradients.
        largest: norm that they may have.
        norm: that they have.
    """
    torch.nn.utils.clip_grads_with_norm_(list(parameters), largest, norm)


class GuardedUpdates:
    """Sums gradients over the processes, clips, steps; skips, counts and finally refuses those that are not finite.

    Args:
        max_in_a_row: updates in a row that may be skipped.
    """

    def __init__(self, max_in_a_row: int) -> None:
        self.max_in_a_row = max_in_a_row
        self.skipped = 0
        self.in_a_row = 0

    def step(
        self, optimizer: Any, parameters: dict[str, nn.Parameter], clip: float | None, processes: Processes
    ) -> Tensor:
        """Update parameters and clear their gradients.

        Args:
            optimizer: of these parameters.
            parameters: by name.
            clip: largest norm of the gradient, None for no limit.
            processes: of the run.

        Returns:
            The norm before clipping.

        Raises:
            FloatingPointError: too many updates in a row had a gradient that is not finite.
        """
        processes.add_gradients(parameters.values())
        norm = gradient_norm(parameters.values())
        if torch.isfinite(norm):
            if clip is not None:
                clip_gradients(parameters.values(), clip, norm)
            optimizer.step()
            self.in_a_row = 0
        else:
            self.skipped += 1
            self.in_a_row += 1
            rank_zero_warn(f"the norm of a gradient is {norm.item()}: update skipped")
            if self.in_a_row > self.max_in_a_row:
                raise FloatingPointError(f"{self.in_a_row} updates in a row had a gradient that is not finite")
        optimizer.zero_grad()
        return norm.detach()

    def state_dict(self) -> dict[str, int]:
        """Counts."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on counting."""
        self.skipped, self.in_a_row = int(state["skipped"]), int(state["in_a_row"])
