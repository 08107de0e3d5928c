"""From per-token log-ratios to one score per step of a solution: four protocols (arXiv:2604.13197, Eqs. 30, 31).

Letters: B solutions, T tokens, S steps of a solution, l log-ratio of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ipvrm_lightning.functional.masking import widen

PROTOCOLS = ("step_sum", "prefix_sum", "prefix_mean", "step_mean")
"""`step_sum` is the paper's main protocol (Eq. 31), `prefix_sum` that of Yuan et al. (Eq. 30)."""


@torch.no_grad()
def step_scores(log_ratios: Tensor, step_ids: Tensor, *, protocol: str, beta: float = 1.0) -> Tensor | list[Tensor]:
    """Score of each step of a solution; low means wrong.

    - step_sum (Eq. 31): beta * sum of l over the tokens of the step.
    - step_mean: the same divided by the step's tokens.
    - prefix_sum (Eq. 30): beta * sum of l over all response tokens up to the step's last one.
    - prefix_mean: the same divided by the number of these tokens.

    Tokens in no step (end of turn, padding) carry id -1. The step protocols leave them out; the prefix
    protocols count those before the step's last token, because they are part of the prefix whose value is asked for.
    What follows the last step is never touched. Responses start at position 0 and are padded on the right.

    Args:
        log_ratios: per-token log-probability ratio, [T] or [B, T].
        step_ids: step each token lies in, from 0, or -1 for none, integer, shaped like `log_ratios`.
        protocol: one of `PROTOCOLS`.
        beta: scale of the scores.

    Returns:
        For [T] the scores [S], for [B, T] a list of B of them, each as long as its solution has steps (the largest id
        plus one; none at all where a row has no step).

    Raises:
        ValueError: an unknown protocol, shapes that differ, or a step without a token (row and step are named).
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, found {protocol!r}")
    if log_ratios.shape != step_ids.shape or log_ratios.dim() not in (1, 2):
        raise ValueError(
            f"log_ratios {tuple(log_ratios.shape)} and step_ids {tuple(step_ids.shape)} must both be [T] or [B, T]"
        )
    ratios = widen(log_ratios)
    if ratios.dim() == 1:
        return _score_rows(ratios.unsqueeze(0), step_ids.unsqueeze(0), protocol, beta)[0]
    return _score_rows(ratios, step_ids, protocol, beta)


def _score_rows(ratios: Tensor, step_ids: Tensor, protocol: str, beta: float) -> list[Tensor]:
    rows, length = ratios.shape
    if not step_ids.numel():
        return [ratios.new_zeros(0) for _ in range(rows)]
    steps = (step_ids.max(-1).values + 1).clamp_min(0)
    width = int(steps.max())
    inside = step_ids >= 0
    # One bin for each step of each row, and one more per row for tokens in no step.
    bins = torch.where(inside, step_ids, width).long()
    counts = _add_up(inside.to(ratios.dtype), bins, width)
    empty = (counts == 0) & (torch.arange(width, device=counts.device) < steps.unsqueeze(-1))
    if bool(empty.any()):
        row, step = empty.nonzero()[0].tolist()
        raise ValueError(f"row {row}: step {step} has no token")
    if protocol in ("step_sum", "step_mean"):
        scores = _add_up(ratios, bins, width)
        if protocol == "step_mean":
            scores = scores / counts
    else:
        positions = torch.arange(length, device=ratios.device).expand(rows, length)
        last = positions.new_zeros(rows, width + 1).scatter_reduce_(-1, bins, positions, "amax")[:, :width]
        scores = ratios.cumsum(-1).gather(-1, last)
        if protocol == "prefix_mean":
            scores = scores / (last + 1)
    return [row[:count] for row, count in zip(beta * scores, steps.tolist(), strict=True)]


def _add_up(values: Tensor, bins: Tensor, width: int) -> Tensor:
    return values.new_zeros(values.shape[0], width + 1).scatter_add_(-1, bins, values)[:, :width]
