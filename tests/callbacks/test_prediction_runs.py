from __future__ import annotations

import math
from pathlib import Path

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


def test_numbers_that_are_none_are_refused_as_a_test_refuses_them(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, callbacks=[Overflows(), PredictionFile()])
    with pytest.raises(ValueError, match=r"prediction of row \d+.*: numbers are not finite"):
        trainer.predict(IPVRMModule(language_model=tiny(lora=True)), datamodule=InMemoryData(max_tokens=60))
    assert not (tmp_path / "predictions.jsonl").exists()
