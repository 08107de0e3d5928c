"""What a field may hold that it should not, and what may happen to a file on its way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: What a field may hold that it should not.
ODD_VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3.5,
    10**30,
    10**400,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "\n\t",
    "\ud800",
    "tail \udc00",
    "nul\0nul",
    "\x1b[31mred",
    "a\r\nb",
    "\u202eabc",
    "👩‍👩‍👧‍👦",
    "\u2028",
    "ﬁ",
    "x" * 30_000,
    "<|im_end|>",
    "{{ 7 * 7 }}",
    "{% for %}",
    "../../../escaped",
    "/etc/passwd",
    [],
    {},
    [[]],
    [None],
    ["a", 1],
    {"a": {}},
    [{"role": "user"}],
    [{"role": "king", "content": "x"}],
    [{"role": "user", "content": None}],
    "9" * 400,
]


def _deep(rows: bytes) -> bytes:
    return rows + b'{"prompt": ' + b"[" * 100_000 + b"\n"


#: What may happen to a file on its way.
DAMAGE: dict[str, Callable[[bytes, int], bytes]] = {
    "cut short": lambda b, n: b[: n % len(b)],
    "empty": lambda b, n: b"",
    "blank": lambda b, n: b" \n\r\n\t\n",
    "NUL bytes": lambda b, n: b[: n % len(b)] + b"\0\0" + b[n % len(b) :],
    "not UTF-8": lambda b, n: b[: n % len(b)] + b"\xff" + b[n % len(b) :],
    "surrogate bytes": lambda b, n: b.replace(b"1", b"\xed\xa0\x80", 1),
    "BOM": lambda b, n: b"\xef\xbb\xbf" + b,
    "UTF-16": lambda b, n: b.decode("utf-8", "replace").encode("utf-16"),
    "CRLF": lambda b, n: b.replace(b"\n", b"\r\n"),
    "one line": lambda b, n: b.replace(b"\n", b" "),
    "trailing commas": lambda b, n: b.replace(b"\n", b",\n"),
    "single quotes": lambda b, n: b.replace(b'"', b"'"),
    "nested": lambda b, n: _deep(b),
    "a long number": lambda b, n: b + b'{"label": ' + b"1" * 5000 + b"}\n",
    "a byte changed": lambda b, n: b[: n % len(b)] + bytes([n % 256]) + b[n % len(b) + 1 :],
    "noise": lambda b, n: bytes((i * n + n) % 256 for i in range(500)),
    "gzip": lambda b, n: b"\x1f\x8b\x08\x00" + b,
    "said twice": lambda b, n: b + b,
}
HARMLESS = {"BOM", "CRLF"}
