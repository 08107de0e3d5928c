from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ipvrm_lightning.data.dataset import TrajectoryDataset
from ipvrm_lightning.modules.experience import mini_batch_rows, plan_mini_batches
from ipvrm_lightning.modules.processes import Processes
from ipvrm_lightning.types import Example


def test_what_is_summed_over_processes_is_on_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL refuses a tensor on a CPU, which gloo, on which tests run, does not."""
    seen: list[Tensor] = []
    monkeypatch.setattr(dist, "all_reduce", lambda value, op: seen.append(value))
    Processes(0, 2, torch.device("meta")).total(torch.ones(3))
    assert [value.device.type for value in seen] == ["meta"]


def responses(groups: int, size: int, lengths: list[int] | None = None) -> TrajectoryDataset:
    count = groups * size
    lengths = lengths or [6] * count
    return TrajectoryDataset(
        Example([1] * lengths[row], 2, group=str(row // size), outcome=row % 2) for row in range(count)
    )


@pytest.mark.parametrize("processes", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("groups", [1, 2, 5])
@pytest.mark.parametrize("max_tokens", [1, 12, 1000])
def test_every_response_is_planned_once_and_equally_many_batches_for_each_process(
    processes: int, groups: int, max_tokens: int
) -> None:
    dataset = responses(groups, 8)
    plans = plan_mini_batches(dataset, count=4, max_tokens=max_tokens, processes=processes)
    assert all(len(plan) % processes == 0 and all(plan) for plan in plans)
    rows = sorted(row for plan in plans for batch in plan for row in batch)
    assert rows == list(range(len(dataset)))


def test_mini_batches_keep_prompts_whole_and_have_a_response_for_every_process() -> None:
    dataset = responses(5, 4)
    for count, processes, expected in ((2, 1, 2), (9, 1, 5), (5, 4, 5), (5, 5, 2), (4, 20, 1)):
        parts = mini_batch_rows(dataset, count, processes)
        assert len(parts) == expected
        groups: list[set[Any]] = [set(np.asarray(dataset.group_ids)[rows].tolist()) for rows in parts]
        assert sum(map(len, groups)) == len(set().union(*groups)) == 5


@pytest.mark.parametrize(
    ("count", "processes", "said"),
    [
        (2, 1, []),
        (9, 1, []),  # as many as there are prompts
        (5, 4, []),
        (5, 5, ["2 mini-batches in place of 5"]),
        (4, 20, ["1 mini-batches in place of 4"]),
        (9, 20, ["1 mini-batches in place of 5"]),
    ],
)
def test_fewer_mini_batches_than_are_asked_for_are_warned_of(
    count: int, processes: int, said: list[str], recwarn: pytest.WarningsRecorder
) -> None:
    plan_mini_batches(responses(5, 4), count=count, max_tokens=1000, processes=processes)
    assert [str(warning.message).partition(":")[0] for warning in recwarn] == said
