"""Three windows an epoch; a run in two parts is to be the run in one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from ipvrm_lightning.callbacks.random_state import RandomState
from ipvrm_lightning.callbacks.resume_point import ResumePoint
from ipvrm_lightning.callbacks.whole_epochs import WholeEpochs
from ipvrm_lightning.modules import IPVRMModule

from ..modules.conftest import InMemoryData, quiet_trainer, tiny, trained_state
from ..modules.distrl_cases import TinyPrompts
from ..modules.distrl_cases import module as policy

Step = tuple[int, int, int, list[int]]


class Steps(Callback):
    """Epoch, batch and logged step of each step, and the rows that it learns from."""

    def __init__(self) -> None:
        self.seen: list[Step] = []

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        rows = sorted(row for part in getattr(batch, "micro_batches", ()) for row in part.index.tolist())
        self.seen.append((trainer.current_epoch, batch_idx, trainer.fit_loop.epoch_loop._batches_that_stepped, rows))


class StopsAt(Callback):
    """As `EarlyStopping` and `Timer` do."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop |= trainer.global_step == self.step


def fit(
    folder: Path, *callbacks: Callback, resume: Path | None = None, **options: Any
) -> tuple[list[Step], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    module = IPVRMModule(language_model=tiny(lora=True, dropout=0.1), optimizer=partial(torch.optim.AdamW, lr=1e-2))
    steps = Steps()
    kept = ModelCheckpoint(save_top_k=-1, save_last=True, filename="{step}")
    within = ModelCheckpoint(save_top_k=-1, every_n_train_steps=1, filename="within-{step}")
    own = [WholeEpochs(), RandomState(), kept, within, ResumePoint(minutes=60)]
    trainer = quiet_trainer(
        folder, callbacks=[steps, *callbacks, *own],
        **{"enable_checkpointing": True, "num_sanity_val_steps": 0, "max_epochs": -1, **options},
    )  # fmt: skip
    trainer.fit(module, datamodule=InMemoryData(), ckpt_path=resume)
    return steps.seen, trained_state(module)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Step], dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, *fit(folder, max_steps=9)


def goes_on(
    folder: Path, file: Path, done: int, whole: tuple[Path, list[Step], dict[str, torch.Tensor]], **options: Any
) -> None:
    seen, state = fit(folder, resume=file, **options)
    assert seen == whole[1][done:]
    assert all(torch.equal(state[name], value) for name, value in whole[2].items())


def test_with_max_steps_a_finished_epoch_is_followed_by_the_next(tmp_path: Path, whole: Any) -> None:
    assert [step[:3] for step in whole[1]] == [(n // 3, n % 3, n) for n in range(9)]
    for step in (3, 6):
        goes_on(tmp_path, whole[0] / "checkpoints" / f"step={step}.ckpt", step, whole, max_steps=9)


def test_a_checkpoint_of_the_last_step_of_an_epoch_goes_on_as_it_did(tmp_path: Path, whole: Any) -> None:
    for options in ({"max_steps": 9}, {"max_epochs": 3}):
        goes_on(tmp_path, whole[0] / "checkpoints" / "within-step=3.ckpt", 3, whole, **options)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"max_steps": 6}, {"max_steps": 9}),
        ({"max_steps": 5}, {"max_steps": 9}),
        ({"max_steps": 5}, {"max_epochs": 3}),
        ({"max_steps": 5, "val_check_interval": 2}, {"max_epochs": 3, "val_check_interval": 2}),
        ({"callbacks": [StopsAt(4)]}, {"max_epochs": 3}),
    ],
    ids=["whole epochs", "steps", "steps, then epochs", "validated at the end", "stopped"],
)
def test_a_run_that_ended_goes_on_with_the_rest_of_its_epoch(
    first: dict[str, Any], then: dict[str, Any], tmp_path: Path, whole: Any
) -> None:
    seen, _ = fit(tmp_path / "first", *first.pop("callbacks", []), **first)
    assert seen == whole[1][: len(seen)]
    for number, file in enumerate(("last.ckpt", f"step={len(seen)}.ckpt")):
        goes_on(tmp_path / str(number), tmp_path / "first" / "checkpoints" / file, len(seen), whole, **then)


def test_a_stream_of_prompts_goes_on_in_the_next_epoch(tmp_path: Path) -> None:
    def run(resume: Path | None = None) -> tuple[list[Step], dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        model, steps = policy(), Steps()
        kept = ModelCheckpoint(tmp_path, save_top_k=-1, save_on_train_epoch_end=True)
        trainer = quiet_trainer(
            tmp_path, callbacks=[steps, WholeEpochs(), RandomState(), kept], enable_checkpointing=True,
            max_steps=4, max_epochs=-1, limit_train_batches=2, limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(model, datamodule=TinyPrompts(), ckpt_path=resume)
        return steps.seen, trained_state(model)

    seen, state = run()
    again, same = run(tmp_path / "epoch=0-step=2.ckpt")
    assert again == seen[2:] and len(again) == 2
    assert all(torch.equal(same[name], value) for name, value in state.items())
