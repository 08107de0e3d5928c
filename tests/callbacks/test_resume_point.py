from __future__ import annotations

from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ipvrm_lightning.callbacks.resume_point import ResumePoint, logged_until
from ipvrm_lightning.checkpoint_io import AtomicCheckpointIO
from ipvrm_lightning.models.checkpoints import newest_checkpoint
from ipvrm_lightning.modules import IPVRMModule

from ..modules.conftest import InMemoryData, quiet_trainer, tiny, trained_state


def fit(
    folder: Path, *callbacks: Callback, minutes: float = 60.0, continues: bool = False, **options: Any
) -> tuple[Trainer, IPVRMModule]:
    """Three windows an epoch; the adapters alone are trained."""
    torch.manual_seed(0)
    module = IPVRMModule(language_model=tiny(lora=True), optimizer=partial(torch.optim.AdamW, lr=1e-3))
    options = {"enable_checkpointing": True, "num_sanity_val_steps": 0, "max_epochs": 3} | options
    trainer = quiet_trainer(
        folder, callbacks=[*callbacks, ResumePoint(minutes=minutes, continues=continues)], **options
    )
    trainer.fit(module, datamodule=InMemoryData())
    return trainer, module


def best(**options: Any) -> ModelCheckpoint:
    """Keeps the first validation's checkpoint: no later one has a smaller step."""
    return ModelCheckpoint(**{"monitor": "step", "mode": "min", "save_last": True, "filename": "best"} | options)


def test_a_run_that_was_killed_after_its_last_step_keeps_the_final_weights_when_it_goes_on(tmp_path: Path) -> None:
    trainer, module = fit(tmp_path, max_steps=2, max_epochs=-1)
    folder = tmp_path / "checkpoints"
    (folder / "last.ckpt").rename(folder / "resume-2.ckpt")  # as it was when the clock had saved, and nothing since
    again = quiet_trainer(
        tmp_path, callbacks=[ResumePoint(minutes=60.0)], enable_checkpointing=True, max_steps=2, max_epochs=-1
    )
    rest = IPVRMModule(language_model=tiny(lora=True), optimizer=partial(torch.optim.AdamW, lr=1e-3))
    again.fit(rest, datamodule=InMemoryData(), ckpt_path=folder / "resume-2.ckpt")
    assert (trainer.global_step, again.global_step) == (2, 2)
    assert not list(folder.glob("resume-*"))
    stored = torch.load(folder / "last.ckpt", weights_only=True)
    assert stored["global_step"] == 2
    assert all(torch.equal(stored["state_dict"][name], value) for name, value in trained_state(module).items())


def test_a_run_that_goes_on_removes_what_a_kill_left_half_written(tmp_path: Path) -> None:
    fit(tmp_path, max_steps=2, max_epochs=-1)
    folder = tmp_path / "checkpoints"
    for steps, goes_on, left in ((3, False, [".resume-1.ckpt.part"]), (4, True, [])):
        (folder / ".resume-1.ckpt.part").write_bytes(b"PK")
        again = quiet_trainer(
            tmp_path,
            callbacks=[ResumePoint(minutes=60.0, continues=goes_on)],
            enable_checkpointing=True,
            max_steps=steps,
            max_epochs=-1,
        )
        module = IPVRMModule(language_model=tiny(lora=True), optimizer=partial(torch.optim.AdamW, lr=1e-3))
        again.fit(module, datamodule=InMemoryData(), ckpt_path=folder / "last.ckpt" if goes_on else None)
        assert [file.name for file in folder.glob(".*")] == left


@pytest.mark.parametrize("save_last", [True, False])
def test_a_run_that_goes_on_from_its_last_checkpoint_writes_its_final_weights_there(
    save_last: bool, tmp_path: Path
) -> None:
    """As one without a logger does, when it is to take more steps; it has kept those of its last step already."""
    last = tmp_path / "checkpoints" / "last.ckpt"
    for steps in (2, 4):
        kept = ModelCheckpoint(save_last=save_last, every_n_train_steps=1)
        trainer = quiet_trainer(
            tmp_path, callbacks=[kept, ResumePoint(minutes=60.0)], enable_checkpointing=True,
            max_steps=steps, max_epochs=-1,
        )  # fmt: skip
        module = IPVRMModule(language_model=tiny(lora=True), optimizer=partial(torch.optim.AdamW, lr=1e-3))
        trainer.fit(module, datamodule=InMemoryData(), ckpt_path=last if last.exists() else None)
        stored = torch.load(last, weights_only=True)
        assert stored["global_step"] == steps
        assert all(torch.equal(stored["state_dict"][name], value) for name, value in trained_state(module).items())
    assert sorted(file.name for file in last.parent.glob("last*")) == ["last.ckpt"]


@pytest.mark.parametrize("callbacks", [[], [ModelCheckpoint(save_last=True)]], ids=["alone", "beside another"])
def test_runs_of_one_folder_leave_each_other_what_they_have_saved(callbacks: list[Any], tmp_path: Path) -> None:
    """As runs without a logger have it."""

    class Fails(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                raise RuntimeError("made to fail")

    folder = tmp_path / "checkpoints"
    with pytest.raises(RuntimeError):
        fit(tmp_path, Fails(), minutes=0.0, max_steps=3, max_epochs=-1)
    (killed,) = folder.glob("resume-2.ckpt")
    left = killed.read_bytes()
    for steps in (3, 2):
        fit(tmp_path, *deepcopy(callbacks), minutes=0.0, max_steps=steps, max_epochs=-1)
    assert killed.read_bytes() == left
    steps_of = {file.name: torch.load(file, weights_only=True)["global_step"] for file in folder.glob("[lr]*.ckpt")}
    assert steps_of == {"resume-2.ckpt": 2, "last.ckpt": 3, "last-v1.ckpt": 2}


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_run_that_goes_on_writes_over_its_own_and_no_other_does(goes_on: bool, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "best.ckpt").write_bytes(b"of before")
    fit(tmp_path, best(dirpath=tmp_path / "kept", save_last=None), continues=goes_on, max_epochs=1)
    there = {file.name: file.read_bytes() == b"of before" for file in (tmp_path / "kept").iterdir()}
    assert there == ({"best.ckpt": False} if goes_on else {"best.ckpt": True, "best-v1.ckpt": False})


class Fails(Callback):
    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1:
            raise RuntimeError("no more")


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ({}, 9),
        ({"max_steps": 5, "max_epochs": -1, "val_check_interval": 2}, 5),
        ({"callbacks": [EarlyStopping("val/loss", min_delta=100.0, patience=1)]}, 6),
        ({"callbacks": [EMAWeightAveraging(decay=0.5)]}, 9),
    ],
    ids=["epochs", "steps", "early stopping", "averaged weights"],
)
def test_the_last_checkpoint_holds_the_final_weights_and_the_best_stays(
    options: dict[str, Any], step: int, tmp_path: Path
) -> None:
    kept = best()
    trainer, module = fit(tmp_path, kept, *options.pop("callbacks", []), minutes=0, **options)
    assert trainer.global_step == step
    assert sorted(file.name for file in tmp_path.glob("checkpoints/*")) == ["best.ckpt", "last.ckpt"]
    last = newest_checkpoint(tmp_path, what="test")
    stored = torch.load(last, weights_only=True)
    assert (last.name, stored["global_step"]) == ("last.ckpt", step)
    for name, value in trained_state(module).items():
        assert torch.equal(stored["state_dict"][name], value)
    assert Path(kept.best_model_path).name == "best.ckpt"
    assert torch.load(kept.best_model_path, weights_only=True)["global_step"] < step


def test_what_was_just_written_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    save = Trainer.save_checkpoint

    def recorded(self: Trainer, path: Any, weights_only: bool | None = None) -> None:
        assert weights_only is not None  # or Lightning says at every checkpoint what it takes it for
        names.append(Path(path).name)
        save(self, path, weights_only)

    monkeypatch.setattr(Trainer, "save_checkpoint", recorded)
    fit(tmp_path / "a", ModelCheckpoint(save_last=True, filename="best"), max_epochs=1)
    assert names == ["best.ckpt", "last.ckpt"]
    names.clear()
    fit(tmp_path / "b", best(save_last=None, save_top_k=0), max_epochs=1)
    fit(tmp_path / "c", best(dirpath=tmp_path / "elsewhere"), max_epochs=1)
    assert names == ["last.ckpt", "best.ckpt", "last.ckpt", "last.ckpt"]
    assert (tmp_path / "c" / "checkpoints" / "last.ckpt").is_file()
    names.clear()
    (kept := tmp_path / "d" / "checkpoints" / "resume-2.ckpt").parent.mkdir(parents=True)
    kept.touch()  # without a logger, a run's folder is the one that a trial run has
    fit(tmp_path / "d", ModelCheckpoint(save_last=True), fast_dev_run=1)
    assert not names and [file.name for file in kept.parent.iterdir()] == [kept.name]


class Steps(Callback):
    """Half a minute each, by a clock of their own that stands still between them."""

    now = 1000.0

    def on_train_batch_start(self, *_: Any) -> None:
        self.now += 30


def test_points_are_a_minute_apart_and_none_is_saved_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    save, clock = Trainer.save_checkpoint, Steps()

    def recorded(self: Trainer, path: Any, weights_only: bool | None = None) -> None:
        names.append(Path(path).name)
        save(self, path, weights_only)

    monkeypatch.setattr(Trainer, "save_checkpoint", recorded)
    monkeypatch.setattr("ipvrm_lightning.callbacks.resume_point.time", SimpleNamespace(monotonic=lambda: clock.now))
    fit(tmp_path, clock, minutes=1, max_epochs=3)
    points = [name for name in names if name.startswith("resume")]
    assert points == ["resume-2.ckpt", "resume-4.ckpt", "resume-7.ckpt"]  # a validation follows the sixth step


class Told(Callback):
    """As by SIGTERM, in the second step."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        trainer._signal_connector.received_sigterm = trainer.global_step == 1


def test_a_run_that_is_told_to_stop_saves_a_point_however_long_the_clock_has_to_go(tmp_path: Path) -> None:
    with pytest.raises(SIGTERMException):
        fit(tmp_path, Told(), minutes=60)
    assert [file.name for file in tmp_path.glob("checkpoints/*")] == ["resume-2.ckpt"]


def test_a_run_that_fails_or_is_killed_keeps_its_points_to_go_on_from(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no more"):
        fit(tmp_path, best(), Fails(), minutes=0)
    assert {file.name for file in tmp_path.glob("checkpoints/*")} == {"best.ckpt", "last.ckpt", "resume-5.ckpt"}
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3


class Order(Callback):
    def __init__(self) -> None:
        self.validated: list[int] = []
        self.saved: list[int] = []

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        self.validated.append(trainer.global_step)

    def on_save_checkpoint(self, trainer: Trainer, *_: Any) -> None:
        self.saved.append(trainer.global_step)


def test_no_point_is_saved_where_a_validation_follows(tmp_path: Path) -> None:
    """Batches of all epochs count where `check_val_every_n_epoch` is None; else those of the epoch."""
    for interval, every, validated, saved in (
        (4, None, [4, 8], [1, 2, 5, 7, 9]),  # 3, 6 and 9 end an epoch; 9 is the last checkpoint
        (2, 1, [2, 5, 8], [1, 4, 7, 9]),
        ("00:00:01:00", 1, [], [1, 2, 4, 5, 7, 8, 9]),
        ("00:00:00:00", 1, [*range(1, 10)], [9]),
    ):
        order = Order()
        fit(
            tmp_path,
            order,
            ModelCheckpoint(save_top_k=0),
            minutes=0,
            val_check_interval=interval,
            check_val_every_n_epoch=every,
        )
        assert (order.validated, order.saved) == (validated, saved)


class Clock(Callback):
    """Every step takes 40 seconds."""

    now = 1e6

    def on_train_batch_start(self, *_: Any) -> None:
        self.now += 40


def test_points_are_as_many_minutes_apart_as_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = Clock(), Order()
    monkeypatch.setattr("ipvrm_lightning.callbacks.resume_point.time", SimpleNamespace(monotonic=lambda: clock.now))
    fit(tmp_path, clock, order, ModelCheckpoint(save_top_k=0), minutes=2)
    assert order.saved == [4, 7, 9]  # the third step ends an epoch, and the ninth the run


class InTraining(Callback):
    """The weights after the last step, which those that average have not replaced yet."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.weights = trained_state(pl_module)


def test_averages_leave_the_weights_in_training_in_the_last_checkpoint(tmp_path: Path) -> None:
    trained = InTraining()
    _, module = fit(tmp_path, EMAWeightAveraging(decay=0.5), trained, best())
    stored = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    for name, average in trained_state(module).items():
        assert torch.equal(stored["state_dict"][name], average)
        assert torch.equal(stored["current_model_state"][name], trained.weights[name])


def test_a_run_that_logs_no_steps_saves_all_the_same(tmp_path: Path) -> None:
    fit(tmp_path, best(), minutes=0, max_epochs=1, log_every_n_steps=0)
    assert logged_until(tmp_path / "checkpoints" / "last.ckpt") == (2, 0, None)
    AtomicCheckpointIO().save_checkpoint({}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other.ckpt: does not say how far .*; start anew with --resume never$"):
        logged_until(tmp_path / "other.ckpt")
