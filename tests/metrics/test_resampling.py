from __future__ import annotations

import random

import pytest
import torch

from ipvrm_lightning.metrics.resampling import (
    assign_folds,
    basic_interval,
    bootstrap_weights,
    joint_bootstrap_weights,
    percentile_interval,
    seed_of,
)


def test_folds_keep_problems_together_are_even_and_ignore_the_order() -> None:
    keys = [f"p{index % 23}" for index in range(60)]
    folds = assign_folds(keys, folds=5, seed=0).tolist()
    of_key = dict(zip(keys, folds, strict=True))
    assert [of_key[key] for key in keys] == folds
    sizes = [list(of_key.values()).count(fold) for fold in range(5)]
    assert sorted(sizes) == [4, 4, 5, 5, 5]
    shuffled = keys[:]
    random.Random(0).shuffle(shuffled)
    assert assign_folds(shuffled, folds=5, seed=0).tolist() == [of_key[key] for key in shuffled]
    assert assign_folds(keys, folds=5, seed=1).tolist() != folds


def test_a_resample_draws_as_many_keys_as_there_are_and_whole_ones() -> None:
    keys = ["a", "b", "b", "c"]
    weights = bootstrap_weights(keys, resamples=50, seed=0)
    assert weights.shape == (50, 4)
    assert torch.equal(weights[:, 1], weights[:, 2])
    assert torch.equal(weights[:, [0, 1, 3]].sum(1), torch.full((50,), 3.0, dtype=torch.float64))


def test_a_key_of_several_subsets_counts_as_often_in_each() -> None:
    keys = {"a": ["x", "y", "z", "x"], "b": ["y", "x", "w", "v"], "c": ["u", "t"]}
    found = joint_bootstrap_weights(keys, resamples=50, seed=3)
    # no other subset has a key of c, which draws as it does alone
    assert set(found) == {"a", "b"} and all(weights.shape == (50, 4) for weights in found.values())
    a, b = found["a"], found["b"]
    assert torch.equal(a[:, 0], b[:, 1]) and torch.equal(a[:, 1], b[:, 0]) and torch.equal(a[:, 0], a[:, 3])
    assert torch.equal(a[:, :2].sum(1), torch.full((50,), 2.0, dtype=torch.float64))
    assert torch.equal(b[:, 2:], bootstrap_weights(["w", "v"], resamples=50, seed=seed_of(("b",), 3)))
    assert (a[:, 2] == 1).all()
    assert joint_bootstrap_weights({"a": ["x"], "b": ["y"]}, resamples=5, seed=0) == {}


def test_the_interval_holds_the_middle_share() -> None:
    draws = torch.cat((torch.arange(101, dtype=torch.float64), torch.tensor([float("nan")], dtype=torch.float64)))
    assert percentile_interval(draws, 0.9) == pytest.approx((5.0, 95.0))
    nothing = percentile_interval(torch.full((5,), float("nan")), 0.9)
    assert nothing.low != nothing.low


def test_the_basic_interval_is_the_percentiles_mirrored_at_the_estimate_within_0_and_1() -> None:
    draws = torch.linspace(0.4, 0.8, 101, dtype=torch.float64)
    assert percentile_interval(draws, 0.9) == pytest.approx((0.42, 0.78))
    assert basic_interval(0.5, draws, 0.9) == pytest.approx((0.22, 0.58))
    assert basic_interval(0.3, draws, 0.9) == pytest.approx((0.0, 0.18))
    assert basic_interval(0.75, draws, 0.9) == pytest.approx((0.72, 1.0))
    nothing = basic_interval(0.5, torch.full((5,), float("nan")), 0.9)
    assert nothing.low != nothing.low and nothing.high != nothing.high
