"""Keys of configs: by their dotted names, those that change no result but for rounding, and those of secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pkgutil import resolve_name
from typing import Any

#: Names of arguments, of callbacks and data modules of one's own say, that nobody else is to be told.
_SECRET = re.compile(
    r"(^|_)(token|secret|password|passwd|credentials?|(api|access|private|secret)_?key)$", re.IGNORECASE
)


def flatten(config: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a nested config by dotted key; a list is one value, as JSON.

    Args:
        config: as YAML holds it.
        prefix: of the keys.
    """
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{name}.")
        else:
            plain = value is None or isinstance(value, (str, int, float))
            found[f"{prefix}{name}"] = value if plain else json.dumps(value, default=str)
    return found


def plain_name(key: str) -> str:
    """A key without `init_args` and `class_path`, as it may be typed on the command line."""
    return ".".join(part for part in key.split(".") if part not in ("init_args", "class_path"))


def without_secrets(value: Any) -> Any:
    """A config without the keys whose names are those of secrets, for what leaves this machine.

    Args:
        value: as YAML holds it.
    """
    if isinstance(value, list):
        return [without_secrets(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    return {name: without_secrets(one) for name, one in value.items() if not _SECRET.search(str(name))}


def incidental_keys(config: Mapping[Any, Any]) -> set[str]:
    """Dotted keys of what the classes of a fit's config call `incidental`: arguments that only divide its work.

    Where a validation judges a part of its batches (`limit_val_batches`), their size says which examples it judges:
    then those of the data module count.

    Args:
        config: as YAML holds it.
    """
    found = set(_incidental(config, ""))
    trainer = config.get("trainer") or {}
    limit = trainer.get("limit_val_batches")
    if isinstance(limit, int) or limit not in (None, 1.0) or trainer.get("overfit_batches"):  # 1 is a count, 1.0 all
        found = {key for key in found if not key.startswith("data.") or key.endswith(".num_workers")}
    return found


def _incidental(config: Mapping[Any, Any], prefix: str) -> Iterator[str]:
    if isinstance(path := config.get("class_path"), str):
        with suppress(ImportError, AttributeError, ValueError):  # whoever builds it says so
            names: frozenset[str] = getattr(resolve_name(path), "incidental", frozenset())
            yield from (f"{prefix}init_args.{name}" for name in names)
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _incidental(value, f"{prefix}{name}.")
