from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from ipvrm_lightning.config_notes import config_notes
from ipvrm_lightning.lightning_cli import IPVRMCLI

from .conftest import REPOSITORY


def notes(monkeypatch: pytest.MonkeyPatch, config: str, *options: str) -> list[str]:
    """Of a config as the command line parses it."""
    monkeypatch.setattr(sys, "argv", ["ipvrm", "fit"])
    parser: Any = IPVRMCLI.parsers()["fit"]
    parsed = parser.parse_args(["--config", str(REPOSITORY / "configs" / config), *options])
    return list(config_notes(json.loads(parser.dump(parsed, format="json"))))


def test_what_another_class_has_kept_of_the_earlier_one_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--model.objective", "ImplicitPRM", "--model.optimizer", "torch.optim.SGD")
    objective, optimizer = notes(monkeypatch, "ipvrm_qwen.yaml", *options)
    assert objective == "objective ImplicitPRM: beta 10.0 (default 0.05)"
    assert optimizer == "optimizer SGD: lr 5e-07 (default 0.001), weight_decay 0.01 (default 0)"


def test_the_reward_model_of_a_policy_has_its_own_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    found = notes(monkeypatch, "distrl_qwen.yaml", "--model.reward.objective", "ImplicitPRM")
    assert [line.partition(" ")[0] for line in found] == ["optimizer", "reward.objective", "reward.optimizer"]
    assert found[1] == "reward.objective ImplicitPRM: beta 10.0 (default 0.05)"
    assert ", betas [0.9, 0.999], " in found[0] and ", amsgrad" not in found[0]  # as the class has them


@pytest.mark.parametrize(
    ("config", "seeds", "told"),
    [
        ("ipvrm_qwen.yaml", (2, 0), "come from data.seed 0"),
        ("distrl_qwen.yaml", (2, 1), "come from data.seed 1, responses from model.sampling.seed 1"),
        ("ipvrm_qwen.yaml", (2, 2), None),
        ("ipvrm_qwen.yaml", (0, 2), None),
    ],
)
def test_a_seed_that_leaves_the_data_as_it_is_says_which_does_not(
    config: str, seeds: tuple[int, int], told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = notes(monkeypatch, config, "--seed_everything", f"{seeds[0]}", "--data.seed", f"{seeds[1]}")
    lines = [line for line in found if line.startswith("seed_everything ")]
    assert len(lines) == (told is not None) and all(line.endswith(str(told)) for line in lines)


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({"class_path": "torch.nn.Identity"}, ["objective Identity"]),
        ({"class_path": "builtins.dict", "init_args": {"lr": 0.5}}, ["objective dict: lr 0.5"]),  # has no signature
        ({"lr": 0.5}, []),
        (None, []),
    ],
)
def test_a_module_of_ones_own_may_have_other_things_under_these_names(chosen: Any, told: list[str]) -> None:
    config = {"seed_everything": 2, "model": {"init_args": {"objective": chosen}}, "data": {"init_args": {}}}
    assert list(config_notes(config)) == told
