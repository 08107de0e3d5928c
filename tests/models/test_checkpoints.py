from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from ipvrm_lightning.models.checkpoints import check_same_settings, newest_checkpoint, optimizer_class
from ipvrm_lightning.objectives import IPVRM, ImplicitPRM


def test_settings_that_agree_or_are_not_mentioned_pass() -> None:
    own = {"objective": IPVRM().describe(), "optimizer": "torch.optim.adamw.AdamW"}
    check_same_settings(own, own, what="the checkpoint")
    check_same_settings(own, {}, what="the checkpoint")
    check_same_settings(own, {"objective": IPVRM().describe()}, what="the checkpoint")


def test_the_first_difference_is_named_class_before_numbers() -> None:
    own = {"objective": IPVRM().describe()}
    with pytest.raises(ValueError, match=r"objective.init_args.margin is 1.0 there and 5.0 here"):
        check_same_settings(own, {"objective": IPVRM(margin=1.0).describe()}, what="the checkpoint")
    with pytest.raises(ValueError, match=r"objective.class_path is .*ImplicitPRM there and .*IPVRM here"):
        check_same_settings(own, {"objective": ImplicitPRM().describe()}, what="the checkpoint")
    with pytest.raises(ValueError, match=r"reward.update is absent there and before here"):
        check_same_settings({"reward": {"update": "before"}}, {"reward": None}, what="the checkpoint")
    with pytest.raises(ValueError, match=r"reward.update is before there and absent here"):
        check_same_settings({"reward": None}, {"reward": {"update": "before"}}, what="the checkpoint")


def test_an_export_in_place_of_a_run_is_told_from_a_folder_without_runs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^--ckpt_path last: no checkpoint under .*; run `ipvrm fit` first$"):
        newest_checkpoint(tmp_path, what="--ckpt_path last")
    (tmp_path / "ipvrm_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"is what `ipvrm export` wrote; give the checkpoint that it was made"):
        newest_checkpoint(tmp_path, what="--ckpt_path last")


def test_optimizer_class_is_that_of_what_the_factory_makes() -> None:
    assert (
        optimizer_class(partial(torch.optim.SGD, lr=0.1), {"bias": torch.nn.Parameter(torch.zeros(1))})
        == "torch.optim.sgd.SGD"
    )
    if hasattr(torch.optim, "Muon"):  # torch 2.9
        muon = optimizer_class(torch.optim.Muon, {"weight": torch.nn.Parameter(torch.zeros(2, 2))})
        assert muon == "torch.optim.Muon"
    assert optimizer_class(torch.optim.AdamW, {}) is None
