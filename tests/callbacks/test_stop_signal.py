from __future__ import annotations

import os
import signal
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

    def __init__(self) -> None:
        self.batches = 0

    def _count(self) -> None:
        self.batches += 1
        for _ in range(2 if self.batches == 2 else 0):
            os.kill(os.getpid(), signal.SIGTERM)

    def on_test_batch_start(self, *_: Any) -> None:
        self._count()

    def on_predict_batch_start(self, *_: Any) -> None:
        self._count()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._count()


@pytest.mark.parametrize("command", ["fit", "test", "predict"])
def test_a_command_that_is_told_to_stop_ends_after_the_batch(command: str, tmp_path: Path) -> None:
    teller, before = TellsToStop(), signal.getsignal(signal.SIGTERM)
    trainer = quiet_trainer(tmp_path, callbacks=[teller, PredictionFile(), StopSignal()], num_sanity_val_steps=0)
    with pytest.raises(SIGTERMException):
        getattr(trainer, command)(IPVRMModule(language_model=tiny(lora=True)), datamodule=InMemoryData(max_tokens=60))
    assert teller.batches == 2 and signal.getsignal(signal.SIGTERM) == before
    rows = [len(file.read_text().splitlines()) for file in tmp_path.glob("predictions*")]
    assert (rows[0] >= 2 if command == "predict" else not rows) and len(rows) <= 1
