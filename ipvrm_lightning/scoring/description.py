"""What is known of a reward model before its weights are loaded: from an export, or from who brings a pair."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ipvrm_lightning.failures import library_errors
from ipvrm_lightning.functional import PROTOCOLS
from ipvrm_lightning.models.exported import (
    ADAPTER_CONFIG,
    CONFIG_NAME,
    REFERENCE_FOLDER,
    VALUE_HEAD_NAME,
    ExportedConfig,
    Layout,
    ModelSource,
    read_exported_config,
    rounding_note,
)
from ipvrm_lightning.objectives import IPVRM, Objective, build_objective
from ipvrm_lightning.pretrained import check_place, find_file, local_folder

TOKENIZER_CONFIG = "tokenizer_config.json"
_OWN_OBJECTIVES = "ipvrm_lightning.objectives."


@dataclass(frozen=True)
class Part:
    """A model, or an adapter on one.

    Args:
        model: a whole one, or the base of the adapter.
        adapter: folder of the adapter.
        checked: its weights are those that an export names, or lie in the export.
    """

    model: ModelSource
    adapter: str | None = None
    checked: bool = False

    @property
    def name(self) -> str:
        """What errors call it."""
        return self.adapter or self.model.name

    @property
    def tokenizer(self) -> ModelSource:
        """Where its tokenizer is: an adapter may bring one of its own."""
        if self.adapter is not None and find_file(self.adapter, TOKENIZER_CONFIG) is not None:
            return ModelSource(self.adapter)
        return self.model


@dataclass(frozen=True)
class Description:
    """A reward model and how its scores read.

    Args:
        name: as asked for.
        reward: the model that is scored with.
        tokenizer: where its tokenizer is.
        objective: what its scores mean.
        reference: what log-ratios are taken against; None for the reward model with its adapter off, and where the
            objective takes no log-ratio.
        value_head: file of the linear head, for objectives that have one.
        temperature: divides the logits of both.
        layout: how problem and steps become text.
        protocol: of the step scores that are compared with the threshold.
        thresholds: by protocol.
        thresholds_precision: of the test run that chose them, None where it is not known.
        dtype: precision to compute in, where it is not that of training.
        trust_remote_code: run code that a model's repository brings.
    """

    name: str
    reward: Part
    tokenizer: ModelSource
    objective: Objective
    reference: Part | None = None
    value_head: Path | None = None
    temperature: float = 1.0
    layout: Layout = field(default_factory=Layout)
    protocol: str = "step_sum"
    thresholds: dict[str, float] = field(default_factory=dict)
    thresholds_precision: str | None = None
    dtype: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, found {self.protocol!r}")

    @property
    def threshold(self) -> float | None:
        """What scores of the protocol are compared with; None where it is not known."""
        return self.thresholds.get(self.protocol)

    @property
    def rounding_note(self) -> str | None:
        """What to say of a threshold that was chosen in another precision than that of scoring, else None."""
        return None if self.threshold is None else rounding_note(self.thresholds_precision)

    def read_as(self, *, layout: Layout | None, protocol: str | None, threshold: float | None) -> Description:
        """The same with another layout, protocol or threshold; None leaves each as it is.

        With another layout the thresholds that were chosen for the old one are dropped.

        Raises:
            ValueError: an unknown protocol, or a threshold that is not finite.
        """
        changed = self
        if protocol is not None:
            changed = replace(changed, protocol=protocol)
        if layout is not None and layout != self.layout:
            changed = replace(changed, layout=layout, thresholds={}, thresholds_precision=None)
        if threshold is not None:
            if not math.isfinite(threshold):
                raise ValueError(f"threshold must be a finite number, found {threshold}")
            changed = replace(changed, thresholds={changed.protocol: threshold}, thresholds_precision=None)
        return changed


def describe(
    name: str,
    *,
    reference: str | None = None,
    objective: Objective | None = None,
    beta: float | None = None,
    revision: str | None = None,
    gguf_file: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> Description:
    """Read what a folder or repository says of itself.

    Args:
        name: an export of `ipvrm export`, or a model, an adapter or a GGUF file: a folder, a repository on the hub, or
            the path of a .gguf file in one of these.
        reference: the like, to take log-ratios against. An export has its own: then it says where that is now, or where
            the model is that an exported adapter belongs on. Weights are compared with what the export recorded.
        objective: how log-ratios read as values, for what is no export.
        beta: short for `objective=IPVRM(beta=beta)`.
        revision: branch, tag or commit of `name` on the hub.
        gguf_file: GGUF file in `name`.
        dtype: precision to compute in: `float32`, `bfloat16` or `float16`.
        trust_remote_code: run code that a repository brings, and objectives that are not this package's.

    Raises:
        ValueError: what is missing, or does not go together.
    """
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise ValueError(f"dtype must be float32, bfloat16 or float16, found {dtype!r}")
    if objective is not None and beta is not None:
        raise ValueError(f"give beta or an objective, which has its own ({objective.beta}), not both")
    given = objective if beta is None else IPVRM(beta=beta)
    source = _model_source(name, revision, gguf_file)
    name = source.name
    check_place(name)
    found = find_file(name, CONFIG_NAME, revision=revision)
    exported = None if found is None else read_exported_config(found)
    if exported is not None and exported.objective is not None:
        if given is not None:
            raise ValueError(f"{name} is an export, whose {CONFIG_NAME} says how its scores read: leave beta out")
        if source.gguf_file is not None:
            raise ValueError(f"{name} is an export, which has weights of its own: leave {source.gguf_file} out")
        objective = _exported_objective(name, exported.objective, trust_remote_code)
        description = _of_export(
            name, local_folder(source.name, revision=source.revision), exported, objective, reference
        )
    elif given is None:
        what = "an export of a policy" if exported else f"no export of ipvrm (it has no {CONFIG_NAME})"
        raise ValueError(f"{name} is {what}: say how its log-ratios read, by beta or an objective")
    else:
        description = _of_pair(source, given, reference)
    return replace(description, dtype=dtype or description.dtype, trust_remote_code=trust_remote_code)


def _exported_objective(name: str, described: dict[str, Any], trust_remote_code: bool) -> Objective:
    kinds = list(_class_paths(described))
    for kind in kinds:
        if not kind.startswith(_OWN_OBJECTIVES) and not trust_remote_code:
            raise ValueError(
                f"{name}: its objective {kind} is code of its own, which is run with trust_remote_code alone"
            )
    with library_errors(f"{name}/{CONFIG_NAME}: its objective {''.join(kinds[:1])} cannot be made"):
        return build_objective(described)


def _class_paths(value: Any) -> Iterator[str]:
    """Of an objective as `Objective.describe` tells of it, and of those among its arguments."""
    if isinstance(value, dict) and "class_path" in value:
        yield str(value["class_path"])
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _class_paths(one)


def _of_export(
    name: str, folder: Path, exported: ExportedConfig, objective: Objective, reference: str | None
) -> Description:
    head = folder / VALUE_HEAD_NAME
    if objective.score_source == "value_head" and not head.is_file():
        raise ValueError(f"{folder}: no {VALUE_HEAD_NAME}, which its objective reads")
    if exported.kind == "model":
        reward = Part(ModelSource(str(folder), dtype=exported.dtype))
        if exported.reference is None and reference is not None:
            raise ValueError(f"{name}: {type(objective).__name__} takes no reference")
    elif exported.base is None:
        raise ValueError(f"{folder / CONFIG_NAME}: does not say what its adapter belongs on")
    else:
        reward = Part(_moved(exported.base, reference, folder), str(folder))
    return Description(
        name=name,
        reward=reward,
        tokenizer=ModelSource(str(folder)),
        objective=objective,
        reference=_exported_reference(folder, exported, reward, reference),
        value_head=head if objective.score_source == "value_head" else None,
        temperature=exported.temperature,
        layout=exported.layout,
        protocol=exported.protocol,
        thresholds={protocol: one.value for protocol, one in exported.thresholds.items()},
        thresholds_precision=exported.thresholds_precision,
        # else rounding of a reference in half precision would enter the log-ratios of a merged model
        dtype=exported.dtype if exported.kind == "model" else None,
    )


def _exported_reference(folder: Path, exported: ExportedConfig, reward: Part, given: str | None) -> Part | None:
    source = exported.reference
    if not isinstance(source, ModelSource):
        return None
    inside = str(folder / REFERENCE_FOLDER)
    if exported.holds_reference and reward.adapter is not None:
        return Part(reward.model, inside, checked=True)
    if exported.holds_reference and given is None:
        return Part(replace(source, name=inside), checked=True)
    if exported.holds_reference and source.weights is None:
        raise ValueError(
            f"{folder}: its reference lies in its folder {REFERENCE_FOLDER}, and nothing tells whether another is the"
            " same: leave reference out"
        )
    return Part(_moved(source, given, folder), checked=source.weights is not None)


def _moved(source: ModelSource, place: str | None, export: Path) -> ModelSource:
    """A model that an export names, at the place that a user says it has now.

    Raises:
        FileNotFoundError: it is a folder that is gone, and nobody says where it is.
    """
    if place is None:
        if Path(source.name).is_absolute() and not Path(source.name).exists():
            raise FileNotFoundError(
                f"{source.name}, which {export} was trained from, is not there: say where it is now by reference"
                " (--reference)"
            )
        return source
    now = _model_source(place)
    return replace(source, name=now.name, revision=None, gguf_file=now.gguf_file)


def _of_pair(source: ModelSource, objective: Objective, reference: str | None) -> Description:
    kind = type(objective).__name__
    if objective.score_source == "value_head":
        raise ValueError(f"{source.name}: {kind} reads a value head, which only an export of ipvrm has")
    reward = _part(source)
    takes_reference = objective.score_source == "log_ratio"
    if not takes_reference and reference is not None:
        raise ValueError(f"{kind} takes no reference")
    if takes_reference and reference is None and reward.adapter is None:
        raise ValueError(f"{source.name}: say which model its log-ratios are taken against (reference)")
    other = None if reference is None else _part(_model_source(reference))
    if other is not None and _place(other) == _place(reward):
        raise ValueError(f"{source.name}: the reference is the model itself, so that every value would be 0")
    return Description(
        name=source.name, reward=reward, tokenizer=reward.tokenizer, objective=objective, reference=other
    )


def _place(part: Part) -> Part:
    """The same by one name, however it is spelt: folders, which have no revisions, and the hub's default one."""
    model, adapter = part.model, part.adapter
    if (folder := Path(model.name)).exists():
        model = replace(model, name=str(folder.resolve()), revision=None)
    else:
        model = replace(model, revision=model.revision or "main")
    return replace(part, model=model, adapter=adapter and str(Path(adapter).resolve()))


def _part(source: ModelSource) -> Part:
    """A model, or an adapter that lies where it is said to be, on its base."""
    if source.gguf_file is not None or find_file(source.name, "config.json", revision=source.revision) is not None:
        return Part(source)
    found = find_file(source.name, ADAPTER_CONFIG, revision=source.revision)
    if found is None:
        return Part(source)  # loading says what is wrong with it
    with library_errors(f"{found}: not the config of an adapter"):
        config: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
        base = ModelSource(str(config["base_model_name_or_path"]), revision=config.get("revision"))
    return Part(base, str(local_folder(source.name, revision=source.revision)))


def _model_source(name: str, revision: str | None = None, gguf_file: str | None = None) -> ModelSource:
    """A folder or repository, or a GGUF file in one by its path."""
    if name.endswith(".gguf"):
        place, _, gguf_file = name.rpartition("/")
        name = place or "."
    return ModelSource(name, revision=revision, gguf_file=gguf_file)
