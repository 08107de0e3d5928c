"""What is said of work that takes long: a bar before the first step, lines within a step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only
from tqdm import tqdm

#: Seconds that pass before there is a bar, and between two looks of it: logs keep each of them.
_DELAY, _INTERVAL = 5.0, 5.0
#: Seconds between two lines.
_PAUSE = 60.0


def progress(total: int | None, what: str, unit: str, *, hidden: bool = False) -> tqdm[Any]:
    """A bar on the first process, to be updated and closed; none where all is done within a few seconds.

    Args:
        total: how much there is to do; None where it is not known.
        what: is being done.
        unit: of `total`, one of them.
        hidden: show none.
    """
    hidden = hidden or getattr(rank_zero_only, "rank", 0) != 0
    return tqdm(total=total, desc=what, unit=unit, delay=_DELAY, mininterval=_INTERVAL, disable=hidden)


def lines(total: int, what: str) -> Callable[[int], None]:
    """A line a minute on the first process, where the trainer has a bar of its own: none where all takes less.

    Args:
        total: how much this process has to do.
        what: is being done, to what: "sampling responses".

    Returns:
        To be called with how much more is done.
    """
    done, last = 0, time.monotonic()

    def say(more: int) -> None:
        nonlocal done, last
        done += more
        if done < total and time.monotonic() - last >= _PAUSE:
            rank_zero_info(f"{what}: {done:,} of {total:,}")
            last = time.monotonic()

    return say
