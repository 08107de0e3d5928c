"""Reading a `results.json` back into the reports that were written to it, so that they show their own tables."""

from __future__ import annotations

import json
import math
import types
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from ipvrm_lightning.metrics.tables import Report


class Rebuilt(NamedTuple):
    """What a test run found.

    Args:
        reports: by name.
        unknown: names of reports that this version does not know.
        run: command, seed, versions, time.
    """

    reports: dict[str, Report]
    unknown: list[str]
    run: dict[str, Any]


def rebuild_results(path: str | Path) -> Rebuilt:
    """Read the reports of a test run.

    Args:
        path: the `results.json`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or a field is missing or of the wrong kind; names the field.
    """
    try:
        plain = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(plain, dict) or not isinstance(plain.get("reports"), dict):
        raise ValueError(f"{path}: reports: missing; expected what `ipvrm test` writes")
    known = _kinds()
    reports = {
        name: rebuild(known[name], value, f"{path}: reports.{name}")
        for name, value in plain["reports"].items()
        if name in known
    }
    run = plain.get("run")
    return Rebuilt(reports, sorted(set(plain["reports"]) - set(known)), run if isinstance(run, dict) else {})


def _kinds() -> dict[str, Any]:
    from ipvrm_lightning.metrics.average_at_k import AverageAtKReport
    from ipvrm_lightning.metrics.best_of_n import BestOfNReport
    from ipvrm_lightning.metrics.calibration import CalibrationReport
    from ipvrm_lightning.metrics.prefix_truth import PrefixTruthReport
    from ipvrm_lightning.metrics.step_f1_report import StepF1Report

    return {
        "step_f1": StepF1Report,
        "best_of_n": BestOfNReport,
        "calibration": CalibrationReport,
        "prefix_truth": PrefixTruthReport,
        "average_at_k": AverageAtKReport,
    }


def rebuild(kind: Any, value: Any, where: str) -> Any:
    """A value of a type from what `plain_report` made of it: null is an unknown number.

    Args:
        kind: dataclass, named tuple, dictionary, list, number or text.
        value: as JSON holds it.
        where: how messages name it.

    Raises:
        ValueError: a missing or unknown field, or a value of the wrong kind.
    """
    if is_dataclass(kind) or hasattr(kind, "_fields"):
        return _rebuild_record(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _rebuild_choice(arguments, value, where)
    if origin is dict and isinstance(value, dict):
        key_kind, of = arguments
        return {_key(key_kind, key, where): rebuild(of, one, f"{where}.{key}") for key, one in value.items()}
    if origin is list and isinstance(value, list):
        return [rebuild(arguments[0], one, f"{where}[{index}]") for index, one in enumerate(value)]
    if kind is float and value is None:
        return math.nan
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind in (int, str) and isinstance(value, kind) and not isinstance(value, bool):
        return value
    expected = {dict: "an object", list: "a list", float: "a number", int: "a whole number", str: "text"}
    raise ValueError(f"{where}: expected {expected[origin or kind]}, found {value!r:.60}")


def _rebuild_record(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, found {value!r:.60}")
    kinds = get_type_hints(kind)
    names = [field.name for field in fields(kind)] if is_dataclass(kind) else list(kind._fields)
    for name in (*names, *value):
        if name not in value:
            raise ValueError(f"{where}: {name}: missing; found {sorted(value)}")
        if name not in kinds:
            raise ValueError(f"{where}: {name}: unknown field; known are {names}")
    arguments = {name: rebuild(kinds[name], value[name], f"{where}.{name}") for name in names}
    try:
        return kind(**arguments)
    except ValueError as error:  # a number outside its range
        raise ValueError(f"{where}: {error}") from None


def _rebuild_choice(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    fitting = [kind for kind in kinds if (get_origin(kind) is dict) == isinstance(value, dict)]
    return rebuild(fitting[0], value, where)


def _key(kind: Any, key: str, where: str) -> Any:
    if kind is not int:
        return key
    try:
        return int(key)
    except ValueError:
        raise ValueError(f"{where}: expected whole numbers as keys, found {key!r:.60}") from None
