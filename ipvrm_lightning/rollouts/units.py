r"""Units at the end of an answer: `5 \text{ cm}`, `36\pi square units`, `18 dollars per day`.

math-verify has a list of words and single letters that it drops, so that to it `1 - 2t` is -1 and `cx + d` ends in a
plus, while 18 dollars are a product of letters. Here a letter may be a unit behind a number alone, and any word is one
there.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# a longer text is no number with a unit
_LONGEST = 1_000
_POWER = r"(?:\s*\^\s*(?:-?\d|\{\s*-?\d\s*\}))?"
# i and e in roman type are numbers
_WRAPPED = re.compile(
    r"(?:[\s/~]|\\cdot(?![a-zA-Z]))*\\(?:text|mbox|mathrm|textrm|textit)\s*\{(?!\s*[ie]\s*\})([^{}]*)\}"
    + _POWER
    + r"[\s$.]*$"
)
_TAIL = re.compile(
    rf"(?P<value>.*?)(?P<unit>(?<![a-zA-Z\\])[a-zA-Z]+{_POWER}(?:(?:\s*/\s*|[\s-]+)[a-zA-Z]+{_POWER})*)[\s$.*]*",
    re.DOTALL,
)
#: 18, 1,234.50, 3/4, 3 1/4, \frac{3}{4}, 3\frac{1}{4}, 3 \times 10^8, of any currency and sign.
_NUMBER = re.compile(
    r"[\s$]*[-+]?[\s$]*"
    r"(?:(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+|\s+\d+/\d+)?|(?:\d+\s*)?\\[dt]?frac\s*\{\d+\}\s*\{\d+\})"
    r"(?:\s*\\(?:times|cdot)\s*10\s*\^\s*(?:\d|\{\s*[-+]?\d+\s*\}))?[\s$]*"
)
#: Nothing, or what no unit follows.
_OPEN_END = re.compile(r"(?:^|[-+*/^_<>:,;&(\[{|]|\\(?:times|cdot|pm|mp|leq?|geq?|neq?|in|cup|cap))[\s$]*$")
_OF_TEXT = re.compile(r"\\(?:text|mbox|mathrm|mathbf)")
_OF_CONSTANTS = re.compile(r"\\(?:pi|[dt]?frac|sqrt|times|cdot|left|right)(?![a-zA-Z])")
_LETTERS = frozenset("mgshljwv")
_KNOWN = re.compile(
    "(?:[mcdk]m|[mk]g|ml|in|ft|yd|lb|oz|mi|mph|kmh|rpm|hz|sq|cu|inche?|feet|foot|yard|mile|(?:centi|milli|kilo)?met(?:er|re)"
    "|(?:milli|kilo)?gram|(?:milli)?lit(?:er|re)|pound|ounce|gallon|acre|square|cubic|unit|degree|radian|sec(?:ond)?"
    "|min(?:ute)?|hour|hr|day|week|month|year|dollar|cent|euro|per)s?"
)
_PRODUCT = re.compile("[mk]g|ml|lb|ft|in|hr|cu")
# abc is a product
_WORD = re.compile("[a-z]{4,}|(?=.*[aeiou])(?!abc|sin|tan|log|cos|exp|mod|gcd|max)[a-z]{3}")
#: Words that say more of a number than what is counted.
_NO_UNIT = re.compile(
    "and|or|to|from|plus|minus|times|over|divided|hal(?:f|ves)|thirds?|quarters?|than|point|squared|cubed|power"
    "|factorial|hundred|thousand|million|billion|trillion|dozen|percent|sqrt|root|alpha|beta|gamma|delta|theta|lambda"
    "|omega|sigma|cosh|sinh|tanh|base|modulo|choose|infinity|infinite|if|for|where|when|not"
)
#: The same at the start of what is wrapped, where coins (quarters) are more likely than parts.
_NO_UNIT_WRAPPED = re.compile(
    r"\s*(?:is|are|or|if|for|where|when|odd|even|hundred|dozen|squared|cubed|factorial|increase|decrease)\b",
    re.IGNORECASE,
)


class Quantity(NamedTuple):
    """An answer without its unit.

    Args:
        value: what stands before the unit.
        unit: empty where there is none.
        doubtful: the unit is a letter, and may be a variable.
    """

    value: str
    unit: str
    doubtful: bool


def split_unit(text: str) -> Quantity:
    """Part an answer from the unit at its end."""
    if len(text) > _LONGEST:
        return Quantity(text, "", False)
    value, units = text, list[str]()
    while (found := _WRAPPED.search(value)) and not _NO_UNIT_WRAPPED.match(found[1]) and found.start():
        value, units = value[: found.start()], [found[1].strip(), *units]
    if units:
        # words behind words, as in a formula of chemistry, are no unit
        side = value.rpartition("=")[2]
        whole = _OPEN_END.search(side) or _OF_TEXT.search(side)
        return Quantity(text, "", False) if whole else Quantity(value, " ".join(units), False)
    tail = _TAIL.fullmatch(text)
    side = tail["value"].rpartition("=")[2] if tail else ""
    if tail is None or _OPEN_END.search(side):
        return Quantity(text, "", False)
    words = re.findall("[a-z]+", tail["unit"].lower())
    known = [_KNOWN.fullmatch(word) is not None for word in words]
    if not _NUMBER.fullmatch(side):
        # behind a variable mg is a product
        variables = re.search("[a-zA-Z]", _OF_CONSTANTS.sub("", side))
        is_unit = all(known) and not (variables and _PRODUCT.fullmatch(words[0]))
    elif set(words) <= _LETTERS:
        return Quantity(tail["value"], tail["unit"], "/" not in tail["unit"])
    else:
        begins = known[0] or words[0] == "of" or _WORD.fullmatch(words[0])
        is_unit = bool(begins) and (words == ["times"] or not any(map(_NO_UNIT.fullmatch, words)))
    return Quantity(tail["value"], tail["unit"], False) if is_unit else Quantity(text, "", False)


def spells_out(word: Quantity, letter: Quantity) -> bool:
    """Whether a unit is a word that a letter, the unit of another quantity, stands for."""
    known = not word.doubtful and _KNOWN.fullmatch(word.unit.strip().lower()) is not None
    return known and word.unit.lower().startswith(letter.unit.lower())
