"""Solutions to score, from files, standard input or a caller, checked before any model is loaded."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ipvrm_lightning.data.reading import Row, find_files, read_rows
from ipvrm_lightning.data.schema import DataError, check_characters, check_list, check_prompt, check_text, check_tools
from ipvrm_lightning.scoring.results import ScoreRequest

STANDARD_INPUT = "-"
_BLANK_LINES = re.compile(r"\n[^\S\n]*\n\s*")


class Asked(NamedTuple):
    """A request and where it stands.

    Args:
        request: one solution; its id is set.
        source: file, hub data set or `standard input`.
        row: row in it, from 1.
    """

    request: ScoreRequest
    source: str
    row: int


def split_solution(text: str, step_template: str = "{step}") -> list[str]:
    """Steps of a solution given as one text: what blank lines part.

    Args:
        text: the solution.
        step_template: of the layout; what it puts around a step is taken off where it stands around all of them, for it
            would stand there twice.
    """
    parts = [step.strip() for step in _BLANK_LINES.split(text.replace("\r\n", "\n").strip()) if step.strip()]
    bare = []
    for number, part in enumerate(parts, 1):
        before, _, after = step_template.replace("{number}", str(number)).partition("{step}")
        if not (part.startswith(before) and part.endswith(after)):
            return parts
        bare.append(part.removeprefix(before).removesuffix(after))
    return bare if all(map(str.strip, bare)) else parts


def as_steps(given: Sequence[str] | str, step_template: str) -> Sequence[str]:
    """Steps as they are, a text as `split_solution` parts it."""
    return split_solution(given, step_template) if isinstance(given, str) else given


def check_request(problem: Any, steps: Any, id: str | None = None) -> ScoreRequest:
    """A request whose problem is text or messages, and whose steps are texts with something in them.

    Args:
        problem: text, or chat messages with `role` and `content`.
        steps: texts.
        id: comes back with the answer.

    Raises:
        DataError: names the field.
    """
    check_characters({"problem": problem, "steps": steps})
    texts = [check_text(step, f"steps[{i}]", what="step") for i, step in enumerate(check_list(steps, "steps"))]
    return ScoreRequest(check_prompt(problem, "problem"), texts, id)


def read_requests(
    paths: Sequence[str], *, step_template: str = "{step}", leave_out: Collection[Path] = ()
) -> list[Asked]:
    """Rows with `problem` and `steps`, or `solution` whose steps are parted by blank lines; other columns are left.

    A row without an `id` is called after its file and number, or its path and number where that is taken.

    Args:
        paths: JSON, JSONL or parquet files, folders of them, or `-` for JSON or JSONL on standard input.
        step_template: see `split_solution`.
        leave_out: files in those folders that are none of solutions, such as the scores of an earlier run.

    Raises:
        DataError: names file, row and field of the first row that cannot be scored.
    """
    asked: list[Asked] = []
    places: dict[str, tuple[str, int]] = {}
    for source, number, row in _rows(paths, {path.resolve() for path in leave_out}):
        name = f"{Path(source).stem}-{number}"
        try:
            request = _request(row, f"{source}-{number}" if name in places else name, step_template)
            if (first := places.get(str(request.id))) is not None:
                raise DataError(f"the id of {first[0]}, row {first[1]}", field="id", found=request.id)
        except DataError as error:
            raise error.at(source, number) from None
        places[str(request.id)] = (source, number)
        asked.append(Asked(request, source, number))
    if not asked:
        raise DataError("no row to score", source=", ".join(paths))
    return asked


def _request(row: Mapping[str, Any], name: str, step_template: str) -> ScoreRequest:
    for field in ("problem", "steps" if "steps" in row else "solution"):
        if field not in row:
            problem = "missing column; rows have problem and steps, or problem and solution"
            raise DataError(problem, field=field, found=sorted(map(str, row)))
    check_characters(row)
    check_tools(row)
    steps = row.get("steps")
    if steps is None:
        steps = split_solution(check_text(row.get("solution"), "solution", what="solution"), step_template)
    return check_request(row["problem"], steps, str(row["id"]) if row.get("id") is not None else name)


def _rows(paths: Iterable[str], leave_out: Collection[Path]) -> Iterator[Row]:
    for path in paths:
        if path == STANDARD_INPUT:
            yield from _standard_input()
        elif Path(path).is_dir():
            yield from read_rows([file for file in find_files(path) if file.resolve() not in leave_out])
        else:
            yield from read_rows(path)


def _standard_input() -> Iterator[Row]:
    """Rows on standard input, by way of a file: they are read whole, for all are checked before the first is scored."""
    given = sys.stdin.buffer.read()
    if not given.strip():
        raise DataError("no row to score", source="standard input")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "standard input.json"
        file.write_bytes(given)
        try:
            for _, number, row in read_rows(file):
                yield "standard input", number, row
        except DataError as error:
            raise error.at("standard input", error.row) from None
