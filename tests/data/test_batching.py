"""Windows, micro-batches, processes, and going on in the middle of an epoch."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import random
import signal
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ipvrm_lightning.data.batching import EvalLoader, WindowLoader
from ipvrm_lightning.data.dataset import TrajectoryDataset, collate
from ipvrm_lightning.data.planning import WindowSampler, split_to_multiple
from ipvrm_lightning.types import Example, TrajectoryBatch, Unit, Window


def make_dataset(lengths: list[int], *, prompt: int = 2) -> TrajectoryDataset:
    """Example i holds the ids i+1, i+1, ...; groups of three; outcomes alternate."""
    return TrajectoryDataset(
        Example([i + 1] * length, prompt, group=f"g{i // 3}", outcome=i % 2) for i, length in enumerate(lengths)
    )


LENGTHS = [3 + (7 * i) % 23 for i in range(52)]


def rows(windows: list[Window]) -> list[list[list[int]]]:
    return [[batch.index.tolist() for batch in counted(window)] for window in windows]


def counted(window: Window) -> list[TrajectoryBatch]:
    return window.micro_batches[:-1] if window.lacks_last else window.micro_batches


def test_dataset_gives_back_what_it_was_given() -> None:
    examples = [
        Example([5, 6, 7], 1, "a", 1, step_ids=[0, -1], step_label=-1, true_values=[0.5, 0.25], metadata={"id": "x"}),
        Example([8, 9, 10, 11], 2, "b", 0, step_ids=[0, 1], step_label=1, true_values=[1.0, 0.0], metadata={"id": "y"}),
    ]
    dataset = TrajectoryDataset(iter(examples))
    assert [dataset[i] for i in range(2)] == examples
    assert dataset.lengths.tolist() == [3, 4] and dataset.metadata(1) == {"id": "y"}
    assert dataset[-1] == examples[1] and dataset[-2] == examples[0]
    assert dataset.largest_id == 11
    with pytest.raises(IndexError):
        dataset[2]


def test_true_values_that_some_examples_do_not_have_are_not_known() -> None:
    dataset = TrajectoryDataset(
        Example([5] * (2 + n), 1, "a", true_values=[0.25, 0.5, 0.75] if n == 2 else None) for n in (1, 2, 0, 1)
    )
    found = [values.tolist() for i in range(4) if (values := dataset.response_field(i, "true_values")) is not None]
    assert [[math.isnan(value) for value in row] for row in found] == [[True] * 2, [False] * 3, [True], [True] * 2]
    assert found[1] == [0.25, 0.5, 0.75] and dataset[1].true_values == found[1]


def test_fingerprint_depends_on_ids_starts_and_outcomes() -> None:
    base = Example([5, 6, 7], 1, "a", 1)
    others = [Example([5, 6, 8], 1, "a", 1), Example([5, 6, 7], 2, "a", 1), Example([5, 6, 7], 1, "a", 0)]
    prints = {TrajectoryDataset([example]).fingerprint() for example in (base, *others)}
    assert len(prints) == 4
    assert TrajectoryDataset([base]).fingerprint() in prints


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([Example([1, 2], 0, "a")], "leaves no prompt"),
        ([Example([1, 2], 2, "a")], "no response"),
        ([Example([1, 2], 1, "a", 2)], "outcome must be 0, 1 or None, found 2"),
        ([Example([1, 2], 1, "a", 1), Example([1, 2], 1, "a")], "1 of 2 examples have no outcome"),
        ([Example([1, 2], 1, "a", step_label=2), Example([1, 2], 1, "a")], "1 of 2 examples have no step_label"),
        ([Example([1, 2], 1, "a", step_ids=[0]), Example([1, 2], 1, "a")], "1 of 2 examples have step_ids"),
        ([Example([1, 2], 1, "a", step_ids=[0, 0])], "2 step_ids for 1 response tokens"),
    ],
)
def test_dataset_refuses(examples: list[Example], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrajectoryDataset(examples)


def test_collate_pads_right_and_keeps_fields() -> None:
    dataset = TrajectoryDataset(
        [
            Example([5, 6, 7], 1, "a", 1, step_ids=[0, -1], step_label=-1, true_values=[0.5, 0.25]),
            Example([8, 9, 10, 11], 3, "b", 0, step_ids=[0], step_label=0),
        ]
    )
    batch = collate(dataset, [1, 0], pairs=[(1, 0)])
    assert batch.input_ids.tolist() == [[8, 9, 10, 11], [5, 6, 7, 0]]
    assert batch.lengths.tolist() == [4, 3] and batch.response_starts.tolist() == [3, 1]
    assert batch.index.tolist() == [1, 0] and batch.group_ids is not None and batch.group_ids.tolist() == [1, 0]
    assert batch.outcomes is not None and batch.outcomes.tolist() == [0.0, 1.0]
    assert batch.step_ids is not None and batch.step_ids.tolist() == [[0, -1], [0, -1]]
    assert batch.step_labels is not None and batch.step_labels.tolist() == [0, -1]
    assert batch.true_values is not None
    assert torch.equal(torch.isnan(batch.true_values), torch.tensor([[True, True], [False, False]]))
    assert batch.pairs is not None and batch.pairs.tolist() == [[1, 0]]
    assert (batch.count("sequences"), batch.count("tokens"), batch.count("pairs")) == (2, 3, 1)


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(3, 60), min_size=4, max_size=60),
    per_process=st.integers(1, 9),
    world=st.integers(1, 4),
    max_tokens=st.integers(10, 150),
    seed=st.integers(0, 3),
)
def test_window_properties(lengths: list[int], per_process: int, world: int, max_tokens: int, seed: int) -> None:
    dataset = make_dataset(lengths)
    options: dict[str, Any] = {
        "batch_size": per_process * world,
        "max_tokens": max_tokens,
        "seed": seed,
        "world_size": world,
    }
    ranks = [list(WindowLoader(dataset, rank=rank, **options)) for rank in range(world)]
    seen: list[int] = []
    for number, shares in enumerate(zip(*ranks, strict=True)):
        assert len({len(share.micro_batches) for share in shares}) == 1 and shares[0].micro_batches
        batches = [batch for share in shares for batch in counted(share)]
        for batch in batches:
            assert len(batch.lengths) == 1 or batch.input_ids.numel() <= max_tokens
        units: tuple[Unit, ...] = ("sequences", "tokens", "pairs")
        for unit in units:
            assert all(share.counts[unit] == sum(batch.count(unit) for batch in batches) for share in shares)
        for unit in units[:2]:
            assert sum(part for share in shares for part in share.shares(unit)) == pytest.approx(1)
        in_window = [row for batch in batches for row in batch.index.tolist()]
        assert len(in_window) <= per_process * world
        assert number == len(ranks[0]) - 1 or len(in_window) == per_process * world
        seen += in_window
    assert sorted(seen) == list(range(len(lengths)))
    assert len(ranks[0]) == len(WindowLoader(dataset, rank=0, **options))


def test_windows_hold_the_same_examples_for_any_number_of_processes() -> None:
    def contents(world: int) -> list[set[int]]:
        ranks = [
            rows(list(WindowLoader(make_dataset(LENGTHS), batch_size=8, max_tokens=60, rank=r, world_size=world)))
            for r in range(world)
        ]
        return [set(itertools.chain.from_iterable(itertools.chain.from_iterable(w))) for w in zip(*ranks, strict=True)]

    assert contents(1) == contents(2) == contents(4)


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def epochs(seed: int) -> list[list[list[list[int]]]]:
        loader = WindowLoader(make_dataset(LENGTHS), batch_size=8, max_tokens=60, seed=seed)
        return [rows(list(loader)) for _ in range(3)]

    first = epochs(0)
    assert first == epochs(0) and first != epochs(1)
    assert first[0] != first[1] != first[2]
    loader = WindowLoader(make_dataset(LENGTHS), batch_size=8, max_tokens=60)
    loader.sampler.set_epoch(2)
    assert rows(list(loader)) == first[2]


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(0)
    random.seed(0)
    before = (torch.get_rng_state(), random.getstate())
    list(WindowLoader(make_dataset(LENGTHS), batch_size=8, max_tokens=60))
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()


def _loader(num_workers: int) -> WindowLoader:
    return WindowLoader(make_dataset(LENGTHS), batch_size=8, max_tokens=60, seed=3, num_workers=num_workers)


@pytest.mark.parametrize("evaluating", [False, True])
def test_workers_outlive_a_signal_to_stop_that_all_processes_are_sent(evaluating: bool) -> None:
    dataset = make_dataset(LENGTHS)
    loader: Any = EvalLoader(dataset, max_tokens=60, num_workers=1) if evaluating else _loader(1)
    found = iter(loader)
    first = next(found)  # the worker has started
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    for signum in (signal.SIGTERM, signal.SIGINT):
        os.kill(worker.pid, signum)
    assert len([first, *found]) == len(loader)


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux alone")
def test_workers_share_the_data_with_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they do not where they are started anew, which is what Python does from 3.14 on: the data is sent to them."""
    monkeypatch.setattr(TrajectoryDataset, "__reduce__", lambda self: pytest.fail("the data was copied"))
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        assert len(list(_loader(1))) == 7
    finally:
        multiprocessing.set_start_method(before, force=True)


@pytest.mark.parametrize(("num_workers", "stop"), [(0, 0), (0, 3), (0, 6), (0, 7), (0, 9), (2, 3), (2, 9)])
def test_goes_on_exactly_where_it_stopped(num_workers: int, stop: int) -> None:
    loader = _loader(0)
    assert len(loader) == 7
    expected = [window for _ in range(3) for window in rows(list(loader))]
    stopped = _loader(num_workers)
    seen = _take(stopped, stop)
    state = json.loads(json.dumps(stopped.state_dict()))  # primitives only
    resumed = _loader(num_workers)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    seen += _take(resumed, 21 - stop)
    assert rows(seen) == expected


def _take(loader: WindowLoader, count: int) -> list[Window]:
    """So many windows, over as many epochs as it takes, and not one more."""
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    return list(itertools.islice(epochs, count))


def test_an_iteration_that_was_left_starts_again() -> None:
    loader = _loader(0)
    first = rows([next(iter(loader))])
    assert rows([next(iter(loader))]) == first


def test_state_of_other_data_is_refused() -> None:
    state = _loader(0).state_dict()
    other = WindowLoader(make_dataset(LENGTHS[1:]), batch_size=8, max_tokens=60, seed=3)
    with pytest.raises(ValueError, match="saw training data"):
        other.load_state_dict(state)
    for seed, batch_size, name in ((4, 8, "seed was 3, is 4"), (3, 6, "batch_size was 8, is 6")):
        loader = WindowLoader(make_dataset(LENGTHS), batch_size=batch_size, max_tokens=60, seed=seed)
        with pytest.raises(ValueError, match=name):
            loader.load_state_dict(state)
    options: dict[str, Any] = {"batch_size": 2, "max_tokens": 60}
    paired, turned = (
        WindowLoader(make_dataset(LENGTHS), pairs=pairs, **options) for pairs in ([(0, 1), (2, 3)], [(0, 1), (3, 2)])
    )
    paired.load_state_dict(paired.state_dict())
    with pytest.raises(ValueError, match=r"saw training data .*, pairs .*, this run has .*, pairs "):
        turned.load_state_dict(paired.state_dict())


def test_state_goes_on_with_another_number_of_processes() -> None:
    whole = [set(itertools.chain.from_iterable(window)) for window in rows(list(_loader(0)))]
    loader = _loader(0)
    _take(loader, 3)
    state = loader.state_dict()
    parts = []
    for rank in range(2):
        part = WindowLoader(make_dataset(LENGTHS), batch_size=8, max_tokens=60, seed=3, rank=rank, world_size=2)
        part.load_state_dict(state)
        parts.append(rows(list(part)))
    resumed = [set(itertools.chain(*a, *b)) for a, b in zip(*parts, strict=True)]
    assert resumed == whole[3:]


def test_last_window_and_sizes_that_cannot_work() -> None:
    nine = make_dataset([5] * 9)
    assert [w.counts["sequences"] for w in WindowLoader(nine, batch_size=4, max_tokens=99)] == [4, 4, 1]
    two = WindowLoader(nine, batch_size=4, max_tokens=99, world_size=2)
    assert [w.counts["sequences"] for w in two] == [4, 4, 1]
    with pytest.raises(ValueError, match="not a multiple of the 2 processes"):
        WindowSampler(np.array([5] * 9), batch_size=3, max_tokens=99, world_size=2)
    with pytest.raises(ValueError, match="1 training examples cannot be shared by 2"):
        WindowSampler(np.array([5]), batch_size=2, max_tokens=99, world_size=2)
    with pytest.raises(ValueError, match="1 training pairs cannot be shared by 2"):
        WindowSampler(np.array([5, 5]), batch_size=2, max_tokens=99, pairs=[(0, 1)], world_size=2)
    assert WindowSampler([5, 5], batch_size=2, max_tokens=99, world_size=2).windows() in ([[[0], [1]]], [[[1], [0]]])
    assert len(EvalLoader(make_dataset([5, 5]), max_tokens=99, world_size=2)) == 1
    assert WindowSampler([5], batch_size=1, max_tokens=1).windows() == [[[0]]]
    for sizes in ({"batch_size": 0, "max_tokens": 9}, {"batch_size": 1, "max_tokens": 0}):
        with pytest.raises(ValueError, match="must be positive"):
            WindowSampler([5], **sizes)


def test_a_window_is_sorted_by_length() -> None:
    """Else its micro-batches would be of padding more than of tokens."""
    sampler = WindowSampler(LENGTHS, batch_size=13, max_tokens=60)
    for window in sampler.windows():
        lengths = [LENGTHS[row] for batch in window for row in batch]
        assert len(window) > 1 and lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize(
    ("batches", "halved"),
    [
        ([[50, 50], [20] * 8, [200]], 1),  # of 100, 160 and 200 padded tokens, the last of one row
        ([[50, 50], [10] * 4, [200]], 0),
        ([[50, 2], [10] * 9, [200]], 0),
    ],
)
def test_the_largest_batch_of_several_rows_is_halved(batches: list[list[int]], halved: int) -> None:
    lengths = [length for batch in batches for length in batch]
    rows = iter(range(len(lengths)))
    items = [[[next(rows)] for _ in batch] for batch in batches]
    split = split_to_multiple(items, lengths, 4)
    half = len(batches[halved]) // 2
    assert split == [*items[:halved], items[halved][:half], items[halved][half:], *items[halved + 1 :]]


def test_lengths_may_be_a_list() -> None:
    found = [WindowSampler(kind([3, 4, 5]), batch_size=2, max_tokens=9).windows() for kind in (list, np.array)]
    assert found[0] == found[1]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(3, 40), min_size=4, max_size=30),
    world=st.integers(1, 2),
    max_tokens=st.integers(10, 150),
    data=st.data(),
)
def test_pair_windows(lengths: list[int], world: int, max_tokens: int, data: st.DataObject) -> None:
    every = list(itertools.permutations(range(len(lengths)), 2))
    pairs = data.draw(st.lists(st.sampled_from(every), min_size=2, max_size=25))
    dataset = make_dataset(lengths)
    ranks = [
        list(WindowLoader(dataset, batch_size=4, max_tokens=max_tokens, pairs=pairs, rank=rank, world_size=world))
        for rank in range(world)
    ]
    seen = []
    for shares in zip(*ranks, strict=True):
        batches = [batch for share in shares for batch in counted(share)]
        for batch in batches:
            assert batch.pairs is not None
            index = batch.index.tolist()
            assert len(index) == len(set(index))  # a row that several pairs use is there once
            assert batch.input_ids.numel() <= max_tokens or len(batch.pairs) == 1
            seen += [(index[chosen], index[rejected]) for chosen, rejected in batch.pairs.tolist()]
        assert shares[0].counts["pairs"] == sum(batch.count("pairs") for batch in batches)
        assert shares[0].counts["sequences"] == sum(batch.count("sequences") for batch in batches)
    assert sorted(seen) == sorted(pairs)


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(3, 60), min_size=4, max_size=60),
    world=st.integers(1, 4),
    max_tokens=st.integers(10, 300),
)
def test_evaluation_loses_nothing_and_repeats_nothing(lengths: list[int], world: int, max_tokens: int) -> None:
    dataset = make_dataset(lengths)
    ranks = [list(EvalLoader(dataset, max_tokens=max_tokens, rank=r, world_size=world)) for r in range(world)]
    assert len({len(batches) for batches in ranks}) == 1 and ranks[0]
    batches = [batch for share in ranks for batch in share]
    assert sorted(row for batch in batches for row in batch.index.tolist()) == list(range(len(lengths)))
    over = [batch for batch in batches if len(batch.lengths) > 1 and batch.input_ids.numel() > max_tokens]
    if len(lengths) % world == 0:
        assert not over
    assert len(over) < world


def test_evaluation_batches_are_full() -> None:
    dataset = make_dataset([10] * 40)
    assert len(EvalLoader(dataset, max_tokens=100)) == math.ceil(40 / 10)
    with pytest.raises(ValueError, match="1 examples cannot be shared by 2"):
        EvalLoader(make_dataset([5]), max_tokens=99, world_size=2)


@pytest.mark.parametrize("world", [1, 2])
def test_a_limited_evaluation_is_of_examples_of_all_lengths(world: int) -> None:
    dataset = make_dataset([3 + i for i in range(400)])
    loaders = [EvalLoader(dataset, max_tokens=1200, rank=rank, world_size=world) for rank in range(world)]
    for number in range(len(loaders[0])):  # of like length at the same time, or one process waits for the other
        together = sorted(dataset.lengths[row] for loader in loaders for row in loader.batches[number])
        assert together == list(range(together[0], together[-1] + 1))
    share = [row for loader in loaders for batch in loader.batches[: len(loader) // 4] for row in batch]
    # a quarter of all in blocks of like length: a mean of 202.5, with a standard error of at most 20
    assert abs(dataset.lengths[share].mean() - 202.5) < 50
    assert [loader.batches for loader in loaders] == [
        EvalLoader(dataset, max_tokens=1200, rank=rank, world_size=world).batches for rank in range(world)
    ]
