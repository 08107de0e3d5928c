from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

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


@pytest.mark.parametrize(("fn", "said"), [(TrainerFn.FITTING, True), (TrainerFn.TESTING, False)])
def test_a_fit_with_another_number_of_processes_says_that_it_draws_anew(
    tmp_path: Path, fn: TrainerFn, said: bool, recwarn: pytest.WarningsRecorder
) -> None:
    trainer = quiet_trainer(tmp_path)
    trainer.state.fn = fn
    callback, module = RandomState(), LightningModule()
    callback.on_load_checkpoint(trainer, module, {"random_states": [random_state()]})
    callback.on_load_checkpoint(trainer, module, {})
    assert not recwarn.list
    callback.on_load_checkpoint(trainer, module, {"random_states": [random_state(), random_state()]})
    messages = [str(warning.message) for warning in recwarn.list]
    assert len(messages) == said
    assert all("1 processes in place of 2" in one and "drawn anew" in one for one in messages)
    before = torch.get_rng_state()
    callback.on_train_batch_start(trainer, module, None, 0)
    assert torch.equal(torch.get_rng_state(), before)


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
