"""Rows with a prompt and the answer its responses are checked against: columns, checks, ids."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ipvrm_lightning.data.reading import LeftOut, Paths, read_checked
from ipvrm_lightning.data.schema import DataError, Prompt, check_characters, check_prompt, check_tools, part_of

PROMPT_COLUMNS = ("prompt", "problem", "question")
#: A dot leads into a column that is a mapping.
TRUTH_COLUMNS = ("reward_model.ground_truth", "ground_truth", "answer", "solution")


class Columns(NamedTuple):
    """Columns that a file keeps prompt and ground truth in."""

    prompt: str
    truth: str


@dataclass(frozen=True)
class PromptRow:
    """One checked prompt.

    Args:
        prompt: text, or chat messages.
        ground_truth: text that answers are compared with.
        data_source: the row's own, else the file's name.
        id: unique among the rows read together.
        source: file or hub data set.
        row: row in it, from 1.
    """

    prompt: Prompt
    ground_truth: str
    data_source: str
    id: str
    source: str
    row: int


def recognise(row: Mapping[str, Any]) -> Columns:
    """The columns that prompt and ground truth are in.

    Raises:
        DataError: one of them is missing; lists what was found and what is known.
    """
    prompt = next((column for column in PROMPT_COLUMNS if column in row), None)
    truth = next((column for column in TRUTH_COLUMNS if column.partition(".")[0] in row), None)
    if prompt is None or truth is None:
        what, known = ("prompt", PROMPT_COLUMNS) if prompt is None else ("ground truth", TRUTH_COLUMNS)
        raise DataError(f"no {what} in the columns {', '.join(sorted(map(str, row)))}; known are {', '.join(known)}")
    return Columns(prompt, truth)


def check_ground_truth(value: Any, field: str) -> str:
    """Text with something in it; a number becomes text, without a point where it is whole.

    Raises:
        DataError: anything else.
    """
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise DataError("ground truth is neither text nor a number", field=field, found=value)


def check_prompt_row(row: Mapping[str, Any], columns: Columns, source: str, number: int) -> PromptRow:
    """The prompt of one row.

    Args:
        row: the record.
        columns: from `recognise` on the first row of its source.
        source: file or hub data set.
        number: of the row, from 1.

    Raises:
        DataError: with the field.
    """
    check_characters(row)
    check_tools(row)
    prompt = check_prompt(_field(row, columns.prompt), columns.prompt)
    truth = check_ground_truth(_field(row, columns.truth), columns.truth)
    stem = Path(source).stem
    part = part_of(row, stem)
    extra = row.get("extra_info")
    index = extra.get("index") if isinstance(extra, Mapping) else None
    name = f"{stem}-{number}" if index is None else f"{part}-{index}"
    return PromptRow(prompt, truth, part, name if row.get("id") is None else str(row["id"]), source, number)


def read_prompts(paths: Paths, left_out: LeftOut, *, split: str = "train") -> Iterator[PromptRow]:
    """Checked prompts of all rows; see `read_checked`.

    An id that was used before gets a number, so that rows added at the end change none.
    """
    return _unique(read_checked(paths, left_out, recognise, check_prompt_row, split=split))


def _unique(rows: Iterable[PromptRow]) -> Iterator[PromptRow]:
    used: Counter[str] = Counter()
    for row in rows:
        name = row.id
        while used[name]:
            used[row.id] += 1
            name = f"{row.id}-{used[row.id]}"
        used[name] += 1
        yield row if name == row.id else replace(row, id=name)


def _field(row: Mapping[str, Any], column: str) -> Any:
    name, _, inner = column.partition(".")
    if name not in row:
        raise DataError("missing column", field=name, found=sorted(map(str, row)))
    if not inner:
        return row[name]
    value = row[name]
    if not isinstance(value, Mapping) or inner not in value:
        raise DataError(f"no mapping with {inner}", field=name, found=value)
    return value[inner]
