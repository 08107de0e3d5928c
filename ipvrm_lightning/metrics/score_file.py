"""The score file: one solution per line as JSON, floats written so that they read back bit for bit.

Every step-F1 number can be recomputed from it without a model. The same lines are the state of the `StepF1` metric.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from ipvrm_lightning.types import ScoredSolution
from ipvrm_lightning.whole_files import write_atomically

_REQUIRED = ("id", "subset", "problem", "label", "step_scores", "step_lengths")
_LARGEST = 2**53  # integers up to here are floats too
_KNOWN = frozenset(field.name for field in fields(ScoredSolution))


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite_number(value: Any) -> bool:
    """Whether a value is a number that a float holds: neither a truth value, nor a whole number beyond 2^53."""
    if isinstance(value, float):
        return math.isfinite(value)
    return _is_integer(value) and abs(value) <= _LARGEST


def is_text(value: Any) -> bool:
    """Whether a value is text that can be written."""
    # JSON can spell half of a surrogate pair, which could be neither printed nor written
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _check_steps(solution: ScoredSolution, where: str) -> None:
    lengths, scores = solution.step_lengths, solution.step_scores
    if not isinstance(lengths, list) or not lengths or not all(_is_integer(n) and 0 <= n <= _LARGEST for n in lengths):
        raise ValueError(f"{where}: step_lengths: expected one length per step and at least one, found {lengths!r}")
    if not isinstance(scores, dict) or not scores:
        raise ValueError(f"{where}: step_scores: expected at least one protocol with scores, found {scores!r}")
    for protocol, values in scores.items():
        if not isinstance(values, list) or len(values) != len(lengths):
            raise ValueError(f"{where}: step_scores.{protocol}: expected {len(lengths)} scores, found {values!r}")
        for step, value in enumerate(values):
            if not is_finite_number(value):
                raise ValueError(
                    f"{where}: step_scores.{protocol}: expected finite numbers, found {value!r} at step {step}"
                )


def check_solution(solution: ScoredSolution, where: str) -> None:
    """Check the types and sizes of a scored solution.

    Args:
        solution: what to check.
        where: how the message names it, such as file and line.

    Raises:
        ValueError: naming place, field and what was found.
    """
    for name in ("id", "subset", "problem"):
        if not is_text(getattr(solution, name)):
            raise ValueError(f"{where}: {name}: expected text, found {getattr(solution, name)!r}")
    if solution.shared_problem is not None and not is_text(solution.shared_problem):
        raise ValueError(f"{where}: shared_problem: expected text or null, found {solution.shared_problem!r}")
    _check_steps(solution, where)
    if not _is_integer(solution.label) or not -1 <= solution.label < len(solution.step_lengths):
        raise ValueError(
            f"{where}: label: expected -1 or the index of one of {len(solution.step_lengths)} steps, "
            f"found {solution.label!r}"
        )
    if solution.final_answer_correct is not None and not isinstance(solution.final_answer_correct, bool):
        raise ValueError(
            f"{where}: final_answer_correct: expected true, false or null, found {solution.final_answer_correct!r}"
        )
    if solution.final_value is not None and not is_finite_number(solution.final_value):
        raise ValueError(f"{where}: final_value: expected a finite number or null, found {solution.final_value!r}")


def solution_to_line(solution: ScoredSolution) -> str:
    """One line of JSON with a line break; floats in their shortest exact form."""
    return json.dumps(asdict(solution), ensure_ascii=False, allow_nan=False) + "\n"


def solution_from_line(line: str, where: str) -> ScoredSolution:
    """The solution a line holds.

    Args:
        line: one JSON object.
        where: how messages name the line.

    Raises:
        ValueError: not JSON, a missing or unknown field, or a value of the wrong kind.
    """
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg} at column {error.colno}): {line.strip()[:60]!r}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise ValueError(f"{where}: not JSON ({error}): {line.strip()[:60]!r}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected an object, found {line.strip()[:60]!r}")
    missing = [name for name in _REQUIRED if name not in record]
    if missing:
        raise ValueError(f"{where}: {missing[0]}: missing; found {sorted(record)}")
    unknown = sorted(set(record) - _KNOWN)
    if unknown:
        raise ValueError(f"{where}: {unknown[0]}: unknown field; known are {sorted(_KNOWN)}")
    solution = ScoredSolution(**record)
    check_solution(solution, where)
    return solution


def in_stable_order(solutions: Iterable[ScoredSolution]) -> list[ScoredSolution]:
    """Sorted by subset and id, so that no result depends on the order or the number of processes.

    Raises:
        ValueError: two solutions of a subset share an id.
    """
    ordered = sorted(solutions, key=lambda solution: (solution.subset, solution.id))
    for first, second in pairwise(ordered):
        if (first.subset, first.id) == (second.subset, second.id):
            raise ValueError(f"subset {first.subset!r}: id: {first.id!r} occurs twice")
    return ordered


def write_scores(path: str | Path, solutions: Iterable[ScoredSolution]) -> Path:
    """Write a score file, in stable order.

    Args:
        path: the file; replaced if it exists.
        solutions: what to write.

    Raises:
        ValueError: a solution with wrong sizes, scores that are not finite, or an id that occurs twice.
    """
    ordered = in_stable_order(solutions)
    for solution in ordered:
        check_solution(solution, f"solution {solution.id!r}")
    return write_atomically(path, "".join(map(solution_to_line, ordered)))


def numbered_lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """Lines of a JSONL file that are not empty, each with how messages name it.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line that is not UTF-8.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})") from None
            if text.strip():
                yield text, where


def read_scores(path: str | Path) -> list[ScoredSolution]:
    """Read a score file.

    Args:
        path: the file; empty lines are skipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a bad line (file, line, field and what was found), or no line at all.
    """
    solutions = [solution_from_line(line, where) for line, where in numbered_lines(path)]
    if not solutions:
        raise ValueError(f"{path}: no scored solutions")
    return solutions
