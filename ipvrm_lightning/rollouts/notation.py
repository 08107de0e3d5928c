r"""Answers in a notation that math-verify reads rightly.

Alone it is wrong without an error where it reads `4.5e33` (to it 4.5 times Euler's number times 33), `1\,234` (to it
235), `f'` (to it f) and symbols of Unicode.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from ipvrm_lightning.rollouts.answers import plain


def _ascii(text: str) -> str:
    """Raised and lowered digits and fractions of one character, in plain digits."""
    return unicodedata.normalize("NFKC", text).replace("\u2212", "-").replace("\u2044", "/")


#: A mixed number, "3 1/2", that is the whole answer or its number; more digits could be a group of thousands.
_MIXED = (
    re.compile(r"^([\s$]*-?\d+)\s+([1-9]\d?)/([1-9]\d?)(?=[\s$]*(?:$|[a-zA-Z]{2}|\\(?:text|mathrm)))"),
    r"\1\\frac{\2}{\3}",
)
_REWRITES: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"(?<![\w.])(-?\d+(?:\.\d*)?|-?\.\d+)[eE]([+-]?)0*(\d+)(?!\w)"), r"\1 \\times 10^{\2\3}"),
    # the negative space of MATH's 10,\!000
    (re.compile(r"(?<!\\)\\!"), ""),
    # separators of thousands
    (re.compile(r"(?<=\d)(?:\\[,;: ]|\{,\}|~)(?=\d{3}(?!\d))"), ""),
    # "1./3"
    (re.compile(r"(?<=\d)\.(?=[-+*/^)\s]|$)"), ""),
    (re.compile(r"√\s*(?:\(([^()]*)\)|(\w+))"), r"\\sqrt{\1\2}"),
    (re.compile(r"\\varnothing(?![a-zA-Z])"), r"\\emptyset"),
    _MIXED,
    (re.compile(r"(?<=\d)(\s*\\text\{)?\s*percent(?![a-z])"), r"\\%\1"),
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
    # currencies that no dollar sign tells, ordinals, and 1:2:3, which is not (1 : 2) : 3
    (re.compile(r"^([\s$]*)(?:\\text\s*\{\s*Rs\.?\s*\}|Rs\.?|[€£¥₹]|(?:US|NT|HK)\\?\$)\s*(?=\d)"), r"\1"),
    (re.compile(r"(?<=\d)(?:\s*[€£¥₹]|/-)(?=[\s$.]*$)"), ""),
    (re.compile(r"^([\s$]*\d*(?:(?<!1)(?:1st|2nd|3rd)|\dth)[\s$]*)$"), lambda found: re.sub("[a-z]", "", found[1])),
    (re.compile(r"^[\s$]*(\d+(?:\s*:\s*\d+){2,})[\s$.]*$"), lambda found: f"({found[1].replace(':', ',')})"),
    (re.compile(r"≈|`|\\approx(?![a-zA-Z])|^\s*\*\*|\*\*\s*$"), ""),
    (re.compile(r"(?<!\\)\\[,;: ]|~"), " "),
    (re.compile(r"(?<!\.)\.(?=[\s$]*$)"), ""),
    *(
        (re.compile(rf"(?<=\d)(\s*\\text\{{)?\s*{name}(?![a-z])"), rf"\\times 10^{{{zeros}}}\1")
        for name, zeros in (("thousand", 3), ("million", 6), ("billion", 9), ("trillion", 12))
    ),
]
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


def rewrite(text: str) -> str:
    """The same in a notation that math-verify reads rightly."""
    text = _RAISED.sub(lambda found: f"^{{{_ascii(found[0])}}}", text)
    text = _LOWERED.sub(lambda found: f"_{{{_ascii(found[0])}}}", text).translate(_SYMBOLS)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text


def bare(text: str) -> str:
    r"""Text without white space, but for that of a mixed number (3 1/2 is not 31/2), `\text{}` and needless braces."""
    text = _REWRITES_OF_TEXTS[0][0].sub(_REWRITES_OF_TEXTS[0][1], plain(text))
    for pattern, replacement in _REWRITES_OF_TEXTS[1:]:
        text = pattern.sub(replacement, text)
    text = "".join(text.split())
    return text.casefold() if _WORDS.fullmatch(text) else text
