r"""Judging answers with math-verify: what runs in the worker processes of `MathVerifier`.

Where math-verify alone is wrong without an error, and what is done about it: `4.5e33` (to it 4.5 times Euler's number
times 33), `1\,234` (to it 235) and symbols of Unicode are rewritten before it reads them; numbers below 1e-6, all equal
to it, are compared again. Of a text that it cannot read it would take a number from the middle, of one that ends in a
letter drop that: texts are read whole or compared as texts, and `units` parts units.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Equality, Interval, Union, nan, zoo

from ipvrm_lightning.rollouts.answers import is_proper, plain
from ipvrm_lightning.rollouts.units import split_unit
from ipvrm_lightning.rollouts.worker_pool import serve


def _ascii(text: str) -> str:
    """Raised and lowered digits and fractions of one character, in plain digits."""
    return unicodedata.normalize("NFKC", text).replace("\u2212", "-").replace("\u2044", "/")


#: A mixed number, "3 1/2", that is the whole answer; more digits could be a group of thousands.
_MIXED = re.compile(r"^([\s$]*-?\d+)\s+([1-9]\d?)/([1-9]\d?)(?=[\s$]*$)"), r"\1\\frac{\2}{\3}"
_REWRITES: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"(?<![\w.])(-?\d+(?:\.\d*)?|-?\.\d+)[eE]([+-]?)0*(\d+)(?!\w)"), r"\1 \\times 10^{\2\3}"),
    # separators of thousands
    (re.compile(r"(?<=\d)(?:\\[,!;: ]|\{,\}|~)(?=\d{3}(?!\d))"), ""),
    # "1./3"
    (re.compile(r"(?<=\d)\.(?=[-+*/^)\s]|$)"), ""),
    (re.compile(r"√\s*(?:\(([^()]*)\)|(\w+))"), r"\\sqrt{\1\2}"),
    (re.compile(r"\\varnothing(?![a-zA-Z])"), r"\\emptyset"),
    _MIXED,
    (re.compile(r"(?<=\d)(?:\s*\\text\{)?\s*percent(?![a-z])\}?"), r"\\%"),
    # the imaginary unit: math-verify sees it where it stands alone, else it is an unknown
    (re.compile(r"\\(?:text|mathrm)\s*\{\s*i\s*\}|(?<=\d)i(?![a-zA-Z])"), " i "),
    # else derivatives are dropped, and I with an index is the imaginary unit
    (re.compile(r"(?<=[a-zA-Z)}])('{1,3})(?![a-zA-Z'])"), lambda found: "^{" + r"\prime " * len(found[1]) + "}"),
    (re.compile(r"(?<![a-zA-Z\\])I(?=_)"), "i"),
    (re.compile(r"^\s*\\(?:text|textbf|mathrm|mathbf)\s*\{\s*(?=[-+.$\d])([^{}]*)\}\s*$"), r"\1"),
    (
        re.compile(r"^\s*(?:about|approximately|roughly|around|exactly|therefore|thus|simply|option|choice)\s+", re.I),
        "",
    ),
    (re.compile(r"≈|`|\\approx(?![a-zA-Z])|^\s*\*\*|\*\*\s*$"), ""),
    (re.compile(r"(?<!\\)\\[,;:! ]|~"), " "),
    (re.compile(r"(?<!\.)\.(?=[\s$]*$)"), ""),
    *(
        (re.compile(rf"(?<=\d)(\s*\\text\{{)?\s*{name}(?![a-z])"), rf"\\times 10^{{{zeros}}}\1")
        for name, zeros in (("thousand", 3), ("million", 6), ("billion", 9), ("trillion", 12))
    ),
]
_GAMMA, _STAND_IN = re.compile(r"\\gamma(?![a-zA-Z])"), r"\iota"
_PERCENT = re.compile(r"\\?%[\s$]*$")
#: A number in another base than ten, which math-verify does not look at.
_OF_BASE = re.compile(r"[\s$]*\d[^\W_]*_\{?[^\W_]+\}?[\s$]*$")
_REWRITES_OF_TEXTS = [
    _MIXED,
    (re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"([_^])\{(\w)\}"), r"\1\2"),
]
_WORDS = re.compile("[a-zA-Z]{2,}")
_RAISED, _LOWERED = re.compile("[⁺⁻⁰¹²³⁴-⁹]+"), re.compile("[₀-₉]+")
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
        "∈": r"\in ",
        "⌊": r"\lfloor ",
        "⌋": r"\rfloor ",
        "⌈": r"\lceil ",
        "⌉": r"\rceil ",
        "\u2010": "-",
        "\u2011": "-",
        "\u2019": "'",
        "\u2032": "'",
        "\u2044": "/",
        "\u3001": ",",
        "\u3002": ".",
        **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # the full-width forms of ASCII
        **{part: rf"\frac{{{_ascii(part).replace('/', '}{')}}}" for part in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"},
    }
)


class Judgement(NamedTuple):
    """Whether the ground truth could be read, whether the answer agrees, and the answer in a normal form."""

    known: bool
    correct: bool
    answer: str | None


_WHOLE = LatexExtractionConfig(try_extract_without_anchor=False)
_WHOLE = replace(_WHOLE, normalization_config=replace(_WHOLE.normalization_config, units=False))


def _rewrite(text: str) -> str:
    """The same in a notation that math-verify reads rightly."""
    text = _RAISED.sub(lambda found: f"^{{{_ascii(found[0])}}}", text)
    text = _LOWERED.sub(lambda found: f"_{{{_ascii(found[0])}}}", text).translate(_SYMBOLS)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text


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
    if expected.doubtful:
        return truth, answer
    is_number = found.doubtful and not expected.doubtful and _read_ground_truth(expected.value)[:1]
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
    same_text = answer is not None and _bare(answer) == _bare(truth)
    truth, answer = _comparable(_rewrite(truth), _rewrite(answer or ""))
    expected = _read_ground_truth(truth)
    if not expected or task[1] is None:
        return Judgement(bool(expected), False, None)
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


def _bare(text: str) -> str:
    r"""Text without white space, but for that of a mixed number (3 1/2 is not 31/2), `\text{}` and needless braces."""
    text = _REWRITES_OF_TEXTS[0][0].sub(_REWRITES_OF_TEXTS[0][1], plain(text))
    for pattern, replacement in _REWRITES_OF_TEXTS[1:]:
        text = pattern.sub(replacement, text)
    text = "".join(text.split())
    return text.casefold() if _WORDS.fullmatch(text) else text


def main() -> None:
    """Serve a `WorkerPool`."""
    logging.disable()
    serve(judge, (r"\frac{1}{2}", "0.5"), Judgement(True, True, r"\frac{1}{2}"))
