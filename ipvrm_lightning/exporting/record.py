"""What an export says of itself: base, objective, reference, layout and thresholds, from a run's config and results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal, NamedTuple

import yaml

from ipvrm_lightning.exporting.source import Run
from ipvrm_lightning.models.exported import Layout, ModelSource, Threshold
from ipvrm_lightning.models.language_model import LanguageModelFactory
from ipvrm_lightning.models.reference import weights_fingerprint

Origin = Literal["cross_fitted", "oracle"]
_LAYOUT = ("prompt_format", "system_prompt", "step_template", "separator")


class Results(NamedTuple):
    """A test run's results.

    Args:
        reports: as `results.json` holds them.
        data: the part of its config that says what it was judged on, None where the config is not beside it.
    """

    reports: dict[str, Any]
    data: dict[str, Any] | None


def read_results(path: Path, run: Run) -> Results:
    """Read a `results.json` of `ipvrm test`, and the config beside it.

    Args:
        path: of the file.
        run: that is exported.

    Raises:
        ValueError: it is no such file, or is of another checkpoint; names both.
    """
    try:
        reports = json.loads(path.read_text(encoding="utf-8"))["reports"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a results.json of `ipvrm test` ({type(error).__name__}: {error})") from error
    beside = path.absolute().parent / "config.yaml"
    if not beside.is_file():
        return Results(reports, None)
    config = yaml.safe_load(beside.read_text(encoding="utf-8"))
    tested = config.get("ckpt_path")
    if tested is not None and Path(tested).parts[-3:] != run.checkpoint.absolute().parts[-3:]:
        raise ValueError(f"{path}: is of checkpoint {tested}, this exports {run.checkpoint}: test that one")
    return Results(reports, config.get("data"))


def layout(data: Mapping[str, Any] | None, *, chat: bool) -> Layout:
    """How a data module lays out problems and steps.

    Args:
        data: its class path and arguments in a config; what it leaves open is as `Layout` has it.
        chat: the tokenizer has a template, which is what `auto` means.
    """
    chosen: dict[str, Any] = {}
    if data is not None:
        chosen |= getattr(resolve_name(data["class_path"]), "layout", {})
        arguments = data.get("init_args") or {}
        chosen |= {name: arguments[name] for name in _LAYOUT if name in arguments}
    if chosen.get("prompt_format", "auto") == "auto":
        chosen["prompt_format"] = "chat" if chat else "plain"
    return Layout(**chosen)


def base_source(factory: LanguageModelFactory, model: Any) -> ModelSource | None:
    """Where a model that was just built comes from, with the commit and the hash of its weights.

    Returns:
        None for weights that were made and not loaded.
    """
    name = getattr(factory, "name", None) or getattr(model.config, "_name_or_path", None)
    if not name:
        return None
    quantization = getattr(factory, "quantization", None)
    return ModelSource(
        name=str(Path(name).resolve()) if Path(name).exists() else name,
        revision=getattr(factory, "revision", None) or getattr(model.config, "_commit_hash", None),
        gguf_file=getattr(factory, "gguf_file", None),
        dtype=getattr(factory, "dtype", "float32"),
        quantization=quantization,
        compute_dtype=getattr(factory, "compute_dtype", "bfloat16"),
        # a wrong reference gives wrong values without an error; 4-bit weights may be rounded otherwise elsewhere
        weights=None if quantization else weights_fingerprint(model, with_config=False),
    )


def thresholds(reports: Mapping[str, Any], origin: Origin) -> dict[str, Threshold]:
    """Thresholds by protocol: the mean over subsets of those of one origin.

    Args:
        reports: of a test run.
        origin: of the threshold that is used.
    """
    subsets = reports.get("step_f1", {}).get("subsets", {})
    found: dict[str, Threshold] = {}
    for protocol in dict.fromkeys(name for subset in subsets.values() for name in subset["protocols"]):
        by_subset = {
            name: {kind: result["threshold"] for kind, result in subset["protocols"][protocol].items()}
            for name, subset in subsets.items()
        }
        known = {name: one[origin] for name, one in by_subset.items() if one.get(origin) is not None}
        if known:
            found[protocol] = Threshold(sum(known.values()) / len(known), origin, list(known), by_subset)
    return found
