"""`ResumePoint`: a checkpoint by the clock, to go on from after a kill."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class ResumePoint(Callback):
    """Saves `checkpoints/resume-<step>.ckpt` every so often, and removes the one before once the new one is whole.

    Lightning's `ModelCheckpoint` leaves `train_time_interval` out of account where a module steps its own optimisers.
    A step that a validation follows is passed over: a run that went on from there would leave the validation out.

    Args:
        minutes: between two checkpoints, by the clock of the first process.
        continues: whether the run goes on from such a checkpoint. What other callbacks had saved after it is then
            written over, under the same names, when its steps are done again.
    """

    def __init__(self, *, minutes: float, continues: bool = False) -> None:
        self.minutes, self.continues = minutes, continues
        self._saved = time.monotonic()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let `ModelCheckpoint` take the run's files for its own, not for those of another run."""
        for callback in trainer.checkpoint_callbacks if self.continues else ():
            if isinstance(callback, ModelCheckpoint):
                callback._enable_version_counter = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is time; called on every process."""
        is_last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        every = trainer.val_check_batch  # None: validation goes by the clock
        validates = every is not None and (batch_idx + 1) % every == 0
        if is_last or validates or getattr(trainer, "fast_dev_run", False):
            return
        if not trainer.strategy.broadcast(time.monotonic() - self._saved >= 60 * self.minutes):
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"
        target = folder / f"resume-{trainer.global_step}.ckpt"
        trainer.save_checkpoint(target)
        if trainer.is_global_zero:
            for earlier in folder.glob("resume-*.ckpt"):
                if earlier != target:
                    trainer.strategy.remove_checkpoint(earlier)
        self._saved = time.monotonic()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what this step logs: it reaches the loggers after the checkpoint, and a kill may come between."""
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        if (step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            values = {name: float(value) for name, value in trainer._logger_connector.metrics["log"].items()}
            checkpoint["logged"] = {**values, "epoch": trainer.current_epoch, "step": step}


def last_step(checkpoint: Path) -> tuple[int, dict[str, float] | None]:
    """The last step that a checkpoint holds, and the row that it logged, None where it logs none."""
    stored = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    return int(stored["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"]), stored.get("logged")
