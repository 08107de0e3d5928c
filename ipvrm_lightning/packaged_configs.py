"""The configs that come with the package: what `--config configs/...` means where there is no such file."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

_PACKAGE = Path(__file__).parent
#: Within the package once it is installed, beside it in a clone.
CONFIGS = next((folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir()), None)


def with_packaged_configs(arguments: Sequence[str]) -> list[str]:
    """Arguments of a command whose configs can be read from any folder; says which ones come from the package.

    Args:
        arguments: those after `--config` and `-c` are files; one that is there is left as it is.
    """
    found, is_config = [], False
    for word in arguments:
        name, is_pair, value = word.partition("=")
        if is_config:
            word = _located(word)
        elif is_pair and name in ("--config", "-c"):
            word = f"{name}={_located(value)}"
        is_config = word in ("--config", "-c")
        found.append(word)
    return found


def packaged_names() -> list[str]:
    """The configs of the package, by the names that `--config` takes."""
    if CONFIGS is None:
        return []
    return [f"configs/{file.relative_to(CONFIGS).as_posix()}" for file in sorted(CONFIGS.rglob("*.yaml"))]


def _located(name: str) -> str:
    file = Path(name)
    # a config may stand in a file's place, too long for a name
    if CONFIGS is None or os.path.exists(file) or file.parts[:1] != ("configs",):
        return name
    packaged = CONFIGS.joinpath(*file.parts[1:])
    if not packaged.is_file():
        return name
    print(f"{name}: taken from {packaged}", file=sys.stderr)
    return str(packaged)
