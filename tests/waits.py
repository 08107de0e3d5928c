"""Where code would wait for a GPU, found out on a CPU."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import ipvrm_lightning

#: They read values, or make shapes of them.
_OPERATIONS = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.repeat_interleave")
#: They do where they are given a mask.
_INDEXED = ("aten.index.", "aten.index_put", "aten._index_put")
_METHODS = (torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy)


@contextmanager
def waits() -> Iterator[list[str]]:
    """The function of this package that each wait is made by; those within other libraries do not count."""
    found: list[str] = []

    class Dispatched(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name, options = str(func), kwargs or {}
            masked = name.startswith(_INDEXED) and any(i is not None and i.dtype == torch.bool for i in args[1])
            if masked or (name.startswith(_OPERATIONS) and options.get("output_size") is None):
                _note(found)
            return func(*args, **(kwargs or {}))

    class Called(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in _METHODS:
                _note(found)
            return func(*args, **(kwargs or {}))

    with Called(), Dispatched():
        yield found


def _note(found: list[str]) -> None:
    package = Path(ipvrm_lightning.__file__).parent
    frames = [frame for frame in traceback.extract_stack() if not frame.filename.endswith("waits.py")]
    frames = [f for f in frames if Path(f.filename).is_relative_to(package) or "/transformers/" in f.filename]
    if not frames:
        found.append("backward")
    elif Path(frames[-1].filename).is_relative_to(package):
        found.append(frames[-1].name)
