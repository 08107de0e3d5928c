"""Threads of tokenizers: none in general, so that processes can be forked, and all cores for many texts at once.

A process that is forked has none of its parent's threads: one that was to tokenise with threads would wait for ever.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_VARIABLE = "TOKENIZERS_PARALLELISM"
#: A spelling of `false` that is ours alone, so that a user's own choice is known and stays.
_OURS = "off"


def one_thread() -> None:
    """Let tokenizers use one thread, unless the environment says how many."""
    os.environ.setdefault(_VARIABLE, _OURS)


@contextmanager
def all_cores() -> Iterator[None]:
    """Within, a tokenizer that is given many texts uses all cores where it was `one_thread` that had said otherwise."""
    ours = os.environ.get(_VARIABLE) == _OURS
    if ours:
        os.environ[_VARIABLE] = "true"
    try:
        yield
    finally:
        if ours:
            os.environ[_VARIABLE] = _OURS
