"""`export_checkpoint`: a checkpoint of `ipvrm fit` as a Hugging Face folder.

The folder holds weights (safetensors), tokenizer with chat template, a model card, and `ipvrm_config.json`: objective,
reference and thresholds, without which log-probabilities do not read as values. It appears whole or not at all.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from ipvrm_lightning.callbacks.run_record import run_facts
from ipvrm_lightning.exporting.card import model_card
from ipvrm_lightning.exporting.record import Origin, Results, base_source, layout, read_results, thresholds
from ipvrm_lightning.exporting.source import Part, Run, find_run, model_weights
from ipvrm_lightning.functional import PROTOCOLS
from ipvrm_lightning.models.checkpoints import check_same_parameters, read_checkpoint
from ipvrm_lightning.models.exported import (
    CONFIG_NAME,
    REFERENCE_FOLDER,
    VALUE_HEAD_NAME,
    ExportedConfig,
    ModelSource,
)
from ipvrm_lightning.models.language_model import LanguageModelFactory


class Choices(NamedTuple):
    """What is exported, and how.

    Args:
        part: of a policy optimisation, the `policy` or its `reward` model; other runs have one model.
        merge: add the adapter's update to the weights; otherwise the adapter is exported alone.
        with_reference: put the reference's weights into the folder as well, where it is not the model with its adapter
            off; done in any case where nothing else holds them.
        protocol: of the step scores, by default.
        threshold: origin of the thresholds that are used.
    """

    part: Part = "policy"
    merge: bool = False
    with_reference: bool = False
    protocol: str = "step_sum"
    threshold: Origin = "cross_fitted"


def export_checkpoint(
    source: Path, out: Path, choices: Choices = Choices(), *, results: Path | None = None, overwrite: bool = False
) -> Path:
    """Write a Hugging Face folder.

    Args:
        source: a checkpoint, the folder of a run, or the folder of runs for the newest.
        out: the folder to write.
        choices: what is exported, and how.
        results: a `results.json` of `ipvrm test`: its table goes into the card, its thresholds into the config.
        overwrite: replace an export that is there.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder is there.
        FileNotFoundError: no checkpoint, config or results.
        ValueError: the checkpoint does not fit its config, or cannot be exported as asked.
    """
    _check_place(out, overwrite)
    run = find_run(source)
    judged = None if results is None else read_results(results, run)
    factory = language_model(run.config)
    _check_choices(choices, factory)
    stored = read_checkpoint(run.checkpoint)
    weights = model_weights(stored["state_dict"], choices.part)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        model: Any = factory.build_model().eval()
        tokenizer = factory.build_tokenizer()
        record = _record(run, factory, model, stored, choices, judged, chat=bool(tokenizer.chat_template))
        _save_reference(record.reference, factory, stored, choices, scratch)
        _load(model, weights)
        _save_model(model, scratch, merge=choices.merge, base=record.base)
        _save_value_head(stored["state_dict"], scratch)
        tokenizer.save_pretrained(scratch)
        record.write(scratch)
        card = model_card(record, config=run.config, reports=judged and judged.reports)
        (scratch / "README.md").write_text(card, encoding="utf-8")
        scratch.chmod(0o755)
        _put_in_place(scratch, out)
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


def _check_place(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{out} exists; give another folder, or --overwrite")
    if not (out / CONFIG_NAME).is_file():
        raise FileExistsError(f"{out} is no export (it has no {CONFIG_NAME}) and is not overwritten; remove it yourself")


def _put_in_place(scratch: Path, out: Path) -> None:
    if not out.exists():
        os.replace(scratch, out)
        return
    old = scratch.with_name(f"{scratch.name}-old")
    os.replace(out, old)
    try:
        os.replace(scratch, out)
    except BaseException:
        os.replace(old, out)
        raise
    shutil.rmtree(old)


def _check_choices(choices: Choices, factory: LanguageModelFactory) -> None:
    if choices.protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, found {choices.protocol!r}")
    if choices.merge and factory.quantized:
        raise ValueError("an adapter on 4-bit weights cannot be merged without loss: export it alone, without --merge")
    if factory.has_adapters and not choices.merge:
        if getattr(factory, "gguf_file", None):
            raise ValueError("an adapter on a GGUF file belongs on nothing that others can load: export it with --merge")
        if type(factory).__name__ == "RandomLanguageModel":
            raise ValueError("an adapter on random weights belongs on nothing that can be loaded: export it with --merge")


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


def _save_model(model: Any, folder: Path, *, merge: bool, base: ModelSource | None) -> None:
    if merge and hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    if hasattr(model, "peft_config"):
        assert base is not None
        adapter = model.peft_config["default"]
        adapter.base_model_name_or_path, adapter.revision = base.name, base.revision
        model.save_pretrained(folder, save_embedding_layers=False)
        return
    model.config.use_cache = True  # training had it off; generation wants it
    model.save_pretrained(folder)


def _save_reference(
    reference: ModelSource | str | None,
    factory: LanguageModelFactory,
    stored: dict[str, Any],
    choices: Choices,
    folder: Path,
) -> None:
    """Write the reference's weights, where the record says that they are in the export."""
    if not isinstance(reference, ModelSource) or reference.name != REFERENCE_FOLDER:
        return
    model: Any = factory.build_model().eval()
    if _is_policy(stored, choices):
        base = base_source(factory, model)
        _load(model, model_weights(stored["state_dict"], "policy"))
        _save_model(model, folder / REFERENCE_FOLDER, merge=choices.merge, base=base)
    else:
        base_model = model.unload() if hasattr(model, "unload") else model
        _save_model(base_model, folder / REFERENCE_FOLDER, merge=False, base=None)


def _save_value_head(state: dict[str, Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    head = {
        name.removeprefix("value_head."): weight.contiguous()
        for name, weight in state.items()
        if name.startswith("value_head.")
    }
    if head:
        save_file(head, folder / VALUE_HEAD_NAME)


def _is_policy(stored: dict[str, Any], choices: Choices) -> bool:
    """Whether the reference is the policy of the run: the behaviour's, as the paper has it."""
    return choices.part == "reward" and stored["reference"] == "behavior"


def _record(
    run: Run,
    factory: LanguageModelFactory,
    model: nn.Module,
    stored: dict[str, Any],
    choices: Choices,
    judged: Results | None,
    *,
    chat: bool,
) -> ExportedConfig:
    """What `ipvrm_config.json` holds; `model` is as it was before training."""
    settings = run.config["model"]["init_args"]
    objective, temperature = stored.get("objective"), 1.0
    if choices.part == "reward":
        objective = stored["settings"]["reward"]["objective"]
        stored["reference"] = settings["reward"].get("reference", "behavior")
        temperature = settings["sampling"]["temperature"]
    base = base_source(factory, model)
    adapter = factory.has_adapters and not choices.merge
    reference: Any = None
    if objective is not None and resolve_name(objective["class_path"]).score_source == "log_ratio":
        inside = base is None or choices.with_reference
        if _is_policy(stored, choices):
            reference = replace(base or ModelSource(REFERENCE_FOLDER), name=REFERENCE_FOLDER, revision=None)
            reference = replace(reference, gguf_file=None, weights=None)
        elif adapter:
            reference = "adapters_off"
        elif inside:
            reference = replace(base or ModelSource(REFERENCE_FOLDER), name=REFERENCE_FOLDER, revision=None)
            reference = replace(reference, gguf_file=None)
        else:
            reference = base
    training = layout(run.config.get("data"), chat=chat)
    return ExportedConfig(
        kind="adapter" if adapter else "model",
        base=base,
        objective=objective,
        reference=reference,
        temperature=temperature,
        training={"prompt_format": training.prompt_format, "system_prompt": training.system_prompt},
        judging=training if judged is None or judged.data is None else layout(judged.data, chat=chat),
        protocol=choices.protocol,
        thresholds={} if judged is None else thresholds(judged.reports, choices.threshold),
        part=choices.part if "sampling" in settings else None,
        versions=run_facts()["versions"],
    )
