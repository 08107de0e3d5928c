r"""Judging answers with math-verify: what runs in the worker processes of `MathVerifier`.

Where math-verify alone is wrong without an error, and what is done about it: `notation` rewrites what it misreads;
numbers below 1e-6, all equal to it, are compared again. Of a text that it cannot read it would take a number from the
middle, of one that ends in a letter drop that: texts are read whole or compared as texts, and `units` parts units.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Equality, Interval, Union, nan, zoo

from ipvrm_lightning.rollouts.answers import is_proper, plain
from ipvrm_lightning.rollouts.notation import bare, rewrite
from ipvrm_lightning.rollouts.units import spells_out, split_unit
from ipvrm_lightning.rollouts.worker_pool import serve

#: Reads a box as a whole, with its units.
_WHOLE = LatexExtractionConfig(try_extract_without_anchor=False)
_WHOLE = replace(_WHOLE, normalization_config=replace(_WHOLE.normalization_config, units=False))
_GAMMA, _STAND_IN = re.compile(r"\\gamma(?![a-zA-Z])"), r"\iota"
_PERCENT = re.compile(r"\\?%[\s$]*$")
#: A number in another base than ten, which math-verify does not look at.
_OF_BASE = re.compile(r"[\s$]*\d[^\W_]*_\{?[^\W_]+\}?[\s$]*$")


class Judgement(NamedTuple):
    """Whether the ground truth could be read, whether the answer agrees, and the answer in a normal form."""

    known: bool
    correct: bool
    answer: str | None


def _read(text: str) -> list[Any]:
    """What math-verify makes of a text: an expression, if it can be read as one, then the text in a normal form."""
    found = _parse(text)
    if len(found) == 1 and "=" in text:
        # a left-hand side that cannot be read, such as the name of the unknown
        right = _parse(text.rpartition("=")[2])
        found = right if len(right) > 1 else found
    return found


def _parse(text: str) -> list[Any]:
    # gamma would be Euler's constant, and the function of that name where a power follows; no limit of its own: it
    # would be an alarm that does not interrupt the arithmetic of large numbers
    found = parse(rf"\boxed{{{_GAMMA.sub(lambda _: _STAND_IN, text)}}}", [_WHOLE], parsing_timeout=None)
    found = [one.replace(_STAND_IN, r"\gamma") if isinstance(one, str) else one for one in found]
    return found[1:] if len(found) > 1 and found[0].has(zoo, nan) else found


@lru_cache(maxsize=64)
def _read_ground_truth(text: str) -> list[Any]:
    found = _read(text)
    is_expression = len(found) > 1
    return found if is_expression or is_proper(text) else []


def _comparable(truth: str, answer: str) -> tuple[str, str]:
    """Both without their units; a letter that may be a variable stays, but for that of a quantity where a number is."""
    expected, found = split_unit(truth), split_unit(answer)
    if expected.doubtful and not spells_out(found, expected):
        return truth, answer
    is_number = found.doubtful and _read_ground_truth(expected.value.rpartition("=")[2])[:1]
    if is_number and getattr(is_number[0], "free_symbols", True):
        return expected.value, answer
    return expected.value, found.value


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
    same_text = answer is not None and bare(answer) == bare(truth)
    truth, answer = _comparable(rewrite(truth), rewrite(answer or ""))
    expected = _read_ground_truth(truth)
    known = bool(expected) or is_proper(task[0])
    if not known or task[1] is None:
        return Judgement(known, False, None)
    found = _read(answer)
    correct = same_text or (_same_value(expected, found) and not all(map(_OF_BASE.match, (truth, answer))))
    if not correct and (_PERCENT.search(truth) or _PERCENT.search(answer)):
        without = [_PERCENT.sub("", text) for text in (truth, answer)]
        correct = _same_value(_read_ground_truth(without[0]), _read(without[1]))
    return Judgement(True, correct, str(found[-1]) if found else plain(answer))


def _same_value(expected: list[Any], found: list[Any]) -> bool:
    if not expected or not found:
        return False
    relations = _must_be_interval(expected[0])
    same = verify(expected, found, allow_set_relation_comp=relations, timeout_seconds=None)
    return same and not _differ(expected[0], found[0])


def main() -> None:
    """Serve a `WorkerPool`."""
    logging.disable()
    serve(judge, (r"\frac{1}{2}", "0.5"), Judgement(True, True, r"\frac{1}{2}"))
