"""What the processes of a run do together, and nothing where there is one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ipvrm_lightning.models.sharding import is_sharded


class Processes:
    """The processes of a run.

    Args:
        rank: of this one.
        count: of all.
        device: of this one.
    """

    def __init__(self, rank: int, count: int, device: torch.device) -> None:
        self.rank, self.count, self.device = rank, count, device

    def total(self, value: Tensor) -> Tensor:
        """Sum over the processes."""
        return self._reduced(value, dist.ReduceOp.SUM)

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """Maximum over the processes, number by number."""
        return self._reduced(torch.tensor(numbers, device=self.device), dist.ReduceOp.MAX).tolist()

    def rows(self, own: Tensor) -> Tensor:
        """Tensors of equal shape [r, ...] below each other in the order of the ranks, [r * count, ...]."""
        if self.count == 1:
            return own
        parts = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    def objects(self, own: Any) -> list[Any]:
        """One object of each process, in the order of the ranks."""
        if self.count == 1:
            return [own]
        parts: list[Any] = [None] * self.count
        dist.all_gather_object(parts, own)
        return parts

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their sum over the processes; a parameter without one takes part with zeros.

        Those of sharded parameters are left alone: the backward pass has reduced them.
        """
        if self.count == 1:
            return
        by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter in parameters:
            if is_sharded(parameter):
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            by_dtype.setdefault(parameter.dtype, []).append(parameter)
        for alike in by_dtype.values():
            flat = torch.cat([p.grad.flatten() for p in alike if p.grad is not None])
            dist.all_reduce(flat)
            for parameter, part in zip(alike, flat.split([p.numel() for p in alike]), strict=True):
                parameter.grad = part.view_as(parameter)

    def _reduced(self, value: Tensor, operation: Any) -> Tensor:
        if self.count == 1:
            return value
        result = value.detach().to(self.device, copy=True)  # NCCL knows no other device
        dist.all_reduce(result, op=operation)
        return result
