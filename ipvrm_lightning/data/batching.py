"""Windows, micro-batches and evaluation batches of a trajectory data set.

A window is what one optimiser step sees. Its examples are drawn from a fresh permutation per epoch, then sorted by
length and cut into micro-batches whose padded size (rows times longest row) stays within a budget of tokens. Who
computes which micro-batch is decided here and not by a distributed sampler: a window is the same for any number of
processes.
"""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ipvrm_lightning.data.dataset import TrajectoryDataset, collate, collate_pairs
from ipvrm_lightning.data.planning import (
    WindowSampler,
    batches_for_processes,
    in_fair_order,
    pair_rows,
    rows_of,
)
from ipvrm_lightning.types import TrajectoryBatch, Unit, Window

Loaded = TypeVar("Loaded")


class _Plan(NamedTuple):
    micro_batches: list[list[int]]
    counts: dict[Unit, int]


class _Windows(Dataset[Window]):
    """Windows by number; what worker processes read."""

    def __init__(self, dataset: TrajectoryDataset, plans: list[_Plan], pairs: Sequence[tuple[int, int]] | None) -> None:
        self.dataset, self.plans, self.pairs = dataset, plans, pairs

    def __len__(self) -> int:
        return len(self.plans)

    def __getitem__(self, number: int) -> Window:
        plan = self.plans[number]
        return Window([self._micro_batch(items) for items in plan.micro_batches], dict(plan.counts))

    def _micro_batch(self, items: list[int]) -> TrajectoryBatch:
        if self.pairs is None:
            return collate(self.dataset, items)
        return collate_pairs(self.dataset, [self.pairs[item] for item in items])


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
        windows = _Windows(self.trajectories, plans, self.sampler.pairs)
        for window in _loaded(windows, self.num_workers):
            self.sampler.advance()
            yield window
        self.sampler.finish()

    def _plan(self, window: list[list[int]]) -> _Plan:
        response_lengths, pairs = self.trajectories.response_lengths, self.sampler.pairs
        rows = [items if pairs is None else pair_rows(pairs, items) for items in window]
        counts: dict[Unit, int] = {
            "sequences": sum(len(row) for row in rows),
            "tokens": int(sum(response_lengths[row].sum() for row in rows)),
            "pairs": 0 if pairs is None else sum(len(items) for items in window),
        }
        return _Plan(window[self.sampler.rank :: self.sampler.world_size], counts)

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


class _Batches(Dataset[TrajectoryBatch]):
    def __init__(self, dataset: TrajectoryDataset, batches: list[list[int]]) -> None:
        self.dataset, self.batches = dataset, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> TrajectoryBatch:
        return collate(self.dataset, self.batches[number])


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

    Raises:
        ValueError: there are fewer examples than processes.
    """

    def __init__(
        self, dataset: TrajectoryDataset, *, max_tokens: int, rank: int = 0, world_size: int = 1, num_workers: int = 0
    ) -> None:
        if len(dataset) < world_size:
            raise ValueError(f"{len(dataset)} examples cannot be shared by {world_size} processes")
        items = [[row] for row in range(len(dataset))]
        batches = in_fair_order(batches_for_processes(items, dataset.lengths, max_tokens, world_size), world_size)
        self.trajectories, self.num_workers = dataset, num_workers
        self.batches = [rows_of(batch) for batch in batches[rank::world_size]]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[TrajectoryBatch]:
        yield from _loaded(_Batches(self.trajectories, self.batches), self.num_workers)


def _loaded(batches: Dataset[Loaded], num_workers: int) -> DataLoader[Loaded]:
    # An own generator: starting an iterator must not draw from the global one.
    generator = torch.Generator().manual_seed(0)
    return DataLoader(
        batches, batch_size=None, num_workers=num_workers, generator=generator, worker_init_fn=_outlive_sigterm
    )


def _outlive_sigterm(_: int) -> None:
    """Leave it to the run to stop: a signal to all of its processes would kill workers that it waits for."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
