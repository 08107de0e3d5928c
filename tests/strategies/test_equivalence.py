"""Under every strategy that a CPU can run, two processes give the numbers of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from . import cases
from .cases import BY_STRATEGY, CASES, RESUMED, language_model

PAIRS = [(strategy, name) for strategy, names in BY_STRATEGY.items() for name in names]
Runs = dict[str, Path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A folder of results for one process, and one for each strategy on two."""
    root = tmp_path_factory.mktemp("runs")
    folders = {name: root / name for name in ("one", *BY_STRATEGY)}
    for folder in folders.values():
        folder.mkdir()
    for name in CASES:
        cases.run(name, folders["one"])
    model = language_model(seed=5).build_model()
    model.generation_config = GenerationConfig(eos_token_id=[3, 7])
    model.save_pretrained(root / "model", max_shard_size="20KB")
    cases.on_two_processes(root)
    for name in RESUMED:
        cases.run(name, folders["one"], resume=folders["fsdp2"])
    return folders


def load(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(folder / f"{name}.pt", weights_only=True)


def assert_same_numbers(first: Any, second: Any, where: str = "") -> None:
    """Equal but for rounding: counts and choices exactly, thresholds and scores to 1e-5."""
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key, value in first.items():
            assert_same_numbers(value, second[key], f"{where}/{key}")
    elif isinstance(first, list):
        assert len(first) == len(second), where
        for place, pair in enumerate(zip(first, second, strict=True)):
            assert_same_numbers(*pair, f"{where}/{place}")
    elif isinstance(first, float):
        assert second == pytest.approx(first, abs=1e-5, rel=1e-5), where
    else:
        assert first == second, where


@pytest.mark.parametrize(("strategy", "name"), PAIRS)
def test_ten_steps_have_the_losses_of_one_process(strategy: str, name: str, runs: Runs) -> None:
    one, two = load(runs["one"], name), load(runs[strategy], name)
    assert (
        len(one["steps"]) == cases.STEPS
        and len({step[key] for step in one["steps"] for key in step if "loss" in key}) > 9
    )
    for number, (first, second) in enumerate(zip(one["steps"], two["steps"], strict=True)):
        assert first.keys() == second.keys()
        for key, value in first.items():
            # a token whose ratio lies on the bound of the clip may fall on either side of it
            bound = 1e-3 if "clipped" in key else 1e-5
            assert second[key] == pytest.approx(value, abs=bound, rel=0 if "loss" in key else 1e-5), (number, key)


@pytest.mark.parametrize(("strategy", "name"), PAIRS)
def test_metrics_and_reports_are_those_of_one_process(strategy: str, name: str, runs: Runs) -> None:
    one, two = load(runs["one"], name), load(runs[strategy], name)
    metrics = [{k: v for k, v in found["metrics"].items() if "second" not in k} for found in (one, two)]
    assert any(key.startswith("val/") for key in metrics[0]) and bool(one["reports"]) == (name != "sft")
    assert_same_numbers(metrics[0], metrics[1])
    assert_same_numbers(one["reports"], two["reports"])


@pytest.mark.parametrize(("strategy", "name"), PAIRS)
def test_weights_are_those_of_one_process(strategy: str, name: str, runs: Runs) -> None:
    one, two = load(runs["one"], name), load(runs[strategy], name)
    assert one["state"].keys() == two["state"].keys() and one["state"]
    for key, value in one["state"].items():
        torch.testing.assert_close(two["state"][key], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", BY_STRATEGY["fsdp2"])
def test_a_process_holds_its_share_of_the_model(name: str, runs: Runs) -> None:
    assert load(runs["one"], name)["share"] == 1.0
    # the frozen reference too
    assert load(runs["fsdp2"], name)["copies"] == (2 if name in ("ipvrm", "ipvrm compiled", "distrl") else 0)
    assert load(runs["fsdp2"], name)["share"] == pytest.approx(0.5, abs=0.02)  # 97 rows are 49 and 48


def test_no_process_holds_a_copy_whose_values_are_cached(runs: Runs) -> None:
    assert [load(runs[strategy], "ipvrm cached")["copies"] for strategy in ("one", "ddp", "fsdp2")] == [0, 0, 0]
    assert load(runs["ddp"], "ipvrm")["copies"] == 2


@pytest.mark.parametrize("name", RESUMED)
def test_checkpoints_go_over_between_one_process_and_shards(name: str, runs: Runs) -> None:
    """One process goes on from the file that shards wrote, and shards from the file that one process wrote."""
    whole = load(runs["one"], name)
    for folder in ("one", "fsdp2"):
        resumed = load(runs[folder], f"{name} resumed")
        count = len(resumed["steps"])
        assert 0 < count < len(whole["steps"])
        for first, second in zip(whole["steps"][-count:], resumed["steps"], strict=True):
            assert second == pytest.approx(first, abs=1e-5, rel=1e-5)
        for key, value in whole["state"].items():
            torch.testing.assert_close(resumed["state"][key], value, rtol=0, atol=1e-5)


def test_a_checkpoint_of_shards_holds_what_one_process_would_have_written(runs: Runs) -> None:
    for name in RESUMED:
        one, two = (
            torch.load(runs[folder] / f"{name}.ckpt", map_location="cpu", weights_only=True)
            for folder in ("one", "fsdp2")
        )
        assert one.keys() == two.keys()
        for first, second in zip(one["optimizer_states"], two["optimizer_states"], strict=True):
            assert first["param_groups"] == second["param_groups"]
            assert first["state"].keys() == second["state"].keys() and first["state"]
        shapes = [{key: value.shape for key, value in found["state_dict"].items()} for found in (one, two)]
        assert shapes[0] == shapes[1]
