"""`WholeEpochs`: a run that goes on trains on what was left of its epoch, and on no epoch less."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class WholeEpochs(Callback):
    """Corrects what Lightning makes of epochs at the end of a run and at the start of one that goes on.

    A run that stops within an epoch (`max_steps`, a callback) has closed it by the time of its last checkpoints, and
    what goes on from them would leave out the rest of its data. With `max_steps`, a run that goes on after a finished
    epoch takes it up again, finds it done, and counts it twice: the data of the next one would be left out.
    """

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save an epoch that was closed before its end as it was after its last step."""
        if not epoch_is_over(trainer) or trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            return
        loops = checkpoint["loops"]["fit_loop"]
        for count in ("total", "current"):
            epochs, batches = loops["epoch_progress"][count], loops["epoch_loop.batch_progress"][count]
            epochs["processed"] -= 1
            epochs["completed"] = epochs["processed"]
            batches["completed"] -= 1
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the next epoch where the one in the checkpoint is over."""
        loop = trainer.fit_loop
        # after a checkpoint of the epoch's last step Lightning has closed it just now, and goes on rightly
        if loop.restarting and epoch_is_over(trainer) and not loop.epoch_loop.restarted_on_train_batch_end:
            if loop.restarted_on_epoch_end:  # a checkpoint of `on_train_epoch_end`, which is not counted yet
                loop.epoch_progress.increment_completed()
            loop.reset_restart_stage()
            loop._restarting = loop.epoch_loop.restarting = False


def epoch_is_over(trainer: Trainer) -> bool:
    """Whether no epoch is going on: the last one was closed, be it before its end.

    Args:
        trainer: in training, or when that has ended.
    """
    epoch: Any = trainer.fit_loop.epoch_progress.current
    return bool(epoch.ready == epoch.started == epoch.processed > 0)
