from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ipvrm_lightning.callbacks.predictions import PredictionFile
from ipvrm_lightning.callbacks.stop_signal import StopSignal
from ipvrm_lightning.modules import IPVRMModule

from ..modules.conftest import InMemoryData, quiet_trainer, tiny


class TellsToStop(Callback):
    """Signals come in the second batch, and again, as of a scheduler that sends them to everyone."""

    def __init__(self, *signals: signal.Signals) -> None:
        self.batches, self.signals = 0, signals

    def _count(self) -> None:
        self.batches += 1
        for signum in self.signals if self.batches == 2 else ():
            os.kill(os.getpid(), signum)

    def on_test_batch_start(self, *_: Any) -> None:
        self._count()

    def on_predict_batch_start(self, *_: Any) -> None:
        self._count()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._count()


@pytest.mark.parametrize("command", ["fit", "test", "predict"])
def test_a_command_that_is_told_to_stop_ends_after_the_batch(command: str, tmp_path: Path) -> None:
    teller, before = TellsToStop(signal.SIGTERM, signal.SIGTERM), signal.getsignal(signal.SIGTERM)
    trainer = quiet_trainer(tmp_path, callbacks=[teller, PredictionFile(), StopSignal()], num_sanity_val_steps=0)
    with pytest.raises(SIGTERMException):
        getattr(trainer, command)(IPVRMModule(language_model=tiny(lora=True)), datamodule=InMemoryData(max_tokens=60))
    assert teller.batches == 2 and signal.getsignal(signal.SIGTERM) == before
    rows = [len(file.read_text().splitlines()) for file in tmp_path.glob("predictions*")]
    assert (rows[0] >= 2 if command == "predict" else not rows) and len(rows) <= 1


@pytest.fixture
def usual_ctrl_c() -> Iterator[None]:
    """Python's own handler, which a runner of tests need not have left; Lightning leaves none."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def fit(folder: Path, teller: TellsToStop) -> None:
    trainer = quiet_trainer(folder, callbacks=[teller, StopSignal()], num_sanity_val_steps=0)
    trainer.fit(IPVRMModule(language_model=tiny(lora=True)), datamodule=InMemoryData(max_tokens=60))


def test_ctrl_c_ends_a_fit_after_the_step(tmp_path: Path, usual_ctrl_c: None) -> None:
    teller = TellsToStop(signal.SIGINT)
    with pytest.raises(SIGTERMException) as ended:
        fit(tmp_path, teller)
    assert isinstance(ended.value.__cause__, KeyboardInterrupt)
    assert teller.batches == 2 and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_ends_it_at_once(tmp_path: Path, usual_ctrl_c: None) -> None:
    with pytest.raises(SystemExit) as ended:
        fit(tmp_path, TellsToStop(signal.SIGINT, signal.SIGINT))
    assert isinstance(ended.value.__context__, KeyboardInterrupt)


def test_a_handler_of_ones_own_stays(tmp_path: Path, usual_ctrl_c: None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as of what a script starts in the background
    teller = TellsToStop(signal.SIGINT)
    fit(tmp_path, teller)
    assert teller.batches > 2 and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
