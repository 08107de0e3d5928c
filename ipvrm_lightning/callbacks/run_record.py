"""`RunRecord`: what is needed to repeat a run, beside its results."""

from __future__ import annotations

import os
import platform
import sys
from copy import deepcopy
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import IO, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ipvrm_lightning.callbacks.run_files import run_folder, writes_files
from ipvrm_lightning.run_folders import add_change, hold, write_record

_PACKAGES = ("ipvrm_lightning", "transformers", "lightning", "torchmetrics", "peft", "bitsandbytes")


class RunRecord(Callback):
    """Writes `run.json` to the run's folder: command, config, seed, versions, machine and time; and when it has ended.

    Args:
        config: fingerprint of the run's config, by which a run that was killed is found again.
        settings: what the config says, for every logger of a fit, by which services sort and compare runs.
        change: of a run that goes on with another config, what is otherwise, to be kept; see `run_folders`.
    """

    def __init__(
        self,
        config: str | None = None,
        settings: dict[str, Any] | None = None,
        change: dict[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.settings, self.change = settings or {}, change
        self._held: IO[str] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the record, on the first process, unless it is a trial run; a fit keeps its folder to itself.

        Raises:
            ValueError: another fit writes to the folder.
        """
        folder = run_folder(trainer)
        if not writes_files(trainer):
            return
        folder.mkdir(parents=True, exist_ok=True)
        if stage == "fit" and trainer.loggers and self._held is None:
            self._held = hold(folder)
        write_record(folder, {**run_facts(), "config": self.config, "ended": None})
        if self.change is not None:
            add_change(folder, {"time": _now(), **self.change})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the settings to the loggers, on the first process."""
        for logger in trainer.loggers if trainer.is_global_zero and self.settings else ():
            logger.log_hyperparams(deepcopy(self.settings))  # some keep it, and change what they keep

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that the run has ended: the same command starts a new one."""
        folder = run_folder(trainer)
        if writes_files(trainer):
            write_record(folder, {"ended": _now()})
        self._let_go()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let others go on with the run: the process may live on, as a notebook's does."""
        self._let_go()

    def _let_go(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None


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
