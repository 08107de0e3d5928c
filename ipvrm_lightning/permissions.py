"""Who may read what a command leaves behind: whoever may read any other file of the user."""

from __future__ import annotations

import os
from pathlib import Path


def follow_umask(path: str | Path) -> None:
    """Give a file, or a folder with all in it, the permissions that the user's umask gives to new ones.

    `mkstemp`, `mkdtemp` and safetensors (0.8) make theirs for the owner alone: an export on a shared disk would be one
    whose weights nobody else can read.

    Args:
        path: a finished file or folder.
    """
    umask = os.umask(0)
    os.umask(umask)
    for found in (Path(path), *Path(path).rglob("*")):
        found.chmod((0o777 if found.is_dir() else 0o666) & ~umask)
