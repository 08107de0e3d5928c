"""Apple's GPU (MPS), on which nothing of this package is computed."""

from __future__ import annotations

#: Told to who asks for it.
NO_MPS = "Apple's GPU has no float64, which draws, scores and metrics need: use cpu"


def refuse_mps(device: object) -> None:
    """Refuse Apple's GPU before anything is loaded.

    Args:
        device: as torch names it; any other is left alone.

    Raises:
        ValueError: says why, and what to use.
    """
    if str(device).partition(":")[0] == "mps":
        raise ValueError(f"device {device}: {NO_MPS}")
