"""The overlays for modules that optimise automatically, FSDP1 and DeepSpeed, train one on a GPU and go on with it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.demos.boring_classes import BoringModel

from ..conftest import REPOSITORY

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Automatic(BoringModel):
    """Optimised by the trainer. With Adam: Lightning cannot read states of FSDP1's optimisers that have none."""

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())


def fit(folder: Path, overlay: str, epochs: int, *options: str) -> str:
    """Train by the command line in a process of its own, for neither strategy can be left in this one."""
    config = {
        "model": {"class_path": f"{__name__}.Automatic"},
        "data": {"class_path": "lightning.pytorch.demos.boring_classes.BoringDataModule"},
        "trainer": {"limit_train_batches": 4, "limit_val_batches": 1, "default_root_dir": str(folder / "runs")},
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(config))
    configs = ["--config", str(folder / "own.yaml"), "--config", str(REPOSITORY / "configs" / "strategy" / overlay)]
    command = [sys.executable, "-m", "ipvrm_lightning", "fit", *configs, "--trainer.max_epochs", str(epochs), *options]
    paths = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, "--trainer.devices", "1"],
        cwd=folder, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "overlay",
    [
        "fsdp.yaml",
        pytest.param(
            "deepspeed_zero3.yaml", marks=pytest.mark.skipif(not find_spec("deepspeed"), reason="needs deepspeed")
        ),
    ],
)
def test_a_module_that_optimises_automatically_trains(overlay: str, tmp_path: Path) -> None:
    assert "`max_epochs=2` reached" in fit(tmp_path, overlay, epochs=2)
    (last,) = tmp_path.glob("runs/*-fit/checkpoints/last.ckpt")
    more = fit(tmp_path, overlay, 3, "--ckpt_path", str(last))
    assert "Restoring states from the checkpoint" in more and "`max_epochs=3` reached" in more
