"""`RunRecord`: what is needed to repeat a run, beside its results."""

from __future__ import annotations

import os
import platform
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ipvrm_lightning.run_folders import write_record

_PACKAGES = ("ipvrm_lightning", "transformers", "lightning", "torchmetrics", "peft", "bitsandbytes")


class RunRecord(Callback):
    """Writes `run.json` to the run's folder: command, config, seed, versions, machine and time; and when it has ended.

    Args:
        config: fingerprint of the run's config, by which a run that was killed is found again.
    """

    def __init__(self, config: str | None = None) -> None:
        self.config = config

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the record, on the first process, unless it is a trial run."""
        self._write(trainer, {**run_facts(), "config": self.config, "ended": None})

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that the run has ended: the same command starts a new one."""
        self._write(trainer, {"ended": _now()})

    def _write(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # every process takes part in asking for it
        if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            write_record(folder, facts)


def run_facts() -> dict[str, Any]:
    """What is needed to repeat a run: command, seed, versions, machine and time."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    # a package's metadata does not say which build of torch it is
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    return {
        "command": sys.argv,
        "seed": None if seed is None else int(seed),
        "versions": {**versions, **{name: _version(name) for name in _PACKAGES}},
        "platform": platform.platform(),
        "time": _now(),
    }


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        # run from a source tree that is not installed
        return None
