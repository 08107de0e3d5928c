"""Where a run's files go, whether it writes any, and what its processes tell each other for them."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch.distributed as dist
from lightning.pytorch import Trainer

T = TypeVar("T")


def run_folder(trainer: Trainer) -> Path:
    """The run's folder; to be called on each process, for the first one says what it is."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def is_trial(trainer: Trainer) -> bool:
    """Whether this is a trial run (`fast_dev_run`), which leaves nothing behind that could be taken for results."""
    return bool(getattr(trainer, "fast_dev_run", False))


def writes_files(trainer: Trainer) -> bool:
    """Whether this process writes what a run leaves behind: the first one, unless it is a trial run."""
    return trainer.is_global_zero and not is_trial(trainer)


def from_all_processes(own: T) -> list[T]:
    """One object of each process, in the order of the ranks; to be called on each of them.

    Args:
        own: of this process; anything that can be pickled.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    parts = [own] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    return parts
