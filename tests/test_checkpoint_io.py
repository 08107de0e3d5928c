from __future__ import annotations

import errno
import os
import subprocess
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint

from ipvrm_lightning.checkpoint_io import AtomicCheckpointIO, AtomicCheckpoints
from ipvrm_lightning.models.checkpoints import newest_in
from ipvrm_lightning.modules import IPVRMModule
from ipvrm_lightning.whole_files import write_atomically, write_lines_atomically

from .modules.conftest import InMemoryData, quiet_trainer, tiny


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_earlier_checkpoint_whole(small_disk: Path) -> None:
    target = small_disk / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weights": torch.ones(10)}, target)
    with pytest.raises(OSError, match=r"last.ckpt could not be written, earlier ones are whole: .*"):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.randn(1_000_000)}, target)
    assert torch.equal(torch.load(target, weights_only=True)["weights"], torch.ones(10))
    assert [path.name for path in small_disk.iterdir()] == ["last.ckpt"]


def test_a_write_that_fails_half_way_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(checkpoint: object, file: object) -> None:
        file.write(b"PK half of it")  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="No space left on device"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []

    def torn_lines() -> Iterator[str]:
        yield "half of it"
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "of another disk"))
    file = write_atomically(tmp_path / "metrics" / "test" / "results.json", "of before")
    with pytest.raises(OSError, match="No space left on device"):
        write_lines_atomically(file, torn_lines())
    assert list(file.parent.iterdir()) == [file] and file.read_text() == "of before"


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, int]] = []
    real = os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(("kept", os.fstat(descriptor).st_size)))
    monkeypatch.setattr(
        os, "replace", lambda part, target: (done.append(("named", part.stat().st_size)), real(part, target))
    )
    AtomicCheckpointIO().save_checkpoint({"weights": torch.ones(10)}, tmp_path / "a.ckpt")
    assert done == [(step, (tmp_path / "a.ckpt").stat().st_size) for step in ("kept", "named")]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    real = os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(f"kept {os.fstat(descriptor).st_size}"))
    monkeypatch.setattr(os, "replace", lambda part, target: (done.append("named"), real(part, target)))
    write_atomically(tmp_path / "results.json", "{}")
    assert done == ["kept 2", "named"]


def test_a_file_that_cannot_be_begun_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(OSError, match=r"a\.ckpt could not be written, earlier ones are whole: .*Permission denied"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "a.ckpt")


def test_what_a_kill_left_half_written_is_not_the_newest(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "val"  # of a name with a slash
    AtomicCheckpointIO().save_checkpoint({"n": 1}, folder / "a.ckpt")
    (folder / ".b.ckpt.part").write_bytes(b"half")
    assert newest_in(folder) == folder / "a.ckpt"
    assert newest_in(tmp_path / "absent") is None


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpoints_hold_adapters_alone_and_load_safely(tmp_path: Path, dropout: float) -> None:
    module = IPVRMModule(language_model=tiny(lora=True, dropout=dropout), optimizer=partial(torch.optim.AdamW, lr=1e-3))
    saved = ModelCheckpoint(tmp_path, save_last=True)
    trainer = quiet_trainer(tmp_path, callbacks=[saved, AtomicCheckpoints()], enable_checkpointing=True)
    trainer.fit(module, datamodule=InMemoryData())
    assert isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert stored["state_dict"].keys() == module.trainable_parameters().keys()
    adapter = sum(4 * parameter.numel() for parameter in module.trainable_parameters().values())
    # weights and Adam's two moments, and a fixed part: names, loops, random states
    assert (tmp_path / "last.ckpt").stat().st_size < 3 * adapter + 150_000


def test_a_way_of_writing_that_was_chosen_is_kept() -> None:
    class Own(TorchCheckpointIO):
        pass

    for chosen in (Own(), TorchCheckpointIO()):
        trainer: Any = SimpleNamespace(strategy=SimpleNamespace(checkpoint_io=chosen))
        AtomicCheckpoints().setup(trainer, LightningModule(), "fit")
        assert (trainer.strategy.checkpoint_io is chosen) == isinstance(chosen, Own)


def test_what_could_not_be_read_again_is_named_and_not_written(tmp_path: Path) -> None:
    plain = {"a": [(1, 2.5, "text", None, True), {3: torch.ones(1)}], "b": OrderedDict(c=torch.float32), "d": {1, 2}}
    AtomicCheckpointIO().save_checkpoint(plain, tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True) == plain
    for value, name in (([1, Path("x")], r"b.c\[1\]: a PosixPath"), ({Path("x"): 1}, "b.c: key x: a PosixPath")):
        with pytest.raises(ValueError, match=f"^{name} .*; keep tensors, numbers, text, lists and dicts$"):
            AtomicCheckpointIO().save_checkpoint({"a": 1, "b": {"c": value}}, tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True) == plain


class Keeps(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"seen": Path("file")}


def test_a_callback_whose_state_could_not_be_read_again_ends_a_fit_before_its_first_step(tmp_path: Path) -> None:
    module = IPVRMModule(language_model=tiny(lora=True))
    callbacks = [Keeps(), ModelCheckpoint(tmp_path), AtomicCheckpoints()]
    trainer = quiet_trainer(tmp_path, callbacks=callbacks, enable_checkpointing=True)
    with pytest.raises(ValueError, match=r"^callbacks.Keeps.seen: a PosixPath could"):
        trainer.fit(module, datamodule=InMemoryData())
    assert trainer.global_step == 0
    module.settings_to_keep = lambda: {"objective": module.objective}  # type: ignore[method-assign]
    trainer = quiet_trainer(tmp_path, callbacks=callbacks[1:], enable_checkpointing=True)
    with pytest.raises(ValueError, match=r"^settings.objective: a IPVRM could"):
        trainer.fit(module, datamodule=InMemoryData())
    assert trainer.global_step == 0


@pytest.mark.parametrize(("checkpoints", "trial"), [([], False), ([object()], True)])
def test_where_no_checkpoint_will_be_written_nothing_is_refused(checkpoints: list[Any], trial: bool) -> None:
    options: dict[str, Any] = {"checkpoint_callbacks": checkpoints, "fast_dev_run": trial}
    AtomicCheckpoints().on_train_start(SimpleNamespace(callbacks=[Keeps()], **options), LightningModule())  # type: ignore[arg-type]
    trainer: Any = SimpleNamespace(callbacks=[Callback()], checkpoint_callbacks=[object()], fast_dev_run=False)
    AtomicCheckpoints().on_train_start(trainer, LightningModule())  # one that has no settings of ours
