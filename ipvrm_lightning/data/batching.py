"""Windows, micro-batches and evaluation batches of a trajectory data set.

A window is what one optimiser step sees. Its examples are drawn from a fresh permutation per epoch, then sorted by
length and cut into micro-batches whose padded size (rows times longest row) stays within a budget of tokens. Who
computes which micro-batch is decided here and not by a distributed sampler: a window is the same for any number of
processes.
"""

from __future__ import annotations

import hashlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ipvrm_lightning.data.dataset import TrajectoryDataset, collate, collate_pairs
from ipvrm_lightning.data.planning import WindowSampler, batches_for_processes, in_fair_order, rows_of
from ipvrm_lightning.types import TrajectoryBatch, Unit, Window

Plan = TypeVar("Plan")
Loaded = TypeVar("Loaded")


class _Built(Dataset[Loaded], Generic[Plan, Loaded]):
    """Batches or windows by number, each built from its plan when asked for; what worker processes read."""

    def __init__(self, build: Callable[[Plan], Loaded], plans: Sequence[Plan]) -> None:
        self.build, self.plans = build, plans

    def __len__(self) -> int:
        return len(self.plans)

    def __getitem__(self, number: int) -> Loaded:
        return self.build(self.plans[number])


class _WindowPlan(NamedTuple):
    micro_batches: list[list[int]]
    counts: dict[Unit, int]
    lacks_last: bool


def _window(dataset: TrajectoryDataset, pairs: Sequence[tuple[int, int]] | None, plan: _WindowPlan) -> Window:
    if pairs is None:
        batches = [collate(dataset, rows) for rows in plan.micro_batches]
    else:
        batches = [collate_pairs(dataset, [pairs[n] for n in chosen]) for chosen in plan.micro_batches]
    return Window(batches, plan.counts, plan.lacks_last)


class WindowLoader:
    """Iterates over windows and can stop and go on anywhere, also with workers.

    What counts as seen is what was delivered, never what workers fetched ahead. It is not a `DataLoader`, so Lightning
    neither puts its own sampler in nor warns about one; its `state_dict` is what Lightning saves in a checkpoint.

    Args:
        dataset: trajectories.
        num_workers: processes that build batches ahead; 0 builds them in this one.
        windows: arguments of `WindowSampler`, which draws the windows and holds the epoch and the position in it.
    """

    def __init__(self, dataset: TrajectoryDataset, *, num_workers: int = 0, **windows: Any) -> None:
        self.trajectories, self.num_workers = dataset, num_workers
        self.sampler = WindowSampler(dataset.lengths, **windows)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Window]:
        # The body of a generator runs at the first `next`: Lightning makes the iterator before it sets the epoch.
        position = self.sampler.begin()
        plans = [self._plan(window) for window in self.sampler.windows()[position:]]
        build = partial(_window, self.trajectories, self.sampler.pairs)
        for window in _loaded(build, plans, self.num_workers):
            self.sampler.position += 1
            yield window
        self.sampler.set_epoch(self.sampler.epoch + 1)

    def rows(self, windows: int) -> list[int]:
        """Rows of the examples in the first so many windows of the current epoch."""
        return sorted({row for window in self.sampler.windows()[:windows] for row in self._rows(window)})

    def _rows(self, window: list[list[int]]) -> list[int]:
        pairs = self.sampler.pairs
        return [row for batch in window for row in (batch if pairs is None else {r for n in batch for r in pairs[n]})]

    def _plan(self, window: list[list[int]]) -> _WindowPlan:
        pairs, rows = self.sampler.pairs, self._rows(window)
        shortest = [batch for batch in window if batch][-1]
        counts: dict[Unit, int] = {
            "sequences": len(rows),
            "tokens": int(self.trajectories.response_lengths[rows].sum()),
            "pairs": 0 if pairs is None else sum(len(batch) for batch in window),
        }
        own = window[self.sampler.rank :: self.sampler.world_size]
        # where there is none left for this process, it keeps step with one of the shortest
        return _WindowPlan([batch or shortest for batch in own], counts, not own[-1])

    def state_dict(self) -> dict[str, Any]:
        """Where the next window is: primitives only, equal on all processes."""
        return {**self.sampler.state_dict(), "data": self._fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: the state is of other data, seed or window size, so that no exact continuation exists.
        """
        if state["data"] != (own := self._fingerprint()):
            raise ValueError(f"cannot resume: the checkpoint saw training data {state['data']}, this run has {own}")
        self.sampler.load_state_dict(state)

    def _fingerprint(self) -> str:
        data, pairs = self.trajectories.fingerprint(), self.sampler.pairs
        if pairs is None:
            return data
        return f"{data}, pairs {hashlib.blake2b(np.array(pairs, np.int64).tobytes(), digest_size=8).hexdigest()}"


class EvalLoader:
    """Every example once over all processes, in batches of like length within the token budget.

    The order of the batches is drawn, the same each time: the first few are a fair sample. Each process gets equally
    many. Where there are too few examples to split, the shortest batches are merged past the budget. Not a
    `DataLoader`, so that Lightning does not hand examples out twice under DDP.

    Args:
        dataset: trajectories.
        max_tokens: rows times longest row of a batch, at most; a longer example stands alone.
        rank: this process.
        world_size: processes.
        num_workers: processes that build batches ahead.
        rows: of the examples, where not all are wanted.

    Raises:
        ValueError: there are fewer examples than processes.
    """

    def __init__(
        self,
        dataset: TrajectoryDataset,
        *,
        max_tokens: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        rows: Sequence[int] | None = None,
    ) -> None:
        items = [[row] for row in (range(len(dataset)) if rows is None else rows)]
        if len(items) < world_size:
            raise ValueError(f"{len(items)} examples cannot be shared by {world_size} processes")
        batches = in_fair_order(batches_for_processes(items, dataset.lengths, max_tokens, world_size), world_size)
        self.trajectories, self.num_workers = dataset, num_workers
        self.batches = [rows_of(batch) for batch in batches[rank::world_size]]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[TrajectoryBatch]:
        yield from _loaded(partial(collate, self.trajectories), self.batches, self.num_workers)


def _loaded(build: Callable[[Plan], Loaded], plans: Sequence[Plan], num_workers: int) -> DataLoader[Loaded]:
    return DataLoader(
        _Built(build, plans),
        batch_size=None,
        num_workers=num_workers,
        # Forked ones share what was read; Python 3.14 would send it to each, from a process that SIGTERM ends.
        multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
        # An own generator: starting an iterator must not draw from the global one.
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_outlive_signals,
    )


def _outlive_signals(_: int) -> None:
    """Leave it to the run to stop: a signal to all of its processes would kill workers that it waits for."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)
