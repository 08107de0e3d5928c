"""A DistRL run that is killed and started again, in real processes, loses nothing."""

from __future__ import annotations

import json
import os
import signal
import time
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from ipvrm_lightning.models.checkpoints import newest_checkpoint
from ipvrm_lightning.modules.distrl_settings import RewardModel
from ipvrm_lightning.objectives import IPVRM

from ..processes import Started
from .conftest import quiet_trainer
from .distrl_cases import Losses, TinyPrompts, module

STEPS = 8


class Journal(Losses):
    """Writes what each step logged as soon as it is done, and then waits a little for who wants to kill."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        with self.file.open("a") as file:
            file.write(json.dumps([pl_module.steps_done, self.steps[-1]]) + "\n")
        time.sleep(0.1)


def main(folder: Path) -> None:
    """One run, from the newest checkpoint in the folder where there is one."""
    adam = partial(torch.optim.AdamW, lr=1e-3)
    model = module(lora=True, reward=RewardModel(objective=IPVRM(), optimizer=adam), optimizer=adam)
    saved = ModelCheckpoint(folder / "run" / "checkpoints", every_n_train_steps=1, save_last=True)
    trainer = quiet_trainer(
        folder,
        callbacks=[Journal(folder / "journal.jsonl"), saved],
        enable_checkpointing=True,
        max_epochs=2,
        limit_train_batches=STEPS // 2,
        limit_val_batches=0,
    )
    torch.manual_seed(0)
    found = list(folder.glob("run/checkpoints/*.ckpt"))
    trainer.fit(model, datamodule=TinyPrompts(), ckpt_path=newest_checkpoint(folder, what="test") if found else None)
    torch.save({name: p.detach() for name, p in model.trainable_parameters().items()}, folder / "weights.pt")


def start(folder: Path) -> Started:
    folder.mkdir(exist_ok=True)
    return Started(main, folder)


def journal(folder: Path) -> list[list[object]]:
    file = folder / "journal.jsonl"
    lines = file.read_text().split("\n") if file.exists() else []
    return [json.loads(line) for line in lines[:-1]]


def test_a_run_killed_at_any_step_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait(300) == 0
    process = start(killed)
    while len(journal(killed)) < 3:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert start(killed).wait(300) == 0
    expected = journal(whole)
    assert [step for step, _ in expected] == list(range(1, STEPS + 1))
    # a step whose checkpoint was not written yet is done again, and does the same
    assert {json.dumps(line) for line in journal(killed)} == {json.dumps(line) for line in expected}
    weights = [torch.load(folder / "weights.pt", weights_only=True) for folder in (whole, killed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0]) and weights[0]
