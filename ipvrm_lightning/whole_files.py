"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from ipvrm_lightning.permissions import follow_umask


def write_atomically(path: str | Path, text: str) -> Path:
    """Write text to a file that appears whole or not at all; folders are made."""
    return write_lines_atomically(path, [text])


def write_lines_atomically(path: str | Path, lines: Iterable[str]) -> Path:
    """The same for what need not be in memory at once; each line with its end."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        follow_umask(temporary)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path
