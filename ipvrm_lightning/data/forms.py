"""Forms of rollout records, recognised by their columns, and their rows as checked rollouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipvrm_lightning.data.schema import (
    DataError,
    Prompt,
    check_characters,
    check_list,
    check_outcome,
    check_prompt,
    check_tools,
    part_of,
    prompt_and_response,
    prompt_key,
    split_conversation,
)

Answers = list[tuple[Prompt, str, int]]


@dataclass(frozen=True)
class Rollout:
    """One checked response to a prompt.

    Args:
        prompt: text, or chat messages.
        response: text of the answer, not empty.
        outcome: 1 right, 0 wrong.
        source: file or hub data set.
        row: row in it, from 1.
        pair: shared by the chosen and the rejected response of one row alone; None where the row is no pair.
        finished: it ended by itself; False where it was cut off.
        metadata: id, subset, answer, and place (source and row).
    """

    prompt: Prompt
    response: str
    outcome: int
    source: str
    row: int
    pair: object | None
    finished: bool
    metadata: dict[str, Any]


def _conversation(row: Mapping[str, Any]) -> Answers:
    prompt, response = split_conversation(row["conversation"], "conversation")
    return [(prompt, response, check_outcome(row["label"], "label"))]


def _pair(row: Mapping[str, Any]) -> Answers:
    if "prompt" in row:
        prompt = check_prompt(row["prompt"], "prompt")
        chosen, rejected = (prompt_and_response(prompt, row[name], name) for name in ("chosen", "rejected"))
    else:
        chosen, rejected = (split_conversation(row[name], name) for name in ("chosen", "rejected"))
    if prompt_key(chosen[0]) != prompt_key(rejected[0]):
        raise DataError("prompt differs from that of 'chosen'", field="rejected", found=rejected[0])
    return [(*chosen, 1), (*rejected, 0)]


def _group(answers: str, labels: str) -> Callable[[Mapping[str, Any]], Answers]:
    def parse(row: Mapping[str, Any]) -> Answers:
        prompt = check_prompt(row["prompt"], "prompt")
        if row.get("blank") and row[answers] == row[labels] == []:
            return []  # as `ipvrm rollout` keeps a prompt of which no response had text
        texts, marks = check_list(row[answers], answers), check_list(row[labels], labels)
        if len(texts) != len(marks):
            problem = f"{len(texts)} entries in '{answers}' but {len(marks)} in '{labels}'"
            raise DataError("lengths differ", field=labels, found=problem)
        parsed: Answers = []
        for position, (text, mark) in enumerate(zip(texts, marks, strict=True)):
            field = f"{answers}[{position}]"
            if isinstance(text, list) and text and all(isinstance(step, str) for step in text):
                text = "\n\n".join(text)  # of steps
            parsed.append((*prompt_and_response(prompt, text, field), check_outcome(mark, f"{labels}[{position}]")))
        return parsed

    return parse


def _unpaired(row: Mapping[str, Any]) -> Answers:
    prompt, response = prompt_and_response(check_prompt(row["prompt"], "prompt"), row["completion"], "completion")
    return [(prompt, response, check_outcome(row["label"], "label"))]


#: Columns to parser, the most specific first.
FORMS: dict[tuple[str, ...], Callable[[Mapping[str, Any]], Answers]] = {
    ("prompt", "responses", "scores"): _group("responses", "scores"),
    ("prompt", "completions", "correctness"): _group("completions", "correctness"),
    ("prompt", "chosen", "rejected"): _pair,
    ("chosen", "rejected"): _pair,
    ("prompt", "completion", "label"): _unpaired,
    ("conversation", "label"): _conversation,
}


#: Columns of what `ProcessBenchDataModule` reads.
_SOLUTIONS = (("problem", "steps", "label"), ("prompt", "completions", "labels"))


def recognise(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The form whose columns a row has.

    Raises:
        DataError: it has those of none; lists what was found and what is known, or names the data module that knows it.
    """
    for columns in FORMS:
        if set(columns) <= set(row):
            return columns
    found = f"no known form has the columns {', '.join(sorted(map(str, row)))}"
    if any(set(columns) <= set(row) for columns in _SOLUTIONS):
        raise DataError(
            f"{found}; solutions with a label of their first wrong step are judged by stacking"
            " configs/data/processbench.yaml, with --data.path FILE --data.subsets null"
        )
    known = "; ".join("+".join(columns) for columns in FORMS)
    raise DataError(f"{found}; known are {known}")


def _of_each(value: Any, field: str, count: int, kinds: tuple[type, ...], problem: str) -> list[Any] | None:
    """A column with an entry for each response of the row; None where it is missing, null, or nothing was answered."""
    if value is None or not count:
        return None
    entries = check_list(value, field)
    if len(entries) != count:
        raise DataError("lengths differ", field=field, found=f"{len(entries)} entries of {count} responses")
    for position, entry in enumerate(entries):
        if not isinstance(entry, kinds):
            raise DataError(problem, field=f"{field}[{position}]", found=entry)
    return entries


def _final_answers(value: Any, count: int) -> list[str | None]:
    """What solutions vote with in majority voting, as text: 7 and "7" are one answer."""
    kinds = (str, int, float, type(None))
    answers = _of_each(value, "answers", count, kinds, "answer is neither text nor a number")
    return [None if answer is None else str(answer) for answer in answers or [None] * count]


def _finished(value: Any, count: int) -> list[bool]:
    """Which responses of a group ended by themselves; all where the column is missing or null."""
    return _of_each(value, "finished", count, (bool,), "neither true nor false") or [True] * count


def check_row(row: Mapping[str, Any], columns: tuple[str, ...], source: str, number: int) -> list[Rollout]:
    """Rollouts of one row; of a pair, the chosen response first.

    Args:
        row: the record.
        columns: its form, from `recognise` on the first row of its source.
        source: file or hub data set.
        number: of the row, from 1.

    Raises:
        DataError: with the field.
    """
    check_characters(row)
    check_tools(row)
    for column in columns:
        if column not in row:
            raise DataError("missing column", field=column, found=sorted(row))
    answers = FORMS[columns](row)
    grouped = columns[1] in ("responses", "completions")
    finals = _final_answers(row.get("answers") if grouped else None, len(answers))
    finished = _finished(row.get("finished") if grouped else None, len(answers))
    stem = Path(source).stem
    name = str(row["id"]) if row.get("id") is not None else f"{stem}-{number}"
    pair = object() if "chosen" in columns else None
    subset = part_of(row, stem)
    return [
        Rollout(
            prompt=prompt,
            response=response,
            outcome=outcome,
            source=source,
            row=number,
            pair=pair,
            finished=finished[k],
            metadata={
                "id": name if len(answers) == 1 else f"{name}-{k}",
                "subset": subset,
                "answer": finals[k],
                "place": f"{source}, row {number}",
            },
        )
        for k, (prompt, response, outcome) in enumerate(answers)
    ]
