"""Which examples go into which window, micro-batch and process: indices and lengths only, no tokens.

An item is one example, or one pair of examples; a row is an example's number in its data set.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

Item = list[int]
Batch = TypeVar("Batch")


def longest_row(rows: Iterable[int], lengths: Sequence[int]) -> int:
    """Tokens of the longest of some rows."""
    return max([lengths[row] for row in rows])


def padded_tokens(items: Sequence[Item], lengths: Sequence[int]) -> int:
    """Rows times longest row of a batch made of these items; shared rows count once."""
    rows = {row for item in items for row in item}
    return len(rows) * longest_row(rows, lengths)


def cut_by_tokens(items: Sequence[Item], lengths: Sequence[int], max_tokens: int) -> list[list[Item]]:
    """Cut a sequence of items, longest first, into batches of at most `max_tokens` padded tokens.

    An item that is larger than the budget stands alone.
    """
    batches: list[list[Item]] = []
    rows: set[int] = set()
    longest = 0
    for item in items:
        length = longest_row(item, lengths)
        wider, longer = rows.union(item), max(longest, length)
        if batches and len(wider) * longer <= max_tokens:
            batches[-1].append(item)
            rows, longest = wider, longer
        else:
            batches.append([item])
            rows, longest = set(item), length
    return batches


def split_to_multiple(batches: list[list[Item]], lengths: Sequence[int], multiple: int) -> list[list[Item]] | None:
    """Halve the largest batches until their number is a multiple; None where there are too few items."""
    target = -(-len(batches) // multiple) * multiple
    if target > sum(len(batch) for batch in batches):
        return None
    batches = list(batches)
    while len(batches) < target:
        sizes = [padded_tokens(batch, lengths) if len(batch) > 1 else 0 for batch in batches]
        largest = sizes.index(max(sizes))
        batch = batches[largest]
        batches[largest : largest + 1] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
    return batches


def batches_for_processes(
    items: Sequence[Item], lengths: np.ndarray, max_tokens: int, world_size: int
) -> list[list[Item]]:
    """Items, the longest first, in batches within the budget where that leaves each process equally many.

    Where there are too few items for that, the last (shortest) batches are merged, past the budget. Process r computes
    batches r, r + world_size, ...
    """
    known: list[int] = lengths.tolist()  # numbers of Python, for they are read one by one
    batches = cut_by_tokens(sorted(items, key=lambda item: -longest_row(item, known)), known, max_tokens)
    split = split_to_multiple(batches, known, world_size)
    if split is not None:
        return split
    while len(batches) % world_size:
        batches[-2:] = [batches[-2] + batches[-1]]
    return batches


def rows_of(batch: Sequence[Item]) -> list[int]:
    """Rows of a batch whose items are examples."""
    return [row for item in batch for row in item]


def in_fair_order(batches: Sequence[Batch], world_size: int) -> list[Batch]:
    """Evaluation batches in an order whose beginning stands for all of them, the same whenever it is asked for.

    Batches are made of examples of like length; in that order, an evaluation of so many batches (`limit_val_batches`)
    would judge the longest alone. Those that the processes compute at the same time stay together.

    Args:
        batches: sorted by length, a multiple of `world_size`.
        world_size: processes.
    """
    rounds = [batches[start : start + world_size] for start in range(0, len(batches), world_size)]
    random.Random("evaluation").shuffle(rounds)
    return [batch for together in rounds for batch in together]


class WindowSampler:
    """Windows of an epoch, the same on every process, and the position within it.

    Each epoch is a new permutation, a function of (`seed`, epoch) alone. A window is the next `batch_size` items of it,
    sorted by length, cut into micro-batches, their number made a multiple of `world_size` by splitting; process r
    computes micro-batches r, r + world_size, ... The last window of an epoch is smaller. Where it has too few items for
    that, micro-batches without any make up for them: at most one for each of the last processes.

    Args:
        lengths: tokens of each example, [N].
        batch_size: items per window over all processes, a multiple of `world_size`.
        max_tokens: rows times longest row of a micro-batch, at most; a larger item stands alone.
        pairs: rows (chosen, rejected); items are then pairs.
        seed: of the permutations.
        rank: this process.
        world_size: processes.
        reshuffle: each epoch has a permutation of its own; else all have the first one's.

    Raises:
        ValueError: sizes that cannot work; says which.
    """

    def __init__(
        self,
        lengths: np.ndarray | Sequence[int],
        *,
        batch_size: int,
        max_tokens: int,
        pairs: Sequence[tuple[int, int]] | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        reshuffle: bool = True,
    ) -> None:
        if batch_size < 1 or max_tokens < 1:
            raise ValueError(f"batch_size {batch_size} and max_tokens {max_tokens} must be positive")
        if batch_size % world_size:
            raise ValueError(f"batch_size {batch_size} is not a multiple of the {world_size} processes")
        self.pairs = pairs
        self._lengths: list[int] = np.asarray(lengths).tolist()
        self.batch_size, self.max_tokens, self.seed = batch_size, max_tokens, seed
        self.rank, self.world_size, self.reshuffle = rank, world_size, reshuffle
        self.items: list[Item] = [[row] for row in range(len(lengths))] if pairs is None else [list(p) for p in pairs]
        if len(self.items) < world_size:
            kind = "examples" if pairs is None else "pairs"
            raise ValueError(f"{len(self.items)} training {kind} cannot be shared by {world_size} processes")
        self.epoch = 0
        self.position = 0
        self._resume = 0

    def __len__(self) -> int:
        return -(-len(self.items) // self.batch_size)

    def windows(self) -> list[list[list[int]]]:
        """Windows of the current epoch: per window, per micro-batch (of all processes), the item numbers."""
        order = list(range(len(self.items)))
        # A string seed is hashed with SHA-512: equal on every platform and Python version.
        random.Random(f"{self.seed}-{self.epoch if self.reshuffle else 0}").shuffle(order)
        return [
            self._micro_batches(order[start : start + self.batch_size])
            for start in range(0, len(self) * self.batch_size, self.batch_size)
        ]

    def _micro_batches(self, chosen: list[int]) -> list[list[int]]:
        numbers = sorted(chosen, key=lambda number: -longest_row(self.items[number], self._lengths))
        cut = cut_by_tokens([self.items[number] for number in numbers], self._lengths, self.max_tokens)
        fitted = split_to_multiple(cut, self._lengths, self.world_size)
        if fitted is None:
            alone = [[number] for number in numbers]
            return [*alone, *([] for _ in range(-len(alone) % self.world_size))]
        remaining = iter(numbers)  # cutting and splitting keep the order
        return [[next(remaining) for _ in batch] for batch in fitted]

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of another epoch; the current one is left where it is. Lightning calls this."""
        if epoch != self.epoch:
            self.epoch, self.position, self._resume = epoch, 0, 0

    def begin(self) -> int:
        """Start an iteration: at the position that was loaded, else at the start of the epoch."""
        self.position, self._resume = self._resume, 0
        return self.position

    def state_dict(self) -> dict[str, Any]:
        """Primitives only, equal on all processes."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "items": len(self.items),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a saved position; the number of processes and the token budget may differ from then.

        Raises:
            ValueError: seed, window size or number of items differ, so the windows would.
        """
        for name, own in (("seed", self.seed), ("batch_size", self.batch_size), ("items", len(self.items))):
            if state[name] != own:
                raise ValueError(f"cannot resume in the middle of training: {name} was {state[name]}, is {own}")
        self.epoch, self._resume = int(state["epoch"]), int(state["position"])
        self.position = self._resume
