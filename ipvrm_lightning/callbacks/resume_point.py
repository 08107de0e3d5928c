"""`ResumePoint`: a checkpoint by the clock, to go on from after a kill, and the last one at the end."""

from __future__ import annotations

import time
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from ipvrm_lightning.callbacks.run_files import is_trial, run_folder
from ipvrm_lightning.callbacks.whole_epochs import epoch_is_over


class ResumePoint(Callback):
    """Saves `checkpoints/resume-<step>.ckpt` every so often, and removes the one before once the new one is whole.

    A run that is told to stop (SIGTERM) saves one as well. Lightning's `ModelCheckpoint` leaves `train_time_interval`
    out of account where a module steps its own optimisers. A step that a validation follows is passed over: a run that
    went on from there would leave the validation out.

    When training has ended, `checkpoints/last.ckpt` holds the final weights: `ModelCheckpoint` writes its last one only
    where it also keeps one of its best, so that the end of a run may be in none. Of callbacks it is the first to act
    then: those that average weights put their averages in place of the weights in training.

    Without a logger, runs have one folder: what another one has left there stays, and names get a number (`last-v1`).

    Args:
        minutes: between two checkpoints, by the clock of the first process.
        continues: whether the run goes on from such a checkpoint. What other callbacks had saved after it is then
            written over, under the same names, when its steps are done again.
    """

    def __init__(self, *, minutes: float, continues: bool = False) -> None:
        self.minutes, self.continues = minutes, continues
        self._saved = time.monotonic()
        self._point: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let `ModelCheckpoint` take the run's files for its own, not for those of another run."""
        everyone: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, _LastCheckpoint) for callback in everyone):
            trainer.callbacks = [_LastCheckpoint(self), *everyone]  # type: ignore[attr-defined]
        for callback in trainer.checkpoint_callbacks if self.continues else ():
            if isinstance(callback, ModelCheckpoint):
                callback._enable_version_counter = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; a run that goes on removes what `AtomicCheckpointIO` was writing when it was killed."""
        self._saved, folder = time.monotonic(), _checkpoints(trainer)
        # nobody else writes to the run's folder now
        for part in folder.glob(".*.part") if self.continues and trainer.is_global_zero else ():
            part.unlink()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is time; called on every process."""
        if is_trial(trainer):
            return
        loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
        assert fetcher is not None  # in training
        validates = loop.batch_progress.is_last_batch or loop._should_check_val_fx(fetcher)
        due = trainer.received_sigterm or time.monotonic() - self._saved >= 60 * self.minutes
        # by the first process's clock, by which validation may go too: all save, or none
        if not trainer.strategy.reduce_boolean_decision(trainer.is_global_zero and due and not validates, all=False):
            return
        target = self.own(trainer, _checkpoints(trainer) / f"resume-{trainer.global_step}.ckpt")
        trainer.save_checkpoint(target, weights_only=False)
        self.remove_earlier(trainer, target)
        self._point, self._saved = target, time.monotonic()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep how far the logs are, and what this step has yet to log: a kill may come between."""
        loop, logger = trainer.fit_loop.epoch_loop, trainer.logger
        # a step is counted when its validation is over
        step = loop._batches_that_stepped - epoch_is_over(trainer)
        batches: Any = loop.batch_progress.current
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        pending = None
        if every and (step + 1) % every == 0 and batches.processed > batches.completed:
            values = {name: float(value) for name, value in trainer._logger_connector.metrics["log"].items()}
            pending = {**values, "epoch": trainer.current_epoch, "step": step}
        checkpoint["log"] = {"step": step, "rows": getattr(logger, "rows", 0), "pending": pending}

    def own(self, trainer: Trainer, path: Path, *known: str) -> Path:
        """A path to write to: the one given, or the next like it that no other run has; on each process.

        Args:
            trainer: in training.
            path: of a checkpoint.
            known: paths that the run has written to itself.
        """
        ours = {Path(name).resolve() for name in known if name}
        numbered = (path.with_stem(f"{path.stem}-v{number}") for number in count(1))
        free = (one for one in chain([path], numbered) if self.continues or one.resolve() in ours or not one.exists())
        found: Path = trainer.strategy.broadcast(next(free))
        return found

    def remove_earlier(self, trainer: Trainer, target: Path) -> None:
        """Remove the run's points to go on from, now that another checkpoint is whole."""
        ours = {Path(one).resolve() for one in (self._point, trainer.ckpt_path) if one}
        for earlier in target.parent.glob("resume-*.ckpt") if trainer.is_global_zero else ():
            if earlier != target and (self.continues or earlier.resolve() in ours):
                trainer.strategy.remove_checkpoint(earlier)


class _LastCheckpoint(Callback):
    """What `ResumePoint` does when training has ended; a callback of its own, to stand before all others."""

    def __init__(self, point: ResumePoint) -> None:
        self._point = point
        self._kept = False

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep them where a run went on that had no step left to do, for which Lightning ends no training."""
        if not self._kept:
            self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the final weights as `last.ckpt`; called on every process, and not where training has failed."""
        self._kept = True
        callbacks = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
        known = [one.last_model_path for one in callbacks]
        last = self._point.own(trainer, _checkpoints(trainer) / "last.ckpt", *known)
        written = trial = is_trial(trainer)
        for callback in callbacks:
            ours = Path(callback.dirpath or "").resolve() == last.parent.resolve()
            # one that writes no last ones may name that of the run before
            if callback.save_last and Path(callback.last_model_path).resolve() == last.resolve():
                written |= callback._last_global_step_saved == trainer.global_step
            if ours or trial:
                # else it would put a last one of its own beside ours, and write one in a trial run
                callback.last_model_path = callback._last_checkpoint_saved = str(last)
        if not written:
            trainer.save_checkpoint(last, weights_only=False)
        if not trial:
            self._point.remove_earlier(trainer, last)


def _checkpoints(trainer: Trainer) -> Path:
    """To be called on each process."""
    return run_folder(trainer) / "checkpoints"


class LoggedUntil(NamedTuple):
    """How far the logs were when a checkpoint was saved.

    Args:
        step: the last one that the checkpoint holds.
        rows: of `metrics.csv`.
        pending: the row of that step where it was still to be written.
    """

    step: int
    rows: int
    pending: dict[str, float] | None


def logged_until(checkpoint: Path) -> LoggedUntil:
    """How far the logs were when `ResumePoint` was there and a checkpoint was saved.

    Args:
        checkpoint: file.

    Raises:
        ValueError: it does not say so.
    """
    stored = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    if "log" not in stored:
        raise ValueError(f"{checkpoint}: does not say how far the run's logs were; start anew with --resume never")
    return LoggedUntil(**stored["log"])
