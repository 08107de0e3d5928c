"""Checkpoints: which one is meant, and whether its weights are those of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor


def check_same_parameters(own: Mapping[str, Tensor], stored: Mapping[str, Tensor], *, what: str) -> None:
    """Refuse weights whose names or shapes are not those of the model.

    Args:
        own: parameters of the model.
        stored: weights to load.
        what: what holds the weights, for the error.

    Raises:
        ValueError: names the first parameter that differs.
    """
    here = {name: tuple(parameter.shape) for name, parameter in own.items()}
    there = {name: tuple(weight.shape) for name, weight in stored.items()}
    if here != there:
        name = sorted(set(here.items()) ^ set(there.items()))[0][0]
        raise ValueError(
            f"{what} does not fit this config: parameter {name} is {there.get(name, 'absent')} there and"
            f" {here.get(name, 'absent')} in the model ({len(there)} and {len(here)} parameters)"
        )


def newest_checkpoint(root: Path, *, what: str) -> Path:
    """The checkpoint written last by any run under a folder.

    Args:
        root: `default_root_dir` of the runs.
        what: what asks for it, for the error.

    Raises:
        FileNotFoundError: there is none; names the folder.
    """
    found = sorted(root.glob("*/checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        raise FileNotFoundError(f"{what}: no checkpoint under {root}/*/checkpoints; run `ipvrm fit` first")
    return found[-1]
