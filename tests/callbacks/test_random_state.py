from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from ipvrm_lightning.callbacks.random_state import RandomState, random_state, set_random_state
from ipvrm_lightning.modules import IPVRMModule

from ..modules.conftest import InMemoryData, quiet_trainer, tiny


def draws() -> list[float]:
    return [random.random(), random.gauss(0, 1), float(np.random.normal()), float(torch.rand(()))]


def test_all_generators_go_back_to_where_they_were(tmp_path: Path) -> None:
    random.gauss(0, 1)
    torch.save(random_state(), tmp_path / "state.pt")
    first = draws()
    assert draws() != first
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draws() == first


class Losses(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


def test_dropout_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def run(steps: int, seed: int, start: Path | None = None) -> list[float]:
        torch.manual_seed(seed)
        adam = partial(torch.optim.AdamW, lr=1e-2)
        module = IPVRMModule(language_model=tiny(lora=True, dropout=0.5), optimizer=adam)
        losses = Losses()
        saved = ModelCheckpoint(tmp_path, filename=f"{steps}", every_n_train_steps=1)
        trainer = quiet_trainer(
            tmp_path, callbacks=[losses, RandomState(), saved], enable_checkpointing=True, max_steps=steps,
            max_epochs=-1,
        )  # fmt: skip
        trainer.fit(module, datamodule=InMemoryData(), ckpt_path=start)
        return losses.losses

    whole = run(5, seed=0)
    first = run(2, seed=0)
    assert first == whole[:2]
    assert run(5, seed=123, start=tmp_path / "2.ckpt") == whole[2:]
    assert len(set(whole)) == 5
