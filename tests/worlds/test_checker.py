from __future__ import annotations

import pytest

from ipvrm_lightning.worlds.arithmetic.checker import check, first_error
from ipvrm_lightning.worlds.arithmetic.formats import FORMATS, render_solution
from ipvrm_lightning.worlds.arithmetic.problems import Answer, Definition, Problem, Step, Term

# a = 20 + 5 = 25; b = a * 3 = 75 (side); c = a min 30 = 25; d = c gap 4 = 21; find d
PROBLEM = Problem(
    (
        Definition("a", "add", 20, 5),
        Definition("b", "mul", "a", 3),
        Definition("c", "min", "a", 30),
        Definition("d", "gap", "c", 4),
    ),
    "d",
    (2, 0, 3, 1),
)


def term(text: str) -> Term:
    return Term(text[0], int(text[1:])) if text[0].isalpha() else Term(None, int(text))


def lines(*rows: str) -> list:
    made = []
    for row in rows:
        parts = row.split()
        if len(parts) == 1:
            made.append(Answer(parts[0][0], int(parts[0][1:])))
        else:
            name, operator, left, right, result = parts
            made.append(Step(name, operator, term(left), term(right), int(result)))
    return made


RIGHT = ["a add 20 5 25", "b mul a25 3 75", "c min a25 30 25", "d gap c25 4 21", "d21"]

CASES = {
    "right": (RIGHT, -1, True),
    "wrong sum, carried on consistently": (
        ["a add 20 5 26", "b mul a26 3 78", "c min a26 30 26", "d gap c26 4 22", "d22"],
        0,
        False,
    ),
    "wrong side computation, right answer": ([RIGHT[0], "b mul a25 3 74", *RIGHT[2:]], 1, True),
    "error that the minimum makes vanish": (
        ["a add 20 5 35", "b mul a35 3 105", "c min a35 30 30", "d gap c30 4 26", "d26"],
        0,
        False,
    ),
    "two errors that cancel": (
        ["a add 20 5 26", "b mul a26 3 78", "c min a26 30 25", "d gap c25 4 21", "d21"],
        0,
        True,
    ),
    "wrong number copied from the prompt": (["a add 20 6 26", *RIGHT[1:]], 0, True),
    "wrong value of an earlier name": ([*RIGHT[:2], "c min a24 30 24", "d gap c24 4 20", "d20"], 2, False),
    "value of another name": ([*RIGHT[:3], "d gap b75 4 71", "d71"], 3, False),
    "another operation": ([RIGHT[0], "b add a25 3 28", *RIGHT[2:]], 1, True),
    "lines swapped": ([RIGHT[0], RIGHT[2], RIGHT[1], *RIGHT[3:]], 1, True),
    "wrong answer line": ([*RIGHT[:4], "d22"], 4, False),
    "answer of another name": ([*RIGHT[:4], "c21"], 4, True),
    "a line too many": ([*RIGHT[:4], "d gap c25 4 21", "d21"], 4, True),
    "something after the answer": ([*RIGHT, "d21"], 5, True),
    "a line missing": ([RIGHT[0], *RIGHT[2:]], 1, True),
    "no answer": (RIGHT[:4], 3, False),
    "answer at once": (["d21"], 0, True),
}


@pytest.mark.parametrize("surface", FORMATS, ids=lambda surface: surface.name)
@pytest.mark.parametrize("case", CASES)
def test_verdict(case: str, surface) -> None:
    rows, expected_error, expected_outcome = CASES[case]
    verdict = check(PROBLEM, render_solution(lines(*rows), surface), surface)
    assert len(verdict.lines) == len(rows)
    assert verdict.first_error == expected_error
    assert verdict.correct is expected_outcome


def test_minimum_hides_an_error_in_its_larger_operand() -> None:
    problem = Problem((Definition("a", "add", 40, 5), Definition("b", "min", "a", 30)), "b", (0, 1))
    verdict = check(problem, "a = 40 + 5 = a55\nb = a55 min 30 = b30\nanswer b30", FORMATS[0])
    assert (verdict.first_error, verdict.correct) == (0, True)


@pytest.mark.parametrize(
    "line",
    [
        "b = a25 * 3 = c75",
        "b = a25 * 3 = 75",
        "b = a25 * 03 = b75",
        "b = a25 * 3 = b75 ",
        "b = a25 x 3 = b75",
        "b = a25 * 3",
        "so b is a25 times 3 giving b75",
        "",
        "<unk>",
    ],
)
def test_malformed_lines_are_wrong(line: str) -> None:
    response = render_solution(lines(*RIGHT), FORMATS[0]).split("\n")
    response[1] = line
    verdict = check(PROBLEM, "\n".join(response), FORMATS[0])
    assert verdict.lines[1] is None
    assert verdict.first_error == 1
    assert verdict.correct


def test_remainder_by_zero_is_wrong() -> None:
    problem = Problem((Definition("a", "gap", 5, 5), Definition("b", "mod", 17, "a")), "b", (0, 1))
    assert first_error(problem, lines("a gap 5 5 0", "b mod 17 a0 0", "b0")) == 1


def test_an_empty_response_is_wrong_in_its_only_line() -> None:
    verdict = check(PROBLEM, "", FORMATS[0])
    assert (verdict.first_error, verdict.answer, verdict.correct) == (0, None, False)
