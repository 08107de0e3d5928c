"""Names of settings, and which of them tell runs apart."""

from __future__ import annotations

from typing import Any

import pytest

from ipvrm_lightning.comparing.settings import (
    OBJECTIVE,
    differing_as_well,
    differing_within,
    named_setting,
    short_names,
    telling_settings,
)
from ipvrm_lightning.config_keys import flatten

OPTIMIZER = "model.init_args.optimizer"
REWARD = "model.init_args.reward"


def test_configs_by_dotted_key() -> None:
    config = {"a": {"b": {"c": 1, "none": None}, "list": [1, "x"]}, "d": "text", "e": 0.5, "f": False}
    expected = {"a.b.c": 1, "a.b.none": None, "a.list": '[1, "x"]', "d": "text", "e": 0.5, "f": False}
    assert flatten(config) == expected


def test_short_names_are_the_fewest_last_parts_that_tell_keys_apart() -> None:
    keys = [f"{OPTIMIZER}.init_args.lr", f"{REWARD}.optimizer.init_args.lr", "data.init_args.seed", OBJECTIVE]
    assert list(short_names(keys).values()) == ["model.optimizer.lr", "reward.optimizer.lr", "seed", "objective"]


def test_a_setting_is_named_by_its_key_or_its_last_parts() -> None:
    runs: list[dict[str, Any]] = [
        {"seed": 0, "data.init_args.seed": 1, "data.init_args.size": 5, "trainer.devices": 1},
        {"seed": 0, "data.init_args.seed": 2, "model.init_args.size": 5, "trainer.devices": 2},
    ]
    assert named_setting("seed", runs) == "seed"  # its whole key, though another ends so
    assert named_setting("data.seed", runs) == named_setting("data.init_args.seed", runs) == "data.init_args.seed"
    with pytest.raises(ValueError, match=r"--by size: could be data.init_args.size, model.init_args.size; give one"):
        named_setting("size", runs)
    # what says how a run is carried out is none of the settings they differ in
    with pytest.raises(ValueError, match=r"no run has such .*; they differ in data.seed, data.size, model.size$"):
        named_setting("eed", runs)
    with pytest.raises(ValueError, match=r"they differ in none$"):
        named_setting("eed", runs[:1])


def test_the_fewest_settings_tell_runs_apart_classes_first_then_arguments_of_the_objective() -> None:
    margin = OBJECTIVE.replace("class_path", "init_args.margin")
    first = {"data.x": 1, margin: 1, f"{OPTIMIZER}.class_path": "A", OBJECTIVE: "IPVRM", "seed_everything": 1}
    same = {**first, "seed_everything": 2, "model.init_args.reward_seed": 3}
    assert telling_settings([first, same]) == [OBJECTIVE]
    # all three would do
    other = {**first, "data.x": 2, margin: 2, f"{OPTIMIZER}.class_path": "B"}
    assert telling_settings([first, other]) == [OBJECTIVE, f"{OPTIMIZER}.class_path"]
    assert telling_settings([first, {**first, "data.x": 2, margin: 2}]) == [OBJECTIVE, margin]
    assert telling_settings([first, {**first, "data.x": 2}, {**first, margin: 2}]) == [OBJECTIVE, margin, "data.x"]
    assert telling_settings([first, {**first, OBJECTIVE: None}]) == [OBJECTIVE]
    assert telling_settings([{"data.x": 1}]) == ["model.class_path"]


def test_what_differs_as_well_is_named_once_and_without_arguments_of_other_classes() -> None:
    beta = OBJECTIVE.replace("class_path", "init_args.beta")
    one = {OBJECTIVE: "IPVRM", beta: 10, "data.init_args.pairwise": False, "data.init_args.seed": 0}
    other = {OBJECTIVE: "DPORM", beta: 0.05, "data.init_args.pairwise": True, "data.init_args.seed": 1}
    assert differing_as_well([one, other], [OBJECTIVE]) == ["data.pairwise"]
    assert differing_as_well([one, {**one, beta: 1}], []) == ["model.objective.beta"]
    # of what one run lacks altogether, the whole is named
    rewarded = {**one, f"{REWARD}.class_path": "RewardModel", f"{REWARD}.init_args.update": "before"}
    plain = {**one, REWARD: None}
    assert differing_as_well([rewarded, plain], []) == ["model.reward"]
    assert differing_as_well([rewarded, plain], [f"{REWARD}.class_path"]) == []
    assert differing_within([[one, other], [rewarded, plain], [one]]) == [
        "model.objective", "model.objective.beta", "data.pairwise", "data.seed", "model.reward", "model.reward.update",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "counts"),
    [
        ("trainer.max_epochs", True),
        ("trainer.devices", False),
        ("trainer.callbacks", False),
        ("data.init_args.num_workers", False),
        ("model.init_args.reference.init_args.cache_dir", False),
        ("test.data.init_args.test", True),
        ("optimizer", False),
    ],
)
def test_how_a_run_is_carried_out_is_no_setting(key: str, counts: bool) -> None:
    assert differing_within([[{key: 1}, {key: 2}]]) == ([key.replace(".init_args", "")] if counts else [])


@pytest.mark.parametrize(
    "key",
    [
        *("data.init_args.max_tokens", "test.data.init_args.max_tokens", "model.init_args.chunk_size"),
        *("model.init_args.eval_batch_size", "model.init_args.update.max_tokens"),
        *("model.init_args.collecting.batch_size", "model.init_args.language_model.init_args.gradient_checkpointing"),
    ],
)
def test_seeds_are_of_one_setting_if_one_of_them_went_on_with_less_memory(key: str) -> None:
    owner = key.rpartition(".init_args.")[0]
    runs = [{f"{owner}.class_path": "ipvrm_lightning.One", key: value} for value in (1, 2)]
    assert telling_settings([{**run, "model.class_path": "ipvrm_lightning.One"} for run in runs]) == [
        "model.class_path"
    ]
    assert differing_within([runs]) == []
    assert named_setting(key.rpartition(".")[2], runs) == key  # `--by` finds it
    # in another's class it may mean anything
    assert differing_within([[{**run, f"{owner}.class_path": "their.One"} for run in runs]]) != []
    batches = {"data.class_path": "ipvrm_lightning.One", "data.init_args.batch_size": 1}
    assert differing_within([[batches, {**batches, "data.init_args.batch_size": 2}]]) == ["data.batch_size"]
