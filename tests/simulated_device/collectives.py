"""What processes on the simulated device tell each other: gloo's collectives on copies, of that device's tensors alone.

As NCCL's, they know no tensors of the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import ProcessGroupGloo, _create_work_from_future
from torch.distributed import distributed_c10d

REDUCTIONS = {"sum": dist.ReduceOp.SUM, "avg": dist.ReduceOp.AVG}


class Simulated(dist.ProcessGroup):
    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self.gloo = ProcessGroupGloo(store, rank, size, timeout)

    def getBackendName(self) -> str:
        return "simulated"

    def _set_group_name(self, name: str) -> None:
        self._name = name

    @property
    def group_name(self) -> str:
        return self._name

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> Any:
        copies = _copies(tensors)
        if average := opts is not None and opts.reduceOp == dist.ReduceOp.AVG:
            opts.reduceOp = dist.ReduceOp.SUM  # gloo has no mean
        for copy in copies:
            self.gloo.allreduce([copy], opts or dist.AllreduceOptions()).wait()
            if average:
                copy.div_(self.size(), rounding_mode=None if copy.is_floating_point() else "floor")
        return _finished(tensors, copies)

    def broadcast(self, tensors: list[Tensor], opts: Any) -> Any:
        copies = _copies(tensors)
        self.gloo.broadcast(copies, opts).wait()
        return _finished(tensors, copies)

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> Any:
        copies = [_copies(output) for output in outputs]
        self.gloo.allgather(copies, _copies(inputs)).wait()
        return _finished([*chain(*outputs)], [*chain(*copies)])

    def barrier(self, opts: Any = None) -> Any:
        self.gloo.barrier().wait()
        return _finished([], [])

    def all_gather_single(self, output: Tensor, given: Tensor, opts: Any = None) -> Any:
        parts = [torch.empty(given.shape, dtype=given.dtype) for _ in range(self.size())]
        self.gloo.allgather([parts], _copies([given])).wait()
        return _finished([output], [torch.cat(parts).reshape(output.shape)])

    def reduce_scatter_single(self, output: Tensor, given: Tensor, opts: Any = None) -> Any:
        whole = given.clone()
        reduction = dist.AllreduceOptions()
        reduction.reduceOp = dist.ReduceOp.SUM if opts is None else opts.reduceOp
        self.allreduce([whole], reduction)
        return _finished([output], [whole.reshape(self.size(), *output.shape)[self.rank()]])

    _allgather_base, _reduce_scatter_base = all_gather_single, reduce_scatter_single  # their names before PyTorch 2.13


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    for tensor in tensors:
        if tensor.device.type != "simulated":
            raise RuntimeError(f"No backend type associated with device type {tensor.device.type}")
    return [tensor.detach().cpu().contiguous() for tensor in tensors]


def _finished(outputs: list[Tensor], values: list[Tensor]) -> Any:
    for output, value in zip(outputs, values, strict=True):
        output.detach().copy_(value)
    future: Any = torch.futures.Future()
    future.set_result(outputs)
    return _create_work_from_future(future)


def join() -> torch.library.Library:
    """Let this process use them; they are there for as long as what is returned."""
    dist.Backend.register_backend("simulated", Simulated, devices=["cpu", "simulated"])
    # objects that are broadcast go by the device, as with NCCL
    distributed_c10d._get_object_coll_device = lambda group=None: "simulated"  # type: ignore[assignment]
    functional = torch.library.Library("_c10d_functional", "IMPL")
    functional.impl("all_gather_into_tensor", _all_gather, "PrivateUse1")
    functional.impl("wait_tensor", lambda tensor: tensor, "PrivateUse1")
    return functional


def _all_gather(given: Tensor, size: int, group: str) -> Tensor:
    output = given.new_empty(given.shape[0] * size, *given.shape[1:])
    distributed_c10d._resolve_process_group(group).all_gather_single(output, given.contiguous())
    return output
