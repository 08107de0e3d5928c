"""`StopSignal`: a run that is told to stop (SIGTERM) ends on all of its processes after the same step."""

from __future__ import annotations

from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info


class StopSignal(Callback):
    """Only notes the signal when it comes; the processes of a fit agree on it at the end of a step or a validation.

    Lightning's own handler broadcasts, from whatever point its process is at: where the others wait in another
    collective, the two are taken for one, and the run hangs. One process may have been told and the others not.
    """

    def __init__(self) -> None:
        self._told = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the place of Lightning's handler, which it registers when all is loaded and restores in the end."""
        self._told = False
        trainer._signal_connector._sigterm_notifier_fn = partial(self._note, trainer)  # type: ignore[method-assign]

    def _note(self, trainer: Trainer, signum: int, _: Any) -> None:
        if self._told:
            return
        self._told = True
        rank_zero_info("Told to stop (SIGTERM): ends when what is going on is done")
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signum)  # passes it on to those it started
        if trainer.world_size == 1 or trainer.state.fn != TrainerFn.FITTING:
            _stop(trainer)  # there is no checkpoint for others to take part in, or no other

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop where any process was told to; called on every process."""
        self._agree(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same: a step may take long."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._agree(trainer)

    def on_predict_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Stop: Lightning looks at the signal in its other loops alone.

        Raises:
            SIGTERMException: the signal has come.
        """
        if trainer.received_sigterm:
            raise SIGTERMException

    def _agree(self, trainer: Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self._told, all=False):
            _stop(trainer)


def _stop(trainer: Trainer) -> None:
    """Let Lightning's loops end when the step or the batch that is going on is done."""
    trainer._signal_connector.received_sigterm = True
