"""Checkpoints that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import Callback, LightningModule, Trainer


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under another name beside its place, then renames it: what has its name is whole.

    Unlike its base class it streams to disk, without a second copy of the checkpoint in memory.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None) -> None:
        """Save to `path`.

        Raises:
            OSError: the disk is full or not writable; what stood at `path` is as it was.
        """
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
    """Has a trainer write its checkpoints with `AtomicCheckpointIO`, unless a plugin was chosen for them."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replace Lightning's own way; a strategy that writes folders of shards keeps its own."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
