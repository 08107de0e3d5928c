"""Exact verdicts on responses: the outcome, and the index of the first wrong step.

Line k must compute the k-th name, from the numbers of its definition and the values that earlier lines *state*, and
compute it right: carrying an earlier wrong value on is no new error. After the last name, the answer line must state
the value that the target was given, and nothing may follow.
"""

from __future__ import annotations

from typing import NamedTuple

from ipvrm_lightning.worlds.arithmetic.formats import SurfaceFormat, parse
from ipvrm_lightning.worlds.arithmetic.problems import OPERATIONS, Answer, Line, Problem, Step, operands


class Verdict(NamedTuple):
    """What is true of a response.

    Args:
        lines: its lines, None for malformed ones.
        first_error: index of the first wrong step, -1 where all are right.
        answer: the value the last line answers, None where it answers none.
        correct: the answer is the true one.
    """

    lines: list[Line | None]
    first_error: int
    answer: int | None
    correct: bool


def check(problem: Problem, response: str, surface: SurfaceFormat) -> Verdict:
    """Judge a response.

    Args:
        problem: what was asked.
        response: text, without the end-of-sequence token.
        surface: the format it is to be in.
    """
    lines = parse(response, surface)
    last = lines[-1]
    answer = last.value if isinstance(last, Answer) else None
    return Verdict(lines, first_error(problem, lines), answer, answer == problem.answer)


def first_error(problem: Problem, lines: list[Line | None]) -> int:
    """Index of the first wrong line, -1 where all are right. A response that stops early is wrong in its last line."""
    stated: dict[str, int] = {}
    for index, line in enumerate(lines):
        if index >= len(problem.definitions):
            is_end = index == len(problem.definitions)
            if not (is_end and line == Answer(problem.target, stated[problem.target])):
                return index
            continue
        definition = problem.definitions[index]
        if not isinstance(line, Step) or line[:2] != definition[:2] or line[2:4] != operands(definition, stated):
            return index
        if line.operator == "mod" and line.right.value == 0:
            return index
        if line.result != OPERATIONS[line.operator](line.left.value, line.right.value):
            return index
        stated[line.name] = line.result
    return -1 if len(lines) == len(problem.definitions) + 1 else len(lines) - 1
