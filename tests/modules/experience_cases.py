"""Scored micro-batches of a step, and processes that are threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from ipvrm_lightning import functional as F
from ipvrm_lightning.models.candidates import BehaviorScores, Candidates
from ipvrm_lightning.modules.experience import ScoredBatch
from ipvrm_lightning.modules.processes import Processes
from ipvrm_lightning.types import TrajectoryBatch

LENGTHS = torch.tensor([3, 7, 1, 5, 2, 4, 6])
OUTCOMES = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0])
GROUPS = torch.tensor([0, 0, 0, 0, 1, 1, 1])


class Threads(Processes):
    """One of several threads that wait for each other."""

    def __init__(self, rank: int, count: int, barrier: threading.Barrier, given: list[Any]) -> None:
        super().__init__(rank, count, torch.device("cpu"))
        self.barrier, self.given = barrier, given

    def objects(self, own: Any) -> list[Any]:
        self.given[self.rank] = own
        self.barrier.wait(timeout=60)
        found = list(self.given)
        self.barrier.wait(timeout=60)
        return found

    def total(self, value: Tensor) -> Tensor:
        return torch.stack(self.objects(value)).sum(0)

    def largest(self, numbers: Sequence[int]) -> list[int]:
        return [max(each) for each in zip(*self.objects(numbers), strict=True)]

    def rows(self, own: Tensor) -> Tensor:
        parts = self.objects(own)
        assert len({part.shape for part in parts}) == 1  # as an all-gather needs them
        return torch.cat(parts)


def together(shares: list[list[list[int]]], work: Callable[[list[ScoredBatch], Processes], Any]) -> list[Any]:
    """What each process finds, given the rows of its micro-batches."""
    barrier, given = threading.Barrier(len(shares)), [None] * len(shares)

    def one(rank: int) -> Any:
        try:
            return work([scored(rows) for rows in shares[rank]], Threads(rank, len(shares), barrier, given))
        except BaseException:
            barrier.abort()  # the others would wait
            raise

    with ThreadPoolExecutor(len(shares)) as pool:
        return list(pool.map(one, range(len(shares))))


def scored(rows: list[int]) -> ScoredBatch:
    """A micro-batch, as wide as its longest response."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(3, 7, 7, 2, generator=generator)
    td, log_probs, sft = (values[rows][:, : int(LENGTHS[rows].max())] for values in drawn)
    mask = torch.arange(td.shape[1]) < LENGTHS[rows, None]
    starts = torch.ones(len(rows), dtype=torch.long)
    batch = TrajectoryBatch(
        torch.zeros(len(rows), td.shape[1] + 1).long(), LENGTHS[rows] + 1, starts, torch.tensor(rows),
        outcomes=OUTCOMES[rows], group_ids=GROUPS[rows],
    )  # fmt: skip
    log_probs, sft = (torch.where(mask.unsqueeze(-1), values, 0.0) for values in (log_probs, sft))
    counted = F.candidate_mask(log_probs, mask, min_probability=0.5)
    behavior = BehaviorScores(Candidates(torch.zeros_like(counted).long(), counted), log_probs, torch.zeros(mask.shape))
    return ScoredBatch(batch, mask, behavior, sft_log_probs=sft, td_advantages=td)


#: Rows of the micro-batches of each process: as many for each, or more for one of them; other widths.
SHARES = {
    "even": [[[0, 1], [2]], [[3, 5], [4, 6]]],
    "first has more": [[[1, 3, 5], [6, 0]], [[4, 2]]],
    "last has more": [[[4]], [[2]], [[1, 3, 5], [6, 0]]],
}
