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
    r"[\s/~]*\\(?:text|mbox|mathrm|textrm|textit)\s*\{(?!\s*[ie]\s*\})([^{}]*)\}" + _POWER + r"[\s$.]*$"
)
_TAIL = re.compile(
    rf"(?P<value>.*?)(?P<unit>(?<![a-zA-Z\\])[a-zA-Z]+{_POWER}(?:(?:\s*/\s*|[\s-]+)[a-zA-Z]+{_POWER})*)[\s$.*]*",
    re.DOTALL,
)
#: 18, 1,234.50, 3/4, 3 1/4, \frac{3}{4}, 3\frac{1}{4}, of any currency and sign.
_NUMBER = re.compile(
    r"[\s$]*[-+]?[\s$]*"
    r"(?:(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+|\s+\d+/\d+)?|(?:\d+\s*)?\\[dt]?frac\s*\{\d+\}\s*\{\d+\})[\s$]*"
)
_LETTERS = frozenset("mgshljwv")
_KNOWN = re.compile(
    "(?:[mcdk]m|[mk]g|ml|ft|yd|lb|mi|mph|kmh|rpm|hz|sq|cu|inche?|feet|foot|yard|mile|(?:centi|milli|kilo)?met(?:er|re)"
    "|(?:milli|kilo)?gram|(?:milli)?lit(?:er|re)|pound|ounce|gallon|acre|square|cubic|unit|degree|radian|sec(?:ond)?"
    "|min(?:ute)?|hour|hr|day|week|month|year|dollar|cent|euro|per)s?"
)
# abc is a product
_WORD = re.compile("[a-z]{4,}|(?=.*[aeiou])(?!abc|sin|tan|log|cos|exp|mod|gcd|max)[a-z]{3}")
#: Words that say more of a number than what is counted.
_NO_UNIT = re.compile(
    "and|or|to|from|plus|minus|times|over|divided|hal(?:f|ves)|thirds?|quarters?|more|less|than|point|squared|cubed"
    "|power|factorial|hundred|thousand|million|billion|trillion|dozen|percent|sqrt|root|alpha|beta|gamma|delta|theta"
    "|lambda|omega|sigma|cosh|sinh|tanh|base|modulo|choose|infinity|infinite|if|for|where|when|not"
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
    while (found := _WRAPPED.search(value)) and value[: found.start()].strip("$ "):
        value, units = value[: found.start()], [found[1].strip(), *units]
    if units:
        return Quantity(value, " ".join(units), False)
    tail = _TAIL.fullmatch(text)
    if tail is None or not tail["value"].strip("$ "):
        return Quantity(text, "", False)
    words = re.findall("[a-z]+", tail["unit"].lower())
    known = [_KNOWN.fullmatch(word) is not None for word in words]
    if not _NUMBER.fullmatch(tail["value"].rpartition("=")[2]):
        is_unit = all(known)
    elif set(words) <= _LETTERS:
        return Quantity(tail["value"], tail["unit"], "/" not in tail["unit"])
    else:
        begins = known[0] or words[0] == "of" or _WORD.fullmatch(words[0])
        is_unit = bool(begins) and not any(map(_NO_UNIT.fullmatch, words))
    return Quantity(tail["value"], tail["unit"], False) if is_unit else Quantity(text, "", False)
