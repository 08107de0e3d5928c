"""Metrics that keep what they were given, whole, so that no result depends on the number of processes or the order.

Their reports are plain dataclasses, not frozen ones: torchmetrics looks into what `compute` returns and refuses those.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class CollectingMetric(Metric):
    """Base of metrics with one-dimensional states that are gathered from all processes."""

    full_state_update = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._collected: dict[str, torch.dtype] = {}

    def collect(self, name: str, dtype: torch.dtype) -> None:
        """Declare a state, one-dimensional, of this dtype."""
        self.add_state(name, default=[], dist_reduce_fx="cat")
        self._collected[name] = dtype

    def put(self, name: str, values: Tensor) -> None:
        """Add values to a declared state, flattened."""
        getattr(self, name).append(values.detach().reshape(-1).to(self.device, self._collected[name]))

    def collected(self, name: str) -> Tensor:
        """All values of a state so far, on the CPU; within `compute`, those of all processes."""
        state = getattr(self, name)
        parts = state if isinstance(state, list) else [state]
        return torch.cat([part.cpu() for part in parts]) if parts else torch.empty(0, dtype=self._collected[name])

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all processes.

        A process that has seen nothing takes part with empty tensors of the right dtype: torchmetrics would send
        float ones, which the others cannot receive.
        """
        for name, dtype in self._collected.items():
            if not len(getattr(self, name)):
                getattr(self, name).append(torch.empty(0, dtype=dtype, device=self.device))
        super().sync(*args, **kwargs)


class RecordMetric(CollectingMetric):
    """Base of metrics whose state is lines of text, as bytes.

    Texts (ids, subsets, answers) and floats written in their shortest exact form survive on any device and in any
    precision.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.collect("lines", torch.uint8)

    def put_lines(self, lines: Iterable[str]) -> None:
        """Keep lines, each ending with a line break."""
        text = "".join(lines).encode()
        if text:
            self.put("lines", torch.frombuffer(bytearray(text), dtype=torch.uint8))

    def read_lines(self) -> list[str]:
        """All lines kept so far, without their line breaks."""
        # not splitlines(): texts may hold other line separators of Unicode
        return self.collected("lines").numpy().tobytes().decode().split("\n")[:-1]
