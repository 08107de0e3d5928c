"""What an export starts from: a run's saved config, and the weights of one of its models."""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal, NamedTuple

import yaml
from jsonargparse import ArgumentParser
from torch import Tensor

from ipvrm_lightning.failures import library_errors
from ipvrm_lightning.models.checkpoints import newest_checkpoint, origin, read_checkpoint
from ipvrm_lightning.models.language_model import LanguageModelFactory

Part = Literal["policy", "reward"]


class Run(NamedTuple):
    """A checkpoint and the config that made it.

    Args:
        checkpoint: the file.
        config: of the run, as its `config.yaml` holds it.
    """

    checkpoint: Path
    config: dict[str, Any]

    def origin(self) -> str:
        """Says which checkpoint it is, and of which step."""
        return origin(self.checkpoint, read_checkpoint(self.checkpoint, mmap=True))


def find_run(path: Path, *, folder: Path | None = None) -> Run:
    """The checkpoint that a path means, with its run's config.

    Args:
        path: a checkpoint, the folder of a run, or the folder of runs (`trainer.default_root_dir`) for the newest.
        folder: of the run; else the nearest one above the checkpoint that has a config.

    Raises:
        FileNotFoundError: there is no checkpoint, or no config beside it.
        ValueError: that config is none, or not one of a fit.
    """
    checkpoint = path if path.is_file() else newest_checkpoint(path, what=str(path))
    # a name with a slash (`{val/auroc}`) puts a checkpoint deeper than `checkpoints`
    above = [folder] if folder is not None else checkpoint.absolute().parents
    config = next((file for place in above if (file := place / "config.yaml").is_file()), None)
    if config is None:
        config = above[min(1, len(above) - 1)] / "config.yaml"
        raise FileNotFoundError(f"{config}: the config of the run that wrote {checkpoint} is not there")
    return Run(checkpoint, read_fit_config(config))


def read_fit_config(path: Path) -> dict[str, Any]:
    """The config that a run of `ipvrm fit` kept.

    Args:
        path: its `config.yaml`.

    Raises:
        ValueError: it is none, or not one of a fit; names the file.
    """
    kept = read_config(path)
    with library_errors(f"{path}: not the config of a fit that can be exported, for want of a key"):
        kept["model"]["class_path"], kept["model"]["init_args"]["language_model"]["class_path"]
    return kept


def language_model(config: dict[str, Any]) -> LanguageModelFactory:
    """The language model of a run's config, built by its class path and arguments."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LanguageModelFactory, "language_model")
    chosen = {"language_model": config["model"]["init_args"]["language_model"]}
    found: LanguageModelFactory = parser.instantiate_classes(parser.parse_object(chosen)).language_model
    return found


def read_config(path: Path) -> dict[str, Any]:
    """The config that a run kept.

    Args:
        path: its `config.yaml`.

    Raises:
        ValueError: it is none; names the file.
    """
    with library_errors(f"{path}: not the config of a run"):
        found: dict[str, Any] = dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    return found


def named_class(path: str) -> Any:
    """A class that a run names.

    Args:
        path: modules and class.

    Raises:
        ValueError: it cannot be imported.
    """
    with library_errors(f"{path}, which the run names, cannot be imported: put its module on the path (PYTHONPATH)"):
        return resolve_name(path)


def model_weights(state: dict[str, Tensor], part: Part) -> dict[str, Tensor]:
    """The trained weights of one model of a run, by the names they have in a model that was just built.

    Args:
        state: `state_dict` of a checkpoint.
        part: of a policy optimisation, `policy` or `reward`; other runs have one model.

    Raises:
        ValueError: the checkpoint holds no such model.
    """
    adapter = {"policy": ".default.", "reward": ".reward."}[part]
    found: dict[str, Tensor] = {}
    for name, weight in state.items():
        if name.startswith("model.") and part == "policy":
            found[name.removeprefix("model.")] = weight
        elif name.startswith(f"roles.{part}."):
            found[name.removeprefix(f"roles.{part}.")] = weight
        elif name.startswith("roles.model.") and adapter in f"{name}.":
            found[name.removeprefix("roles.model.").replace(".reward", ".default")] = weight
    if not found:
        only = any(name.startswith("model.") for name in state)
        hint = "; it is of no policy optimisation and has one model: leave out --part" if only else ""
        raise ValueError(f"the checkpoint holds no {part} model that was trained{hint}")
    return found


def value_head_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The trained weights of a value head, by the names they have in it; none where the objective has none.

    Args:
        state: `state_dict` of a checkpoint.
    """
    prefix = "value_head."
    return {name.removeprefix(prefix): w.contiguous() for name, w in state.items() if name.startswith(prefix)}
