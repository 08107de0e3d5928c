"""The token file: what lies behind the step scores of judged solutions, token by token; `ipvrm report` shows it.

One solution per line as JSON, beside the score file, which keeps its own form. Numbers have five significant digits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ipvrm_lightning.metrics.score_file import is_finite_number, is_text, numbered_lines
from ipvrm_lightning.whole_files import write_atomically


@dataclass(frozen=True)
class TokenRecord:
    """One judged solution, token by token.

    Args:
        id: the record's own id.
        subset: the part of the benchmark it belongs to.
        label: index of the first wrong step, -1 where every step is right.
        prompt: text of the prompt as the model saw it, without special tokens.
        tokens: text of each response token; joined they are the response. Of a character that takes several tokens
            the last one holds all.
        step_ids: the step each token lies in, -1 for none (end of turn), [T].
        td_advantages: value with the token minus value without it, [T].
        values: logit of ending right after each token, [T].
    """

    id: str
    subset: str
    label: int
    prompt: str
    tokens: list[str]
    step_ids: list[int]
    td_advantages: list[float]
    values: list[float]


_TYPES = {field.name: field.type for field in fields(TokenRecord)}
_OF_ITEMS: dict[str, tuple[type, ...]] = {
    "tokens": (str,),
    "step_ids": (int,),
    "td_advantages": (int, float),
    "values": (int, float),
}


def record_to_line(record: TokenRecord) -> str:
    """One line of JSON with a line break; floats with five significant digits."""
    plain = asdict(record)
    for name in ("td_advantages", "values"):
        plain[name] = [float(f"{value:.5g}") for value in plain[name]]
    return json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def record_from_line(line: str, where: str) -> TokenRecord:
    """The record a line holds.

    Args:
        line: one JSON object.
        where: how messages name the line.

    Raises:
        ValueError: not JSON, a missing or unknown field, a value of the wrong kind, or lengths that differ.
    """
    try:
        plain = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error}): {line.strip()[:60]!r}") from None
    if not isinstance(plain, dict):
        raise ValueError(f"{where}: expected an object, found {line.strip()[:60]!r}")
    for name in (*_TYPES, *plain):
        if name not in plain:
            raise ValueError(f"{where}: {name}: missing; found {sorted(plain)}")
        if name not in _TYPES:
            raise ValueError(f"{where}: {name}: unknown field; known are {list(_TYPES)}")
    for name in ("id", "subset", "prompt"):
        if not is_text(plain[name]):
            raise ValueError(f"{where}: {name}: expected text, found {plain[name]!r}")
    for name, types in _OF_ITEMS.items():
        _check_list(plain[name], types, plain["tokens"], f"{where}: {name}")
    if min(plain["step_ids"]) < -1:
        raise ValueError(f"{where}: step_ids: expected -1 or the number of a step, found {min(plain['step_ids'])}")
    steps = max(plain["step_ids"]) + 1
    if not _is_a(plain["label"], (int,)) or not -1 <= plain["label"] < steps:
        raise ValueError(f"{where}: label: expected -1 or one of {steps} steps, found {plain['label']!r}")
    return TokenRecord(**plain)


def _check_list(values: Any, types: tuple[type, ...], tokens: list[str], where: str) -> None:
    if not isinstance(values, list) or not all(_is_a(value, types) for value in values):
        raise ValueError(f"{where}: expected a list of {' or '.join(one.__name__ for one in types)}")
    if len(values) != len(tokens) or not tokens:
        raise ValueError(
            f"{where}: expected one per token and at least one, found {len(values)} for {len(tokens)} tokens"
        )


def _is_a(value: Any, types: tuple[type, ...]) -> bool:
    if isinstance(value, str):
        return str in types and is_text(value)
    return type(value) in types and is_finite_number(value)


def write_tokens(path: str | Path, lines: Iterable[str]) -> Path:
    """Write the lines of `record_to_line`, whole or not at all."""
    return write_atomically(path, "".join(lines))


def read_tokens(path: str | Path) -> list[TokenRecord]:
    """Read a token file.

    Args:
        path: the file; empty lines are skipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a bad line (file, line, field and what was found), or a solution that occurs twice.
    """
    records: dict[tuple[str, str], TokenRecord] = {}
    for line, where in numbered_lines(path):
        record = record_from_line(line, where)
        if records.setdefault((record.subset, record.id), record) is not record:
            raise ValueError(f"{where}: id: {record.id!r} occurs twice in subset {record.subset!r}")
    return list(records.values())
