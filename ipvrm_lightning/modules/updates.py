"""Optimiser steps that a number which is not finite cannot spoil: skipped and counted, or the end of the run.

Every process decides alike, because each looks at the numbers of all: one that stopped alone would leave the others
waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from ipvrm_lightning.data.dataset import TrajectoryDataset
from ipvrm_lightning.models.sharding import is_sharded, whole
from ipvrm_lightning.modules.processes import Processes

_NAMED = 8

#: Losses of micro-batches, each with the rows [B] of the data set it was made of.
LossOfRows = tuple[Tensor, Tensor]
LossesOfRows = Sequence[LossOfRows]
#: From a model and a micro-batch to its share of the loss, with gradient, and its rows.
LossOf = Callable[[Any, Any], LossOfRows]


def check_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Refuse an optimiser that cannot update its parameters, warn of weights that round small updates away; returns it.

    Raises:
        ValueError: one of bitsandbytes, on sharded parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if type(optimizer).__module__.startswith("bitsandbytes") and any(map(is_sharded, parameters)):
        raise ValueError(
            f"{type(optimizer).__name__} cannot update weights that are divided over processes:"
            " use torch.optim.AdamW, or train adapters (configs/strategy/lora.yaml)"
        )
    halves = [p.dtype for p in parameters if p.dtype in (torch.bfloat16, torch.float16)]
    if halves:
        rank_zero_warn(
            f"weights in {halves[0]} are trained: small updates are lost to rounding (in bfloat16 at a learning rate of"
            " 2e-6, nearly all of them); give dtype float32 with trainer.precision bf16-mixed, or lora"
        )
    return optimizer


def check_clip(name: str, largest: float | None) -> None:
    """Refuse a norm that would scale every gradient to nothing, or turn it round.

    Args:
        name: of the setting.
        largest: norm of the gradient, None for no limit.

    Raises:
        ValueError: names the setting.
    """
    if largest is not None and not largest > 0:
        raise ValueError(f"{name} must be above 0, or null for no limit, not {largest}")


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Norm of all gradients, over all processes where they are sharded; the same on each.

    Args:
        parameters: all sharded or all whole; those without a gradient do not count.
    """
    return whole(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


class GuardedUpdates:
    """Clips and steps; skips and counts updates that are not finite, of which too many in a row end the run.

    Args:
        max_in_a_row: updates in a row that may be left out; 0 ends the run at the first.
    """

    def __init__(self, max_in_a_row: int) -> None:
        self.max_in_a_row = max_in_a_row
        self.skipped = 0
        self.in_a_row = 0

    def step(
        self,
        optimizer: Any,
        parameters: Sequence[nn.Parameter],
        clip: float | None,
        processes: Processes,
        losses: LossesOfRows = (),
        dataset: TrajectoryDataset | None = None,
        *,
        where: str = "",
    ) -> Tensor:
        """Update parameters and clear their gradients.

        Args:
            optimizer: of these parameters.
            parameters: their gradients are summed over the processes already.
            clip: largest norm of the gradient, None for no limit.
            processes: of the run.
            losses: that the gradients are of, to name their rows where one is not finite.
            dataset: names the rows.
            where: begins what is said of an update that is skipped.

        Returns:
            The norm before clipping.

        Raises:
            FloatingPointError: too many updates in a row were not finite.
        """
        norm = gradient_norm(parameters)
        reason = problem(norm, losses, dataset, processes)
        if reason is None:
            if clip is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
            optimizer.step()
            self.in_a_row = 0
        optimizer.zero_grad()
        if reason is not None:
            self.skip(where + reason)
        return norm.detach()

    def skip(self, reason: str) -> None:
        """An update is left out.

        Args:
            reason: what was not finite, and where.

        Raises:
            FloatingPointError: too many in a row.
        """
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row > self.max_in_a_row:
            end = f"; {self.in_a_row} updates in a row were not finite" if self.max_in_a_row else ""
            raise FloatingPointError(reason + end)
        rank_zero_warn(f"{reason}: update skipped")

    def state_dict(self) -> dict[str, int]:
        """Counts."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on counting."""
        self.skipped, self.in_a_row = int(state["skipped"]), int(state["in_a_row"])


def problem(norm: Tensor, losses: LossesOfRows, dataset: TrajectoryDataset | None, processes: Processes) -> str | None:
    """What is not finite in an update, with the rows that made it so; to be called by all processes together.

    Args:
        norm: of the gradient.
        losses: of this process.
        dataset: names the rows.
        processes: of the run.

    Returns:
        None where everything is finite on every process, else the same text on each.
    """
    spoilt = [rows for loss, rows in losses if not torch.isfinite(loss)]
    if not processes.largest([int(bool(spoilt) or not torch.isfinite(norm))])[0]:
        return None

    def everywhere(parts: Iterable[Tensor]) -> list[int]:
        own = [row for rows in parts for row in rows.tolist()]
        return sorted({row for rows in processes.objects(own) for row in rows})

    if rows := everywhere(spoilt):
        return f"a loss is not finite, training rows {named_rows(rows, dataset)}"
    rows = everywhere(rows for _, rows in losses)
    what = "the gradient is not finite"
    return what if not rows else f"{what} though its losses are, training rows {named_rows(rows, dataset)}"


def named_rows(rows: Sequence[int], dataset: TrajectoryDataset | None) -> str:
    """Rows with what is known of each: its file and row there, and its id.

    Args:
        rows: of the data set.
        dataset: where they are from, if that is known.
    """
    names = []
    for row in rows[:_NAMED]:
        known = {} if dataset is None else dataset.metadata(row)
        parts = [f"{name}{known[key]}" for key, name in (("place", ""), ("id", "id ")) if key in known]
        names.append(f"{row} ({', '.join(parts)})" if parts else str(row))
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return ", ".join(names) + more
