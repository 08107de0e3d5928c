"""Filling a sharded model: from safetensors, or with the random numbers that one process would have drawn."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ipvrm_lightning.models.sharding import fill

#: Precisions that are weights as they are; numbers of fewer bits mean nothing without the scales beside them.
_FLOATS = frozenset({"F16", "BF16", "F32", "F64"})


def load_safetensors(model: Any, folder: Path) -> None:
    """Fill a model from the safetensors files of a folder; of a sharded tensor only this process's rows are read.

    Args:
        model: without adapters.
        folder: of the files.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a parameter is in none of them, has another shape there, or is quantised.
    """
    from safetensors import safe_open

    files = {path: safe_open(path, framework="pt") for path in sorted(folder.glob("*.safetensors"))}
    if not files:
        raise FileNotFoundError(f"no *.safetensors in {folder}: a sharded model is read from nothing else")
    places = {key: file for file in files.values() for key in file.keys()}  # noqa: SIM118
    prefix = f"{model.base_model_prefix}."
    for name, tensor in _tensors(model):
        key = name if name in places else name.removeprefix(prefix)
        if key not in places:
            raise ValueError(f"{folder} has no tensor {name}: its layout is not one that can be read shard by shard")
        stored = places[key].get_slice(key)
        if tuple(stored.get_shape()) != tuple(tensor.shape):
            raise ValueError(
                f"{folder}: {key} has the shape {stored.get_shape()}, the model needs {list(tensor.shape)}"
            )
        if tensor.is_floating_point() and stored.get_dtype() not in _FLOATS:
            raise ValueError(
                f"{folder}: {key} is stored as {stored.get_dtype()}: give the model in half precision or more"
            )
        fill(tensor, lambda start, end, stored=stored: stored[start:end])  # type: ignore[misc]


def _tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Parameters, a tied one once, and buffers that checkpoints hold."""
    parameters = dict(model.named_parameters())
    stored = set(model.state_dict())
    yield from parameters.items()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in stored)


class Initialization(TorchDispatchMode):
    """Records what a constructor writes into parameters on the meta device, and does it again into shards.

    Random numbers are drawn in the recorded order, tensor by tensor, so that a seed gives the weights that making the
    model whole would have given; one tensor at most is whole at a time. To be open while the model is made.
    """

    def __init__(self) -> None:
        super().__init__()
        self._writes: list[tuple[Any, Tensor, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run an operation and remember it where it writes into a tensor on the meta device."""
        target = args[0] if args else None
        if func._schema.is_mutable and isinstance(target, Tensor) and target.is_meta:
            self._writes.append((func, target, args[1:], dict(kwargs or {})))
        return func(*args, **(kwargs or {}))

    def name_parameters(self, model: nn.Module) -> None:
        """Remember which parameter is which, before sharding replaces them."""
        self._names = {p.untyped_storage()._cdata: name for name, p in model.named_parameters()}

    def replay(self, model: nn.Module, seed: int) -> None:
        """Fill the model.

        Args:
            model: the one that was made, sharded since.
            seed: of the weights; the global random state is left as it was.

        Raises:
            ValueError: a parameter's first values were not written in a way that can be repeated.
        """
        parameters = dict(model.named_parameters())
        unwritten = set(parameters)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            for storage, writes in groupby(self._writes, key=lambda write: write[1].untyped_storage()._cdata):
                name, kept = self._names.get(storage, ""), list(writes)
                if any(isinstance(value, Tensor) and value.is_meta for write in kept for value in write[2]):
                    unwritten |= {name} & parameters.keys()  # by something that was computed, on no numbers
                    continue
                made = self._write(kept)
                if name in parameters:
                    fill(parameters[name], lambda start, end, made=made: made[start:end])  # type: ignore[misc]
                    unwritten.discard(name)
        if unwritten:
            raise ValueError(
                f"the first values of {min(unwritten)} cannot be repeated in shards: use DDP for this model"
            )

    @staticmethod
    def _write(writes: list[Any]) -> Tensor:
        """A whole tensor with what consecutive writes left in it, on the CPU."""
        first = writes[0][1]
        size = first.untyped_storage().nbytes() // first.element_size()
        flat = torch.empty(size, dtype=first.dtype, device="cpu")
        for func, target, args, kwargs in writes:
            func(flat.as_strided(target.shape, target.stride(), target.storage_offset()), *args, **kwargs)
        return flat.view(first.shape) if first.numel() == size else flat
