"""Checkpoints: which one is meant, and whether its weights are those of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor, nn

from ipvrm_lightning.failures import library_errors
from ipvrm_lightning.models.exported import CONFIG_NAME


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


def check_same_settings(own: Mapping[str, Any], stored: Mapping[str, Any], *, what: str) -> None:
    """Refuse what was made with other settings.

    Args:
        own: settings by name, nested; primitives only.
        stored: of the checkpoint; what it does not mention is not compared.
        what: what holds the settings, for the error.

    Raises:
        ValueError: names the first setting that differs.
    """
    here, there = _flat(own), _flat(stored)
    for name in sorted(here.keys() | there.keys(), key=lambda name: (not name.endswith("class_path"), name)):
        known = name.split(".")[0] in stored
        if known and here.get(name) != there.get(name):
            raise ValueError(
                f"{what} does not fit this config: {name} is {there.get(name, 'absent')} there and"
                f" {here.get(name, 'absent')} here"
            )


def check_settings_of(checkpoint: Mapping[str, Any], own: Mapping[str, Any], *, training: bool) -> None:
    """Refuse a checkpoint whose weights mean something else here, or whose training cannot go on with these settings.

    Args:
        checkpoint: with its `settings`.
        own: settings by name; `language_model` and `base` say what weights mean, the others how they are trained.
        training: whether training goes on.

    Raises:
        ValueError: names the first setting that differs; or where the checkpoint belongs, of another kind of module.
    """
    if "reward" in own and "distrl" not in checkpoint:  # as `DistRLModule` names them
        raise ValueError(
            "the checkpoint is of no policy optimisation: a reward model's is named by model.reward.checkpoint; to"
            " start from a supervised model, `ipvrm export` it (--merge) and give the folder as"
            " model.language_model.init_args.name"
        )
    stored: Mapping[str, Any] = checkpoint.get("settings", {})
    if stored.get("base", own["base"]) != own["base"]:
        raise ValueError(
            "the checkpoint was trained from other weights than those that model.language_model names: its adapters and"
            " log-ratios would mean something else"
        )
    names = own.keys() if training else {"language_model"}
    pick = {name: own[name] for name in own if name in names}
    check_same_settings(pick, {n: v for n, v in stored.items() if n in names}, what="the checkpoint")


#: Weights; where Lightning's `WeightAveraging` keeps averages there, those in training are beside them.
_STATES = ("state_dict", "current_model_state")

#: Where the language models of a training module lie; their buffers come from where their frozen weights come from.
_LANGUAGE_MODELS = ("model.", "roles.", "reference.")


def own_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Persistent buffers by name, but for those of language models: what objectives and subclasses keep as they train.

    Args:
        module: that trains.
    """
    named = {
        f"{place}.{name}" if place else name: buffer
        for place, part in module.named_modules()
        for name, buffer in part.named_buffers(recurse=False)
        if name not in part._non_persistent_buffers_set
    }
    return {name: buffer for name, buffer in named.items() if not name.startswith(_LANGUAGE_MODELS)}


def keep_trained(checkpoint: dict[str, Any], trained: Mapping[str, Tensor]) -> None:
    """Leave frozen weights out of a checkpoint: they come from where they came from.

    Args:
        checkpoint: about to be saved.
        trained: parameters by name, and buffers that change with them.
    """
    for part in _STATES:
        if part in checkpoint:
            checkpoint[part] = {name: value for name, value in checkpoint[part].items() if name in trained}


def add_frozen(checkpoint: dict[str, Any], model: nn.Module) -> None:
    """Put frozen weights back where averages are loaded: `WeightAveraging` wants all weights or none.

    Args:
        checkpoint: about to be loaded.
        model: holds the frozen weights.
    """
    if "current_model_state" not in checkpoint:
        return
    # bitsandbytes tells more of weights in 4 bits than it loads
    named = (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    loaded = {name for kind in named for name, _ in kind}
    whole = {name: value for name, value in model.state_dict().items() if name in loaded}
    for part in _STATES:
        checkpoint[part] = {**whole, **checkpoint[part]}


def optimizer_class(
    factory: Callable[[list[nn.Parameter]], torch.optim.Optimizer], parameters: Mapping[str, nn.Parameter]
) -> str | None:
    """The class that an optimiser factory makes, by its full name.

    Args:
        factory: of the optimiser.
        parameters: that it updates, by name: some optimisers take matrices only, or divide parameters by their shape.

    Returns:
        None where there is nothing to update.
    """
    if not parameters:
        return None
    kind = type(factory(list(parameters.values())))
    return f"{kind.__module__}.{kind.__qualname__}"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def newest_in(folder: Path, pattern: str = "*.ckpt") -> Path | None:
    """The checkpoint written last in a folder or deeper, None where there is none.

    Args:
        folder: `checkpoints` of a run; may be absent.
        pattern: of names.
    """
    return max(folder.rglob(pattern), key=lambda path: path.stat().st_mtime_ns, default=None)


def run_of(checkpoint: Path) -> Path:
    """The folder of the run that wrote a checkpoint: a name with a slash (`{val/auroc}`) puts one deeper.

    Args:
        checkpoint: in the `checkpoints` of a run.
    """
    return next(place.parent for place in checkpoint.parents if place.name == "checkpoints")


def read_checkpoint(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """A checkpoint of Lightning, tensors and plain values alone: nothing in it can run code.

    Args:
        path: file.
        mmap: leave the weights on the disk until they are used.

    Raises:
        ValueError: it is none, is broken, or holds other objects; names the file.
    """
    with library_errors(f"{path}: not a checkpoint that can be read"):
        if path.is_file() and not is_zipfile(path):  # torch's own text speaks of an option of torch.save
            raise ValueError("it is no archive, as which torch writes them: broken, or a bare pickle")
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except UnpicklingError as error:
            # torch's own text goes on for a screen and advises to load it all the same
            raise ValueError("more than tensors and plain values is in it, which could run code") from error
    if not isinstance(stored, dict) or not isinstance(stored.get("state_dict"), dict):
        raise ValueError(f"{path}: not a checkpoint of Lightning: it has no state_dict")
    return stored


def origin(path: Path, checkpoint: Mapping[str, Any]) -> str:
    """Says which checkpoint was taken, for whoever named a folder.

    Args:
        path: of the checkpoint.
        checkpoint: what it holds.
    """
    step = checkpoint.get("global_step")
    return f"from {path}" if step is None else f"from {path}, step {step}"


def newest_checkpoint(root: Path, *, what: str) -> Path:
    """The checkpoint written last by any run under a folder.

    Args:
        root: `default_root_dir` of the runs.
        what: what asks for it, for the error.

    Raises:
        FileNotFoundError: there is none, or the folder is an export; names the folder.
    """
    folders = [root / "checkpoints", *root.glob("*/checkpoints")]  # without a logger, runs have no folder of their own
    found = [path for folder in folders if (path := newest_in(folder)) is not None]
    if not found and (root / CONFIG_NAME).is_file():
        raise FileNotFoundError(
            f"{what}: {root} is what `ipvrm export` wrote; give the checkpoint that it was made from, or the folder of"
            " its run or runs"
        )
    if not found:
        raise FileNotFoundError(f"{what}: no checkpoint under {root}/*/checkpoints; run `ipvrm fit` first")
    return max(found, key=lambda path: path.stat().st_mtime_ns)
