"""Models divided over the processes of a run (FSDP2), and how to work with one that is.

A sharded model is made on the meta device, divided, and filled by each process with its own rows alone. Every decoder
block is gathered for its own pass; embedding, last norm and head are one group, because log-probabilities read the
head's weight and the head may be the embedding. That group is gathered by `inside`, which runs a function as if it were
the model's forward pass. Adapters are added afterwards and stay whole on every process: they are small, and optimisers,
checkpoints and roles then treat them as they do on one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ipvrm_lightning.models.language_model import LanguageModelFactory
from ipvrm_lightning.models.preparation import decoder_blocks
from ipvrm_lightning.models.product_precision import is_short

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Result = TypeVar("Result")


class Sharded(LanguageModelFactory):
    """Builds what another factory builds, divided over the processes; a collective call.

    Args:
        factory: says what to build.
        mesh: of the processes, one dimension.
    """

    def __init__(self, factory: LanguageModelFactory, mesh: DeviceMesh) -> None:
        self.factory, self.mesh = factory, mesh
        kind = mesh.device_type
        self.device = torch.device("cpu" if kind == "cpu" else f"{kind}:{torch.accelerator.current_device_index()}")

    def build_model(self) -> PreTrainedModel:
        """Build the model and fill this process's shards."""
        with self.device:
            return self.factory.build_sharded(self._divide)

    def build_tokenizer(self) -> PreTrainedTokenizerBase:
        """The factory's."""
        return self.factory.build_tokenizer()

    @property
    def has_adapters(self) -> bool:
        """As the factory says."""
        return self.factory.has_adapters

    def _divide(self, model: Any) -> None:
        shard(model, self.mesh)
        model._apply(lambda t: torch.empty_like(t, device=self.device) if t.is_meta else t)
        model.tie_weights()


def placed(factory: LanguageModelFactory, mesh: DeviceMesh | None) -> LanguageModelFactory:
    """A factory whose models lie where the strategy wants them.

    Args:
        factory: of whole models.
        mesh: that Lightning's `ModelParallelStrategy` made; None with any other strategy.
    """
    return factory if mesh is None else Sharded(factory, mesh["data_parallel"])


def shard(model: Any, mesh: DeviceMesh) -> None:
    """Divide a causal language model over processes, block by block, in place.

    Args:
        model: without adapters, on the meta device or on that of the mesh.
        mesh: of the processes, one dimension.

    Raises:
        ValueError: the model does not say what its blocks are.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for block in decoder_blocks(model):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # else what is left would stay gathered after a pass, and its parameters would not be those of the optimiser
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    model.is_inside = False
    model.run_inside = MethodType(_run_inside, model)
    register_fsdp_forward_method(model, "run_inside")


def _run_inside(model: nn.Module, function: Callable[[], Result]) -> Result:
    return function()


def inside(language_model: Any, function: Callable[[], Result]) -> Result:
    """Run a function that reads weights of a model which may be sharded; collective where it is.

    Args:
        language_model: the Hugging Face model itself, not a wrapper with adapters.
        function: returns a tensor, or a tuple of them. Calls nest.
    """
    run = getattr(language_model, "run_inside", None)
    if run is None or language_model.is_inside:
        return function()
    language_model.is_inside = True
    try:
        return run(function)
    finally:
        language_model.is_inside = False


@contextmanager
def gathered(language_model: Any) -> Iterator[None]:
    """All weights on every process for as long as the context is open; collective to enter, and not within it.

    For what processes do for different numbers of passes, such as sampling.
    """
    from torch.distributed.fsdp import FSDPModule

    parts = [module for module in language_model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


@contextmanager
def seemingly_whole(model: nn.Module) -> Iterator[None]:
    """Stand-ins without memory for sharded and shortened parameters, for as long as the context is open.

    For PEFT, which takes a part for a matrix of that size, and rounds new adapters to the precision of the weights.
    Whether a parameter is frozen meanwhile is kept.
    """
    replaced = [
        (module, key, parameter)
        for module in model.modules()
        for key, parameter in module._parameters.items()
        if parameter is not None and (is_sharded(parameter) or is_short(module))
    ]
    stand_ins: dict[Tensor, nn.Parameter] = {}
    for module, key, parameter in replaced:
        if parameter not in stand_ins:
            dtype = torch.float32 if is_short(module) else parameter.dtype
            empty = torch.empty(1, dtype=dtype, device=parameter.device).expand(parameter.shape)
            stand_ins[parameter] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        module._parameters[key] = stand_ins[parameter]
    try:
        yield
    finally:
        for module, key, parameter in replaced:
            parameter.requires_grad_(stand_ins[parameter].requires_grad)
            module._parameters[key] = parameter


def is_sharded(tensor: Tensor) -> bool:
    """Whether a process holds only a part of a tensor."""
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """A tensor, gathered where it is sharded; collective there."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def fill(parameter: Tensor, rows: Callable[[int, int], Tensor]) -> None:
    """Write a tensor, or this process's part of one that is sharded.

    Args:
        parameter: to fill.
        rows: the rows [start, end) of the whole.
    """
    if not isinstance(parameter, DTensor):
        parameter.copy_(rows(0, parameter.shape[0]) if parameter.ndim else rows(0, 1).reshape(()))
        return
    count, rank = parameter.device_mesh.size(), parameter.device_mesh.get_local_rank()
    size = -(-parameter.shape[0] // count)  # FSDP2 divides the first dimension as torch.chunk does
    start, end = (min(place * size, parameter.shape[0]) for place in (rank, rank + 1))
    local = parameter.to_local()
    if end > start:
        local.copy_(rows(start, end))


def any_process(flag: bool, factory: LanguageModelFactory) -> bool:
    """Whether a flag is set on any of the processes that share a model; the flag itself where none is shared."""
    if not isinstance(factory, Sharded):
        return flag
    found = torch.tensor(float(flag), device=factory.device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return bool(found.item())


def same_everywhere(tensors: Iterable[Tensor]) -> None:
    """Give every process the first one's values of tensors that are not sharded; collective."""
    for tensor in tensors:
        if not is_sharded(tensor):
            dist.broadcast(tensor.detach(), 0)
