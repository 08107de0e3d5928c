r"""Finding the final answer in a response: what it boxes last, else what it announces last.

Announced is what follows "Answer:", "the answer is" or, where it holds a digit and ends the response, "####". What a
response says after its thoughts (`</think>`) counts before what it says in them.
"""

from __future__ import annotations

import re

_BRACE = re.compile(r"(?P<box>\\(?:f?boxed|fbox)\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)
_ANCHOR = re.compile(
    r"\banswers?\b(?:[^\n.:=$\\]{0,60}?\b(?:is|are)\b\s*:?|[ \t*_]*[:=])|^####[ \t](?=[^\n\d]*\d[^\n]*\Z)",
    re.IGNORECASE | re.MULTILINE,
)
_MATH = r"(?:\$\$.+?\$\$|\$[^$\n]+\$|\\\(.+?\\\)|\\\[.+?\\\])"
_STARTS_WITH_MATH = re.compile(rf"{_MATH}(?:\s*(?:,\s*and\b|,|and\b|or\b)\s*{_MATH})*", re.DOTALL)
_FIRST_MATH = re.compile(_MATH, re.DOTALL)
# "the least n such that $n^2 > 8$ is $n = 3$"
_SAID = re.compile(rf"\b(?:is|are|equals)\b[\s:*_]*(?={_MATH})", re.DOTALL)
_DELIMITERS = re.compile(r"\$\$?|\\[()\[\]]")
# characters of an answer that is not in a box
_LONGEST = 2_000
# a full stop within a number ends nothing
_SENTENCE_END = re.compile(r"\n|[.!?;](?=\s|$)|。|,?\s(?:because|since|where|(?<!\bfor\s)which|when)\b")


def last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}` that is closed and not empty, braces inside it included."""
    begun: list[int | None] = []
    last, content = -1, None
    for brace in _BRACE.finditer(text):
        if brace["box"] or brace["open"]:
            begun.append(brace.end() if brace["box"] else None)
        elif brace["close"] and begun:
            start = begun.pop()
            if start is not None and start > last and text[start : brace.start()].strip():
                last, content = start, text[start : brace.start()].strip()
    return content


def announced(text: str) -> str | None:
    """What follows the last "Answer:", "answer is", closing "####", up to the end of its sentence or formula."""
    text = text.rstrip()
    anchors = list(_ANCHOR.finditer(text))
    if not anchors:
        return None
    rest = text[anchors[-1].end() :].lstrip(" \t\r\n*_:")[:_LONGEST]
    formula = _STARTS_WITH_MATH.match(rest)
    if formula is None:
        rest = _SENTENCE_END.split(rest, maxsplit=1)[0]
        said = [] if rest[:1].isdigit() else list(_SAID.finditer(rest.partition(" if ")[0]))  # no condition
        formula = _STARTS_WITH_MATH.match(rest, said[-1].end()) if said else _FIRST_MATH.search(rest)
        if formula is None or (not said and any(character.isdigit() for character in rest[: formula.start()])):
            return rest.strip(" \t\r*_") or None
    return " ".join(_DELIMITERS.sub(" ", formula.group()).split()) or None


def final_answer(text: str) -> str | None:
    """The final answer of a response as it is written there, None where it states none."""
    thoughts, _, rest = text.rpartition("</think>")
    return last_boxed(rest) or announced(rest) or last_boxed(thoughts) or announced(thoughts)


def last_line(text: str) -> str | None:
    """The last line that is not blank."""
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else None


def plain(text: str) -> str:
    """Text with single spaces, no dollar signs around it and no full stop at its end."""
    return " ".join(text.split()).strip("$ ").removesuffix(".").rstrip("$ ")


def is_proper(text: str) -> bool:
    """Whether a text that is no mathematics can still be compared as a text: it says something, its braces close."""
    return text.count("{") == text.count("}") and any(character.isalnum() for character in text)
