"""Checkpoints that appear whole or not at all, and hold nothing that could not be read again."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import Callback, LightningModule, Trainer

from ipvrm_lightning.callbacks.run_files import is_trial


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under another name beside its place, then renames it: what has its name is whole.

    Unlike its base class it streams to disk, without a second copy of the checkpoint in memory.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None) -> None:
        """Save to `path`.

        Raises:
            OSError: the disk is full or not writable; what stood at `path` is as it was.
            ValueError: something in it could not be read again; names it.
        """
        check_readable(checkpoint)
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
        except (OSError, RuntimeError) as error:
            # torch reports a failed write as a RuntimeError of its archive
            part.unlink(missing_ok=True)
            raise OSError(f"checkpoint {target} could not be written, earlier ones are whole: {error}") from error


class AtomicCheckpoints(Callback):
    """Has a trainer write its checkpoints with `AtomicCheckpointIO`, unless a plugin was chosen for them.

    What classes of one's own put into checkpoints is looked at before the first step, too.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replace Lightning's own way; a strategy that writes folders of shards keeps its own."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse now what the first checkpoint would refuse.

        Raises:
            ValueError: the state of a callback or the settings of the module could not be read again; names the value.
        """
        if trainer.checkpoint_callbacks and not is_trial(trainer):
            everyone: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
            module: Any = pl_module
            settings = module.settings_to_keep() if hasattr(module, "settings_to_keep") else {}
            check_readable({"callbacks": {one.state_key: one.state_dict() for one in everyone}, "settings": settings})


def check_readable(checkpoint: dict[str, Any]) -> None:
    """Refuse a checkpoint that could be written and not be read: `torch.load` takes no objects, which could run code.

    Args:
        checkpoint: about to be saved.

    Raises:
        ValueError: names the first value that is refused.
    """
    for place, value in _leaves(checkpoint, ""):
        try:
            file = BytesIO()
            torch.save(value, file)
            file.seek(0)
            torch.load(file, weights_only=True)
        except Exception as error:  # whatever pickle and torch raise, of classes that are not ours
            raise ValueError(
                f"{place}: a {type(value).__name__} could not be read from a checkpoint again; keep tensors, numbers,"
                " text, lists and dicts"
            ) from error


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """What is neither a tensor nor plain, and where it is."""
    if type(value) in (dict, OrderedDict):
        for key, one in value.items():
            yield from _leaves(key, f"{place}: key {key}")
            yield from _leaves(one, f"{place}.{key}".lstrip("."))
    elif type(value) in (list, tuple):
        for number, one in enumerate(value):
            yield from _leaves(one, f"{place}[{number}]")
    elif not isinstance(value, torch.Tensor) and type(value) not in (bool, int, float, str, type(None)):
        yield place, value
