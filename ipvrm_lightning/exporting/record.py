"""What an export says of itself: base, objective, reference, layout and thresholds, from a run's config and results."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ipvrm_lightning.callbacks.run_record import run_facts
from ipvrm_lightning.exporting.source import Part, Run, named_class, read_config
from ipvrm_lightning.models.checkpoints import read_checkpoint
from ipvrm_lightning.models.exported import REFERENCE_FOLDER, ExportedConfig, Layout, ModelSource, Threshold
from ipvrm_lightning.models.language_model import LanguageModelFactory
from ipvrm_lightning.models.reference import weights_fingerprint

Origin = Literal["cross_fitted", "oracle"]


class Choices(NamedTuple):
    """What is exported, and how; see `export_checkpoint`."""

    part: Part
    merge: bool
    with_reference: bool
    protocol: str
    threshold_origin: Origin


class Results(NamedTuple):
    """A test run's results.

    Args:
        reports: as `results.json` holds them.
        data: the part of its config that says what it was judged on, None where the config is not beside it.
        precision: that it was judged in, None where the config is not beside it.
    """

    reports: dict[str, Any]
    data: dict[str, Any] | None
    precision: str | None = None


def read_results(path: Path, run: Run) -> Results:
    """Read a `results.json` of `ipvrm test`, and the config beside it.

    Args:
        path: of the file, or the folder of the run that wrote it.
        run: that is exported.

    Raises:
        ValueError: it is no such file, or is of another checkpoint, or of none; names both. Or it is of an earlier step
            of this one, which was written over since.
    """
    path = path / "results.json" if path.is_dir() else path
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        reports, facts = found["reports"], found.get("run")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not a results.json of `ipvrm test` ({type(error).__name__}: {error})") from error
    beside = path.absolute().parent / "config.yaml"
    config = read_config(beside) if beside.is_file() else None
    if config is not None:
        _check_tested(path, config, run)
    step = facts.get("checkpoint_step") if isinstance(facts, dict) else None
    if step is not None and (now := read_checkpoint(run.checkpoint, mmap=True).get("global_step", step)) != step:
        raise ValueError(f"{path}: is of step {step}, and {run.checkpoint} is of step {now}: test that one")
    if config is None:
        return Results(reports, None)
    # a trainer that was told none takes this one
    precision = str((config.get("trainer") or {}).get("precision") or "32-true")
    return Results(reports, config.get("data"), precision)


def _check_tested(path: Path, config: Mapping[str, Any], run: Run) -> None:
    """Refuse results whose config names another checkpoint, or none."""
    tested = config.get("ckpt_path")
    if tested is None and _is_trained(run):
        raise ValueError(f"{path}: its test run loaded no checkpoint, this exports {run.checkpoint}: test that one")
    if tested is not None and _within_runs(Path(tested)) != _within_runs(run.checkpoint.absolute()):
        raise ValueError(f"{path}: is of checkpoint {tested}, this exports {run.checkpoint}: test that one")


def _within_runs(checkpoint: Path) -> tuple[str, ...]:
    """Run, "checkpoints" and file, which tell checkpoints apart wherever the runs lie; a name may hold a slash."""
    depth = next((depth for depth, one in enumerate(checkpoint.parents, 3) if one.name == "checkpoints"), 3)
    return checkpoint.parts[-depth:]


def _is_trained(run: Run) -> bool:
    """Whether weights come from training: an objective that has none scores with those that it started from."""
    objective = run.config["model"]["init_args"].get("objective")
    return not objective or bool(named_class(objective["class_path"]).trainable)


def uses_policy(run: Run, part: Part) -> bool:
    """Whether log-ratios are taken against the policy of the same run: a reward model's, as the paper has it."""
    reward = run.config["model"]["init_args"].get("reward")
    return part == "reward" and bool(reward) and reward.get("reference", "behavior") == "behavior"


def objective_of(run: Run, stored: Mapping[str, Any], part: Part) -> dict[str, Any] | None:
    """How the scores of what is exported read: class path and arguments; None for a policy or a supervised model.

    Args:
        run: that is exported.
        stored: its checkpoint.
        part: of a policy optimisation.
    """
    found: dict[str, Any] | None
    found = stored["settings"]["reward"]["objective"] if part == "reward" else stored.get("objective")
    return found


def describe(
    run: Run,
    factory: LanguageModelFactory,
    model: Any,
    stored: Mapping[str, Any],
    choices: Choices,
    *,
    results: Results | None,
    layout: Layout,
) -> ExportedConfig:
    """What `ipvrm_config.json` is to hold.

    Args:
        run: that is exported.
        factory: of its language model.
        model: as it was before training.
        stored: its checkpoint.
        choices: what is exported, and how.
        results: of its test run.
        layout: of problems and steps.

    Raises:
        ValueError: an adapter on weights that nobody can load.
    """
    arguments = run.config["model"]["init_args"]
    base = _base(factory, model)
    kind: Literal["adapter", "model"] = "adapter" if factory.has_adapters and not choices.merge else "model"
    if kind == "adapter" and base is None:
        raise ValueError("an adapter on random weights belongs on nothing that can be loaded: export it with --merge")
    # an update that is small beside its weight would be rounded away in half precision
    dtype = "float32" if factory.has_adapters and choices.merge else _dtype(factory)
    objective = objective_of(run, stored, choices.part)
    reference: ModelSource | Literal["adapters_off"] | None
    if objective is None or named_class(objective["class_path"]).score_source != "log_ratio":
        reference = None
    elif uses_policy(run, choices.part):
        reference = ModelSource(REFERENCE_FOLDER, dtype=dtype)
    elif kind == "adapter":
        reference = "adapters_off"
    elif base is None:
        reference = ModelSource(REFERENCE_FOLDER, dtype=_dtype(factory))
    elif choices.with_reference:
        reference = ModelSource(REFERENCE_FOLDER, dtype=base.dtype, weights=base.weights)
    else:
        reference = base
    return ExportedConfig(
        kind=kind,
        dtype=dtype,
        base=base,
        objective=objective,
        reference=reference,
        temperature=arguments["sampling"]["temperature"] if choices.part == "reward" else 1.0,
        layout=layout,
        protocol=choices.protocol,
        thresholds={} if results is None else thresholds(results.reports, choices.threshold_origin),
        thresholds_precision=None if results is None else results.precision,
        part=choices.part if "sampling" in arguments else None,
        settings=_settings(stored, merged=kind == "model"),
        versions=run_facts()["versions"],
    )


def _settings(stored: Mapping[str, Any], *, merged: bool) -> dict[str, Any]:
    """What the run's checkpoint says that weights began with, as it is of the export."""
    known = stored.get("settings", {})
    kept = {name: known[name] for name in ("language_model", "base") if name in known}
    if merged and "language_model" in kept:
        kept["language_model"] = {**kept["language_model"], "lora": None, "quantization": None}
    return kept


def thresholds(reports: Mapping[str, Any], origin: Origin) -> dict[str, Threshold]:
    """Thresholds by protocol: the mean of those of one origin, over subsets with right and with wrong solutions.

    Args:
        reports: of a test run.
        origin: of the threshold that is used.
    """
    subsets = reports.get("step_f1", {}).get("subsets", {})
    found: dict[str, Threshold] = {}
    for protocol in dict.fromkeys(name for subset in subsets.values() for name in subset["protocols"]):
        by_subset = {
            name: {kind: _number(result) for kind, result in subset["protocols"][protocol].items()}
            for name, subset in subsets.items()
        }
        known = [value for one in by_subset.values() if (value := one.get(origin)) is not None]
        if known:
            found[protocol] = Threshold(math.fsum(known) / len(known), origin, by_subset)
    return found


def _number(result: Mapping[str, Any] | None) -> float | None:
    """The threshold of a result; None where it is not known, or no F1 chose it: JSON may spell that NaN."""
    known = [result[name] for name in ("threshold", "f1") if result is not None and result[name] is not None]
    return float(known[0]) if len(known) == 2 and all(map(math.isfinite, known)) else None


def _base(factory: LanguageModelFactory, model: Any) -> ModelSource | None:
    """Where a model that was just built comes from, None for weights that were made and not loaded."""
    name = getattr(factory, "name", None) or getattr(model.config, "_name_or_path", None)
    if not name:
        return None
    return ModelSource(
        name=str(Path(name).resolve()) if Path(name).exists() else name,
        revision=getattr(factory, "revision", None) or getattr(model.config, "_commit_hash", None),
        gguf_file=getattr(factory, "gguf_file", None),
        dtype=_dtype(factory),
        quantization=getattr(factory, "quantization", None),
        compute_dtype=getattr(factory, "compute_dtype", "bfloat16"),
        # a wrong reference gives wrong values without an error; 4-bit weights may be rounded otherwise elsewhere
        weights=None if factory.quantized else weights_fingerprint(model, with_config=False),
    )


def _dtype(factory: LanguageModelFactory) -> str:
    return str(getattr(factory, "dtype", "float32"))
