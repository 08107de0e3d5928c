"""What the processes of a run tell each other when it writes its files."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


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
