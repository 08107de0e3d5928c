"""`export_checkpoint`: a checkpoint of `ipvrm fit` as a Hugging Face folder.

The folder holds weights (safetensors), tokenizer with chat template, a model card, and `ipvrm_config.json`: objective,
reference and thresholds, without which log-probabilities do not read as values.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ipvrm_lightning.exporting.card import model_card
from ipvrm_lightning.exporting.data import data_tokenizer, layout
from ipvrm_lightning.exporting.record import Choices, Origin, describe, objective_of, read_results, uses_policy
from ipvrm_lightning.exporting.refusals import check_exportable
from ipvrm_lightning.exporting.source import Part, find_run, language_model, model_weights, value_head_weights
from ipvrm_lightning.failures import names_full_disk
from ipvrm_lightning.functional import PROTOCOLS
from ipvrm_lightning.models.checkpoints import check_same_parameters, check_settings_of, read_checkpoint
from ipvrm_lightning.models.exported import CONFIG_NAME, REFERENCE_FOLDER, VALUE_HEAD_NAME, ExportedConfig
from ipvrm_lightning.models.language_model import LanguageModelFactory
from ipvrm_lightning.models.output_head import freeze_unread_head
from ipvrm_lightning.models.preparation import restore_config
from ipvrm_lightning.models.reference import base_fingerprint
from ipvrm_lightning.permissions import follow_umask


def export_checkpoint(
    source: Path,
    out: Path,
    *,
    part: Part = "policy",
    merge: bool = False,
    with_reference: bool = False,
    protocol: str = "step_sum",
    threshold_origin: Origin = "cross_fitted",
    results: Path | None = None,
    overwrite: bool = False,
    run_folder: Path | None = None,
) -> Path:
    """Write a Hugging Face folder.

    Args:
        source: a checkpoint, the folder of a run, or the folder of runs for the newest.
        out: the folder to write.
        part: of a policy optimisation, the `policy` or its `reward` model; other runs have one model.
        merge: add the adapter's update to the weights, in float32; otherwise the adapter is exported alone.
        with_reference: put the reference's weights into the folder as well, where it is not the model with its adapter
            off; done in any case where nothing else holds them.
        protocol: of the step scores, by default.
        threshold_origin: which thresholds are used: `cross_fitted` (what a user gets) or `oracle`.
        results: a `results.json` of `ipvrm test`: its table goes into the card, its thresholds into the config.
        overwrite: replace an export that is there.
        run_folder: of the run that wrote the checkpoint, where that lies elsewhere.

    Returns:
        The folder.

    Raises:
        FileExistsError: there is something at `out`, and it is not to be overwritten, or is no export.
        FileNotFoundError: no checkpoint, config or results.
        ValueError: the checkpoint does not fit its config, or cannot be exported as asked.
    """
    out = out.resolve() if out.is_symlink() else out  # the folder is replaced, not the link to it
    check_place(out, overwrite=overwrite)
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, found {protocol!r}")
    choices = Choices(part, merge, with_reference, protocol, threshold_origin)
    run = find_run(source, folder=run_folder)
    judged = None if results is None else read_results(results, run)
    factory = language_model(run.config)
    stored = read_checkpoint(run.checkpoint)
    weights = model_weights(stored["state_dict"], part)
    check_exportable(run.config, factory, objective_of(run, stored, part), merge=merge)
    # as in the test run, where there is one: its thresholds are of what it read
    data = (judged and judged.data) or run.config.get("data")
    tokenizer = data_tokenizer(data, factory)
    laid_out = layout(data, chat=bool(tokenizer.chat_template))
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        with names_full_disk(out):
            model: Any = factory.build_model().eval()
            own = {"language_model": factory.describe(), "base": base_fingerprint(model)}
            check_settings_of(stored, own, training=False)
            record = describe(run, factory, model, stored, choices, results=judged, layout=laid_out)
            if record.holds_reference:
                policy = model_weights(stored["state_dict"], "policy") if uses_policy(run, part) else None
                _save_reference(factory, policy, scratch / REFERENCE_FOLDER, record)
            if value_head := value_head_weights(stored["state_dict"]):
                freeze_unread_head(model)  # as in training
            _load(model, weights)
            _save_model(model, scratch, record)
            if value_head:
                save_file(value_head, scratch / VALUE_HEAD_NAME)
            tokenizer.save_pretrained(scratch)
            record.write(scratch)
            card = model_card(record, config=run.config, reports=judged and judged.reports)
            (scratch / "README.md").write_text(card, encoding="utf-8")
            follow_umask(scratch)
            _put_in_place(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def check_place(out: Path, *, overwrite: bool) -> None:
    """Refuse to write where something is that may not be replaced.

    Args:
        out: the folder to write.
        overwrite: replace an export that is there.

    Raises:
        FileExistsError: there is something at `out`, and it is not to be overwritten, or is no export.
    """
    if not out.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{out} exists; give another folder, or --overwrite")
    if not (out / CONFIG_NAME).is_file():
        raise FileExistsError(
            f"{out} is no export (it has no {CONFIG_NAME}) and is not overwritten; remove it yourself"
        )


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


@torch.no_grad()
def _load(model: nn.Module, weights: dict[str, Tensor]) -> None:
    own = {
        name: parameter for name, parameter in model.named_parameters() if name in weights or parameter.requires_grad
    }
    check_same_parameters(own, weights, what="the checkpoint")
    for name, parameter in own.items():
        parameter.copy_(weights[name])


def _save_model(model: Any, folder: Path, record: ExportedConfig) -> None:
    """Write an adapter alone, or a whole model, into which an adapter is merged."""
    if record.kind == "model" and hasattr(model, "merge_and_unload"):
        model = model.to(getattr(torch, record.dtype)).merge_and_unload()
    if hasattr(model, "peft_config"):
        assert record.base is not None
        adapter = model.peft_config["default"]
        adapter.base_model_name_or_path, adapter.revision = record.base.name, record.base.revision
        model.save_pretrained(folder, save_embedding_layers=False)
        return
    restore_config(model)
    model.save_pretrained(folder)


def _save_reference(
    factory: LanguageModelFactory, policy: dict[str, Tensor] | None, folder: Path, record: ExportedConfig
) -> None:
    """Write the reference: the policy with these weights, or the model that training started from."""
    model: Any = factory.build_model().eval()
    if policy is not None:
        _load(model, policy)
    elif hasattr(model, "unload"):
        model = model.unload()
    _save_model(model, folder, record)
