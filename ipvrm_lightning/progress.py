"""A bar for what takes long before the first step: reading data, the log-probabilities of a reference."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tqdm import tqdm

#: Seconds that pass before there is a bar, and between two looks of it: logs keep each of them.
_DELAY, _INTERVAL = 5.0, 5.0


def progress(total: int | None, what: str, unit: str, *, hidden: bool = False) -> tqdm[Any]:
    """A bar on the first process, to be updated and closed; none where all is done within a few seconds.

    Args:
        total: how much there is to do; None where it is not known.
        what: is being done.
        unit: of `total`.
        hidden: show none.
    """
    hidden = hidden or getattr(rank_zero_only, "rank", 0) != 0
    return tqdm(total=total, desc=what, unit=f" {unit}", delay=_DELAY, mininterval=_INTERVAL, disable=hidden)
