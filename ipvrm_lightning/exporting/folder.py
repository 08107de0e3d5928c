"""`export_checkpoint`: a checkpoint of `ipvrm fit` as a Hugging Face folder.

The folder holds weights (safetensors), tokenizer with chat template, a model card, and `ipvrm_config.json`: objective,
reference and thresholds, without which log-probabilities do not read as values. It appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from ipvrm_lightning.callbacks.run_record import run_facts
from ipvrm_lightning.exporting.card import model_card
from ipvrm_lightning.exporting.source import Part, Run, find_run, model_weights
from ipvrm_lightning.models.checkpoints import check_same_parameters
from ipvrm_lightning.models.language_model import LanguageModelFactory
from ipvrm_lightning.models.reference import weights_fingerprint

CONFIG_NAME = "ipvrm_config.json"
VALUE_HEAD_NAME = "value_head.safetensors"
_FORMAT = 1


def export_checkpoint(
    source: Path,
    out: Path,
    *,
    part: Part = "policy",
    merge: bool = False,
    results: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a Hugging Face folder.

    Args:
        source: a checkpoint, the folder of a run, or the folder of runs for the newest.
        out: the folder to write.
        part: of a policy optimisation, the `policy` or its `reward` model; other runs have one model.
        merge: add the adapter's update to the weights; otherwise the adapter is exported alone.
        results: a `results.json` of `ipvrm test`: its table goes into the card, its thresholds into the config.
        overwrite: replace a folder that is there.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder is there.
        FileNotFoundError: no checkpoint, config or results.
        ValueError: the checkpoint does not fit its config, or cannot be exported as asked.
    """
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; give another folder, or --overwrite")
    judged = None if results is None else json.loads(results.read_text(encoding="utf-8"))
    run = find_run(source)
    factory = language_model(run.config)
    if merge and getattr(factory, "quantization", None):
        raise ValueError("an adapter on 4-bit weights cannot be merged without loss: export it alone, without --merge")
    stored = torch.load(run.checkpoint, map_location="cpu", weights_only=True)
    model = factory.build_model().eval()
    record = _record(run, factory, model, stored, part=part, merge=merge, results=judged)
    _load(model, model_weights(stored["state_dict"], part))
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _save_model(model, scratch, merge=merge)
        _save_value_head(stored["state_dict"], scratch)
        factory.build_tokenizer().save_pretrained(scratch)
        (scratch / CONFIG_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        (scratch / "README.md").write_text(model_card(record, config=run.config, results=judged), encoding="utf-8")
        scratch.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        os.replace(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def language_model(config: dict[str, Any]) -> LanguageModelFactory:
    """The factory that a run's config names."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LanguageModelFactory, "language_model", required=True)
    chosen = config["model"]["init_args"]["language_model"]
    found: LanguageModelFactory = parser.instantiate_classes(
        parser.parse_object({"language_model": chosen})
    ).language_model
    return found


@torch.no_grad()
def _load(model: nn.Module, weights: dict[str, Tensor]) -> None:
    own = {
        name: parameter for name, parameter in model.named_parameters() if name in weights or parameter.requires_grad
    }
    if "lm_head.weight" not in weights:  # under a value head the model's own is not trained
        own.pop("lm_head.weight", None)
    check_same_parameters(own, weights, what="the checkpoint")
    for name, parameter in own.items():
        parameter.copy_(weights[name])


def _save_model(model: Any, folder: Path, *, merge: bool) -> None:
    if merge and hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model.config.use_cache = True  # training had it off; generation wants it
    model.save_pretrained(folder)


def _save_value_head(state: dict[str, Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    head = {name: weight.contiguous() for name, weight in state.items() if name.startswith("value_head.")}
    if head:
        save_file(head, folder / VALUE_HEAD_NAME)


def _record(
    run: Run,
    factory: LanguageModelFactory,
    model: nn.Module,
    stored: dict[str, Any],
    *,
    part: Part,
    merge: bool,
    results: dict[str, Any] | None,
) -> dict[str, Any]:
    """What `ipvrm_config.json` holds; `model` is as it was before training."""
    settings = run.config["model"]["init_args"]
    objective = stored.get("objective")
    if part == "reward":
        objective = stored["settings"]["reward"]["objective"]
    base = getattr(factory, "name", None) or getattr(model.config, "_name_or_path", None) or None
    is_adapter = factory.has_adapters and not merge
    reference = None
    if objective is not None and not any(name.startswith("value_head.") for name in stored["state_dict"]):
        # a wrong reference gives wrong values without an error: its weights are told by their hash
        reference = {
            "kind": "adapters_off" if is_adapter else "model",
            "name": base,
            "revision": getattr(factory, "revision", None),
            "weights": weights_fingerprint(model),
        }
    if part == "reward" and settings["reward"].get("reference", "behavior") == "behavior":
        reference = {"kind": "policy", "name": None}  # the policy of the same run, exported on its own
    data = run.config.get("data", {}).get("init_args", {})
    return {
        "format": _FORMAT,
        "kind": "adapter" if is_adapter else "model",
        "base_model": base,
        "objective": objective,
        "reference": reference,
        "part": part if "reward" in settings else None,
        "prompt": {name: data.get(name) for name in ("prompt_format", "system_prompt")},
        "thresholds": {} if results is None else _thresholds(results),
        "versions": run_facts()["versions"],
    }


def _thresholds(results: dict[str, Any]) -> dict[str, Any]:
    """Thresholds by subset, protocol and origin."""
    subsets = results["reports"].get("step_f1", {}).get("subsets", {})
    return {
        subset: {
            protocol: {origin: report[origin]["threshold"] for origin in ("oracle", "cross_fitted")}
            for protocol, report in found["protocols"].items()
        }
        for subset, found in subsets.items()
    }
