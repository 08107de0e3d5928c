from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from ipvrm_lightning.callbacks.predictions import PredictionFile
from ipvrm_lightning.modules import IPVRMModule

from ..modules.conftest import InMemoryData, quiet_trainer, tiny


class Overflows(Callback):
    """Adapters whose products are no numbers, as in a half precision that is too narrow."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for parameter in pl_module.parameters():
            if parameter.requires_grad:
                parameter.data.fill_(math.inf)


class AnotherRun(Callback):
    """Another run predicts in the same folder, before so many batches of this one."""

    def __init__(self, folder: Path, batches: int) -> None:
        self.folder, self.batches = folder, batches

    def on_predict_batch_start(self, *_: Any) -> None:
        self.batches -= 1
        if self.batches == 0:
            predict(self.folder)

    def on_predict_end(self, *_: Any) -> None:
        if self.batches > 0:
            predict(self.folder)


def predict(folder: Path, *callbacks: Callback) -> None:
    trainer = quiet_trainer(folder, callbacks=[*callbacks, PredictionFile()])
    trainer.predict(IPVRMModule(language_model=tiny(lora=True)), datamodule=InMemoryData(max_tokens=60))


@pytest.mark.parametrize("batches", [2, 100])
def test_two_runs_in_one_folder_do_not_mix(batches: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"predictions\.rank0\.jsonl: another run has begun in this folder meanwhile"):
        predict(tmp_path, AnotherRun(tmp_path, batches))
    whole = (tmp_path / "predictions.jsonl").read_text()
    predict(tmp_path)
    assert whole and (tmp_path / "predictions.jsonl").read_text() == whole


def test_numbers_that_are_none_are_refused_as_a_test_refuses_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prediction of row \d+.*: numbers are not finite"):
        predict(tmp_path, Overflows())
    assert not (tmp_path / "predictions.jsonl").exists()
