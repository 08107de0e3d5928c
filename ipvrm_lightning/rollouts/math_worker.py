r"""Judging answers with math-verify: what runs in the worker processes of `MathVerifier`.

Where math-verify alone is wrong without an error, and what is done about it: `4.5e33` (to it 4.5 times Euler's number
times 33), `1\,234` (to it 235) and symbols of Unicode are rewritten before it reads them; numbers below 1e-6, all equal
to it, are compared again.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any, NamedTuple

from math_verify import parse, verify
from sympy import Equality, Interval, Union

from ipvrm_lightning.rollouts.answers import is_proper, plain
from ipvrm_lightning.rollouts.worker_pool import serve

#: A mixed number, "3 1/2", that is the whole answer; more digits could be a group of thousands.
_MIXED = re.compile(r"^([\s$]*-?\d+)\s+([1-9]\d?)/([1-9]\d?)(?=[\s$]*$)"), r"\1\\frac{\2}{\3}"
_REWRITES = [
    (re.compile(r"(?<![\w.])(-?\d+\.?\d*|-?\.\d+)[eE]([+-]?)0*(\d+)(?!\w)"), r"\1 \\times 10^{\2\3}"),
    # separators of thousands
    (re.compile(r"(?<=\d)(?:\\[,!;: ]|\{,\}|~)(?=\d{3}(?!\d))"), ""),
    # "1./3"
    (re.compile(r"(?<=\d)\.(?=[-+*/^)\s]|$)"), ""),
    (re.compile(r"√\s*(?:\(([^()]*)\)|(\w+))"), r"\\sqrt{\1\2}"),
    (re.compile(r"\\varnothing(?![a-zA-Z])"), r"\\emptyset"),
    _MIXED,
]
_SYMBOLS = str.maketrans(
    {
        "\0": "",
        "\u00a0": " ",
        "\u202f": " ",
        "\u2212": "-",
        "\u2013": "-",
        "\u00d7": r"\times ",
        "·": r"\cdot ",
        "∞": r"\infty ",
        "∅": r"\emptyset ",
        "°": r"^\circ ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "≠": r"\ne ",
        "\u222a": r"\cup ",
        "±": r"\pm ",
        "½": r"\frac{1}{2}",
        "⅓": r"\frac{1}{3}",
        "¼": r"\frac{1}{4}",
        "¾": r"\frac{3}{4}",
        "²": "^2",
        "³": "^3",
    }
)


class Judgement(NamedTuple):
    """Whether the ground truth could be read, whether the answer agrees, and the answer in a normal form."""

    known: bool
    correct: bool
    answer: str | None


def _read(text: str) -> list[Any]:
    """What math-verify makes of a text: an expression, if it can be read as one, then the text in a normal form."""
    text = text.translate(_SYMBOLS)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    # no limit of its own: it would be an alarm that does not interrupt the arithmetic of large numbers
    found = parse(rf"\boxed{{{text}}}", parsing_timeout=None)
    if len(found) == 1 and "=" in text:
        # a left-hand side that cannot be read, such as the name of the unknown
        right = parse(rf"\boxed{{{text.rpartition('=')[2]}}}", parsing_timeout=None)
        found = right if len(right) > 1 else found
    return found


@lru_cache(maxsize=64)
def _read_ground_truth(text: str) -> list[Any]:
    found = _read(text)
    is_expression = len(found) > 1
    return found if is_expression or is_proper(text) else []


def _differ(expected: Any, found: Any) -> bool:
    """Whether two numbers that agree to the six places math-verify looks at are small and still far apart."""
    sides = [value.rhs if isinstance(value, Equality) else value for value in (expected, found)]
    try:
        true_value, value = (complex(side.doit()) for side in sides)
    except (AttributeError, TypeError, ValueError, OverflowError):
        # not numbers, or far from small
        return False
    return abs(true_value) < 1e-3 and abs(true_value - value) > 1e-5 * abs(true_value)


def _must_be_interval(truth: Any) -> bool:
    r"""Whether an inequality can say what the ground truth says: `(5, \infty)`, not `(1, 2)`, which may be a point."""
    if isinstance(truth, Interval):
        return bool(truth.left_open != truth.right_open or truth.is_left_unbounded or truth.is_right_unbounded)
    return isinstance(truth, Union)


def judge(task: tuple[str, str | None]) -> Judgement:
    """Compare a ground truth and an answer, by value or, where math-verify reads no expression in them, as texts."""
    truth, answer = task
    expected = _read_ground_truth(truth)
    if not expected or answer is None:
        return Judgement(bool(expected), False, None)
    found = _read(answer)
    same_text = _unspaced(answer) == _unspaced(truth)
    same_value = verify(expected, found, allow_set_relation_comp=_must_be_interval(expected[0]), timeout_seconds=None)
    correct = same_text or (same_value and not _differ(expected[0], found[0]))
    return Judgement(True, correct, str(found[-1]) if found else plain(answer))


def _unspaced(text: str) -> str:
    """Text without white space, but for that of a mixed number: 3 1/2 is not 31/2."""
    pattern, replacement = _MIXED
    return "".join(pattern.sub(replacement, plain(text)).split())


def main() -> None:
    """Serve a `WorkerPool`."""
    logging.disable()
    serve(judge, (r"\frac{1}{2}", "0.5"), Judgement(True, True, r"\frac{1}{2}"))
