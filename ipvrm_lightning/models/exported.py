"""`ipvrm_config.json`: what an exported folder says of itself, without which its log-probabilities are no values."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

CONFIG_NAME = "ipvrm_config.json"
VALUE_HEAD_NAME = "value_head.safetensors"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # PEFT's
REFERENCE_FOLDER = "reference"
FORMAT = 1


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Args:
        name: repository on the hub, or a folder; `reference` for the folder of that name within the export.
        revision: branch, tag or commit on the hub.
        gguf_file: GGUF file in it.
        dtype: precision of the weights.
        quantization: `nf4` for weights in 4 bits.
        compute_dtype: precision of products with 4-bit weights.
        weights: hash of the weights in that precision, None where it was not taken.
    """

    name: str
    revision: str | None = None
    gguf_file: str | None = None
    dtype: str = "float32"
    quantization: Literal["nf4"] | None = None
    compute_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    weights: str | None = None


@dataclass(frozen=True)
class Layout:
    """How a problem and the steps of its solution become text.

    Args:
        prompt_format: `chat` by the tokenizer's template, `plain` text, or `auto` for chat where there is a template.
        system_prompt: put before problems that have no system message.
        step_template: text of a step, with `{number}` (from 1) and `{step}`.
        separator: text between steps.
        chat_template_kwargs: what else the template is told, such as `enable_thinking: false`.
    """

    prompt_format: Literal["auto", "chat", "plain"] = "auto"
    system_prompt: str | None = None
    step_template: str = "Step {number}: {step}"
    separator: str = "\n\n"
    chat_template_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.prompt_format not in ("auto", "chat", "plain"):
            raise ValueError(f"prompt_format must be auto, chat or plain, found {self.prompt_format!r}")
        if not isinstance(self.chat_template_kwargs, (dict, type(None))):
            raise ValueError(f"chat_template_kwargs must be a mapping, found {self.chat_template_kwargs!r}")
        if "{step}" not in self.step_template:
            raise ValueError(f"step_template has no {{step}}: {self.step_template!r}")


@dataclass(frozen=True)
class Threshold:
    """A threshold and where it comes from.

    Args:
        value: a step whose score lies below it is called wrong; the mean over subsets that have one.
        origin: `cross_fitted` (chosen on other problems: what a user gets) or `oracle` (best on the same data).
        by_subset: subset of the test run to origin to threshold.
    """

    value: float
    origin: str
    by_subset: dict[str, dict[str, float | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportedConfig:
    """What `ipvrm_config.json` holds.

    Args:
        kind: `adapter` alone, or a whole `model`.
        dtype: precision that the model was trained in; float32 where an adapter was merged. A whole model's reference
            is read in it too, whatever precision its own weights are stored in.
        base: what an adapter belongs on, or a model was trained from; None for random weights.
        objective: class path and arguments; None for a policy or a supervised model.
        reference: `adapters_off`, a model elsewhere or in the folder `reference` (an adapter on `base` where the export
            is one), or None where the objective takes no log-ratio.
        temperature: divides the logits of model and reference.
        layout: how problem and steps are laid out for scoring: as in the test run, where one was given.
        protocol: of the step scores, by default.
        thresholds: by protocol, for that layout.
        thresholds_precision: `trainer.precision` of the test run that chose them, None where it is not known.
        part: of a policy optimisation, `policy` or `reward`.
        settings: what a policy optimisation that starts from it must agree with: its `language_model`, and `base`, a
            hash of a few numbers of each weight that training began with.
        versions: of packages, when it was exported.
    """

    kind: Literal["adapter", "model"]
    dtype: str = "float32"
    base: ModelSource | None = None
    objective: dict[str, Any] | None = None
    reference: ModelSource | Literal["adapters_off"] | None = None
    temperature: float = 1.0
    layout: Layout = field(default_factory=Layout)
    protocol: str = "step_sum"
    thresholds: dict[str, Threshold] = field(default_factory=dict)
    thresholds_precision: str | None = None
    part: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)

    @property
    def holds_reference(self) -> bool:
        """Whether its reference lies in the export's own folder of that name."""
        return isinstance(self.reference, ModelSource) and self.reference.name == REFERENCE_FOLDER

    def write(self, folder: Path) -> None:
        """Write the file into a folder."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=2, allow_nan=False)
        (folder / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")


def rounding_note(precision: str | None) -> str | None:
    """What to say of thresholds that a test in this `trainer.precision` has chosen; None where scoring rounds alike."""
    if precision in (None, "32-true", "32"):
        return None
    return (
        f"thresholds were chosen in {precision}, and scores are not rounded so: take them from"
        " `ipvrm test --trainer.precision 32-true` (with fast.yaml see docs/scoring.md)"
    )


def read_exported_config(path: Path) -> ExportedConfig:
    """Read an `ipvrm_config.json`.

    Args:
        path: of the file.

    Raises:
        ValueError: it is no such file, or of a format that this version does not know; names the file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if (written := found.pop("format")) != FORMAT:
            raise ValueError(f"format {written} is not known to this version of ipvrm_lightning, which knows {FORMAT}")
        if unknown := found.keys() - {one.name for one in fields(ExportedConfig)}:
            raise ValueError(f"unknown field {min(unknown)}")
        if found["kind"] not in ("adapter", "model"):
            raise ValueError(f"unknown kind {found['kind']!r}")
        found["base"] = found["base"] and ModelSource(**found["base"])
        if isinstance(found["reference"], dict):
            found["reference"] = ModelSource(**found["reference"])
        elif found["reference"] not in (None, "adapters_off"):
            raise ValueError(f"unknown reference {found['reference']!r}")
        found["layout"] = Layout(**found["layout"])
        found["thresholds"] = {name: Threshold(**one) for name, one in found["thresholds"].items()}
        return ExportedConfig(**found)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not an export that can be read ({type(error).__name__}: {error})") from error
