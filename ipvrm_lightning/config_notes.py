"""What a config comes to that its writer may not expect: arguments that an earlier class left behind, idle seeds."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pkgutil import resolve_name
from typing import Any

#: Places of classes whose numbers make a result: with another class, the parser keeps those that it knows too.
_CHOICES = ("objective", "optimizer", "reward.objective", "reward.optimizer")


def config_notes(config: Mapping[str, Any]) -> Iterator[str]:
    """Lines for whoever starts a fit.

    Args:
        config: of the fit, as plain values.
    """
    model = _at(config, "model.init_args")
    for place in _CHOICES:
        chosen = _at(model, place)
        if isinstance(chosen, Mapping) and "class_path" in chosen:
            yield f"{place} {_in_words(chosen)}"
    seed, of_data = config.get("seed_everything"), _at(config, "data.init_args.seed")
    if seed and of_data is not None and seed != of_data:
        sampling = _at(model, "sampling.seed")
        also = "" if sampling is None else f", responses from model.sampling.seed {sampling}"
        yield (
            f"seed_everything {seed} draws new adapters and dropout alone: split, order and pairs come from data.seed"
            f" {of_data}{also}"
        )


def _at(config: Any, place: str) -> Any:
    """The value at a key with dots, None where there is none."""
    for name in place.split("."):
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def _in_words(chosen: Mapping[str, Any]) -> str:
    """A class with its arguments, but for what is off by default; those that are not the class's own say so."""
    kind = resolve_name(chosen["class_path"])
    try:
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(kind).parameters
    except ValueError:  # of a class that is not written in Python
        parameters = {}
    words = []
    for name, value in (chosen.get("init_args") or {}).items():
        default = parameters[name].default if name in parameters else inspect.Parameter.empty
        default = list(default) if isinstance(default, tuple) else default
        if default is inspect.Parameter.empty:
            words.append(f"{name} {value}")
        elif value != default:
            words.append(f"{name} {value} (default {default})")
        elif value not in (None, False):
            words.append(f"{name} {value}")
    return f"{kind.__name__}: {', '.join(words)}" if words else kind.__name__
