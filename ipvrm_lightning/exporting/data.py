"""What an export takes from the data module of a run: the tokenizer, and how problems and steps are laid out."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ipvrm_lightning.exporting.source import named_class
from ipvrm_lightning.models.exported import Layout
from ipvrm_lightning.models.language_model import LanguageModelFactory
from ipvrm_lightning.pretrained import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LAYOUT = [field.name for field in fields(Layout)]

log = logging.getLogger(__name__)


def known_arguments(data: Mapping[str, Any] | None) -> tuple[frozenset[str], dict[str, Any]]:
    """Arguments of a data module that mean what they mean in this package: others may mean anything by a name.

    Args:
        data: its class path and arguments in a config.

    Returns:
        Names that the module has from classes of this package, and those of its arguments that have such a name.

    Raises:
        ValueError: its class cannot be imported.
    """
    if data is None:
        return frozenset(), {}
    kinds = [kind for kind in named_class(data["class_path"]).__mro__ if kind.__module__.startswith("ipvrm_lightning.")]
    names = frozenset(name for kind in kinds for name in inspect.signature(kind).parameters)
    given = data.get("init_args") or {}
    return names, {name: value for name, value in given.items() if name in names}


def data_tokenizer(data: Mapping[str, Any] | None, factory: LanguageModelFactory) -> PreTrainedTokenizerBase:
    """The tokenizer that a data module reads text with: its own, where it names one, else the model's.

    Args:
        data: its class path and arguments in a config.
        factory: of the language model.

    Raises:
        ValueError: it cannot be loaded.
    """
    _, arguments = known_arguments(data)
    name = arguments.get("tokenizer")
    return factory.build_tokenizer() if name is None else load_tokenizer(name)


def layout(data: Mapping[str, Any] | None, *, chat: bool) -> Layout:
    """How a data module lays out problems and steps: by its class attribute `layout`, and by its arguments.

    Args:
        data: its class path and arguments in a config; what it leaves open is as `Layout` has it.
        chat: the tokenizer has a template, which is what `auto` means.
    """
    names, arguments = known_arguments(data)
    chosen: dict[str, Any] = {}
    if data is not None:
        chosen |= getattr(named_class(data["class_path"]), "layout", {})
        if not chosen and names.isdisjoint(_LAYOUT):
            log.warning(
                "%s does not say how it lays out problems and steps, by a class attribute `layout`: the export is given"
                " the default layout",
                data["class_path"],
            )
    chosen |= {name: arguments[name] for name in _LAYOUT if name in arguments}
    if chosen.get("prompt_format", "auto") == "auto":
        chosen["prompt_format"] = "chat" if chat else "plain"
    return Layout(**chosen)
