"""`RunRecord`: what is needed to repeat a run, beside its results."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

_PACKAGES = ("ipvrm_lightning", "torch", "transformers", "lightning", "torchmetrics", "peft", "bitsandbytes")


class RunRecord(Callback):
    """Writes `run.json` to the run's folder when it starts: command, seed, versions, machine and time."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the record, on the first process, unless it is a trial run."""
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # asks all processes
        if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "run.json").write_text(json.dumps(run_facts(), indent=2) + "\n", encoding="utf-8")


def run_facts() -> dict[str, Any]:
    """What is needed to repeat a run: command, seed, versions, machine and time."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    return {
        "command": sys.argv,
        "seed": None if seed is None else int(seed),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "platform": platform.platform(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        # run from a source tree that is not installed
        return None
