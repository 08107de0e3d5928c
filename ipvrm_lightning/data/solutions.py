"""Records with the first wrong step of a solution: ProcessBench's form and TRL's stepwise supervision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ipvrm_lightning.data.schema import (
    DataError,
    Prompt,
    check_characters,
    check_list,
    check_outcome,
    check_prompt,
    check_text,
    check_tools,
)


@dataclass(frozen=True)
class Solution:
    """One checked solution.

    Args:
        id: the record's own, else subset and row number.
        subset: part of the benchmark.
        prompt: text or messages.
        steps: texts, none empty.
        label: index of the first wrong step, -1 where all are right.
        final_answer_correct: None unknown.
        source: file or hub data set.
        row: row in it, from 1.
    """

    id: str
    subset: str
    prompt: Prompt
    steps: list[str]
    label: int
    final_answer_correct: bool | None
    source: str
    row: int


def check_solution(row: Mapping[str, Any], source: str, number: int, subset: str) -> Solution:
    """A row as a solution: `problem`, `steps`, `label`, or TRL's `prompt`, `completions`, `labels` (a bool per step).

    Raises:
        DataError: with the field.
    """
    check_characters(row)
    stepwise = "completions" in row and "labels" in row
    names = ("prompt", "completions", "labels") if stepwise else ("problem", "steps", "label")
    for name in names:
        if name not in row:
            known = "problem+steps+label or prompt+completions+labels"
            raise DataError(f"missing column; known forms are {known}", field=name, found=sorted(map(str, row)))
    check_tools(row)
    prompt = check_prompt(row[names[0]], names[0])
    steps = check_list(row[names[1]], names[1])
    steps = [check_text(step, f"{names[1]}[{i}]", what="step") for i, step in enumerate(steps)]
    label = _first_false(row["labels"], len(steps)) if stepwise else _check_label(row["label"], len(steps))
    correct = row.get("final_answer_correct")
    if correct is not None:
        correct = bool(check_outcome(correct, "final_answer_correct"))
    name = str(row["id"]) if row.get("id") is not None else f"{subset}-{number}"
    return Solution(name, subset, prompt, steps, label, correct, source, number)


def _check_label(value: Any, steps: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value < steps:
        raise DataError(f"label is not a step number from -1 to {steps - 1}", field="label", found=value)
    return value


def _first_false(value: Any, steps: int) -> int:
    labels = check_list(value, "labels")
    if len(labels) != steps:
        raise DataError("lengths differ", field="labels", found=f"{len(labels)} labels of {steps} steps")
    for position, label in enumerate(labels):
        if not isinstance(label, (bool, int)) or label not in (0, 1):
            raise DataError("label is not true or false", field=f"labels[{position}]", found=label)
    return next((position for position, label in enumerate(labels) if not label), -1)
