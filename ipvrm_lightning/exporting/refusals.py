"""What an export cannot hold, refused before weights are loaded: it would score otherwise, without a word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule

from ipvrm_lightning.exporting.source import language_model, named_class, read_fit_config
from ipvrm_lightning.failures import library_errors
from ipvrm_lightning.models.language_model import LanguageModelFactory
from ipvrm_lightning.models.reference import AdaptersOff, CachedReference, FrozenCopy
from ipvrm_lightning.modules import IPVRMModule
from ipvrm_lightning.objectives import Objective, build_objective


def check_run(config: Path, module: LightningModule, *, merge: bool) -> None:
    """Refuse a run that is about to train and could not be exported.

    Args:
        config: that it keeps.
        module: that trains.
        merge: whether an adapter is added to the weights.

    Raises:
        ValueError: as of `check_exportable`.
    """
    kept = read_fit_config(config)
    objective = getattr(module, "objective", None)
    described = objective.describe() if isinstance(objective, Objective) else None
    check_exportable(kept, language_model(kept), described, merge=merge)


def check_exportable(
    config: Mapping[str, Any], factory: LanguageModelFactory, objective: Mapping[str, Any] | None, *, merge: bool
) -> None:
    """Refuse a run whose scores are more than weights, an objective of numbers and a reference of this package.

    Args:
        config: of the run.
        factory: of its language model.
        objective: class path and arguments; None for a policy or a supervised model, which has no scores.
        merge: whether an adapter is added to the weights.

    Raises:
        ValueError: a class that cannot be imported, or one that an export cannot hold; names it.
    """
    if merge and factory.quantized:
        raise ValueError("an adapter on 4-bit weights cannot be merged without loss: export it alone, without merge")
    module = named_class(config["model"]["class_path"])
    if objective is None:
        return
    path = objective["class_path"]
    kind = named_class(path)
    with library_errors(f"{path}: this objective cannot be made of the arguments in the checkpoint"):
        own = sorted(build_objective(objective).state_dict())
    if own:
        raise ValueError(
            f"{path} has weights or buffers of its own ({own[0]}), which an export cannot hold: make them arguments"
        )
    if issubclass(module, IPVRMModule) and module.token_scores is not IPVRMModule.token_scores:
        raise ValueError(
            f"{config['model']['class_path']} has a token_scores of its own, which an export cannot hold:"
            " change scores in an objective (prefix_logits), which comes along"
        )
    if kind.score_source == "log_ratio":
        _check_reference(config["model"]["init_args"].get("reference"))


def _check_reference(chosen: Mapping[str, Any] | None) -> None:
    """Refuse another reference than the weights that training started from."""
    if chosen is None:
        return
    path = chosen["class_path"]
    if named_class(path) not in (AdaptersOff, FrozenCopy, CachedReference):
        raise ValueError(
            f"trained against {path}, which an export cannot hold: train against AdaptersOff, FrozenCopy or"
            " CachedReference, or score with the checkpoint (`ipvrm predict`)"
        )
    _check_reference((chosen.get("init_args") or {}).get("source"))
