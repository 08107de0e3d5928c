"""`StopSignal`: a run that is told to stop (SIGTERM, Ctrl-C) ends on all of its processes after the same step."""

from __future__ import annotations

import signal
import threading
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

    Ctrl-C is such a signal while a fit takes its steps; a second one ends it at once. Anywhere else the first does.
    """

    def __init__(self) -> None:
        self._told: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the place of Lightning's handler, which it registers when all is loaded and restores in the end."""
        self._told = None
        trainer._signal_connector._sigterm_notifier_fn = partial(self._note, trainer)  # type: ignore[method-assign]

    def _note(self, trainer: Trainer, signum: int, _: Any) -> None:
        if self._told is not None:
            return
        self._told = signum
        if signum == signal.SIGINT:
            signal.signal(signum, signal.default_int_handler)
            rank_zero_info("\nCtrl-C: ends when this step is done; once more to end at once")
        else:
            rank_zero_info("Told to stop (SIGTERM): ends when what is going on is done")
            if trainer.strategy.launcher is not None:
                trainer.strategy.launcher.kill(signum)  # passes it on to those it started; a terminal sends it to all
        if trainer.world_size == 1 or trainer.state.fn != TrainerFn.FITTING:
            _stop(trainer)  # there is no checkpoint for others to take part in, or no other

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take the place of Python's handler of Ctrl-C, and of no other; Lightning restores it in the end."""
        usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if usual and self._told is None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, partial(self._note, trainer))

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

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say of what Lightning ends a run with, whichever signal it was, that the cause was Ctrl-C."""
        if isinstance(exception, SIGTERMException) and self._told == signal.SIGINT:
            exception.__cause__ = KeyboardInterrupt()

    def _agree(self, trainer: Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self._told is not None, all=False):
            _stop(trainer)


def _stop(trainer: Trainer) -> None:
    """Let Lightning's loops end when the step or the batch that is going on is done."""
    trainer._signal_connector.received_sigterm = True
