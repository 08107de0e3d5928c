"""Training losses on log-probability ratios: IPVRM and the objectives it is compared with.

Two reductions are offered for IPVRM: `sequence`, the paper's (mean over the positions of a response, then over
responses), and `token`, the reference trainer's (one mean over all positions of the batch).

Letters: B sequences, P pairs, T response positions, z normalized values, m margin, o outcome (1 right, 0 wrong).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from ipvrm_lightning.functional.masking import check_mask, check_outcomes, keep, masked_mean, position_numbers, widen
from ipvrm_lightning.functional.prefix_values import normalized_values

REDUCTIONS = ("sequence", "token")
PREFIX_WEIGHTINGS = ("uniform", "late", "early")
POOLINGS = ("sum", "mean")


def prefix_weights(mask: Tensor, weighting: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weight of each position in the loss of its sequence (Eqs. 17, 18): uniform, late t/T, early 1 - t/T.

    A response of one token has an early weight of zero only; it falls back to uniform.

    Args:
        mask: True at response positions, bool, [B, T].
        weighting: uniform, late or early.
        dtype: of the result.

    Returns:
        Weights that sum to 1 over each response, zero at padding, [B, T].

    Raises:
        ValueError: an unknown weighting.
    """
    if weighting not in PREFIX_WEIGHTINGS:
        raise ValueError(f"prefix_weighting must be one of {', '.join(PREFIX_WEIGHTINGS)}, found {weighting!r}")
    numbers = position_numbers(mask).to(dtype)
    lengths = mask.sum(-1, keepdim=True)
    ones = mask.to(dtype)
    if weighting == "uniform":
        raw = ones
    elif weighting == "late":
        raw = numbers
    else:
        raw = torch.where(lengths > 1, keep(lengths - numbers, mask), ones)
    return raw / raw.sum(-1, keepdim=True).clamp_min(1)


def ipvrm_loss(
    log_ratios: Tensor,
    outcomes: Tensor,
    mask: Tensor,
    *,
    beta: float,
    margin: float | Tensor,
    reduction: str = "sequence",
    prefix_weighting: str = "uniform",
    outcome_weights: Tensor | None = None,
) -> Tensor:
    """Loss of the implicit prefix-value reward model (Eq. 9).

    Per position, with z_t = V(s_t)/t: -logsigmoid(z_t - m) where o = 1 and -logsigmoid(-(z_t + m)) where o = 0.
    `sequence` averages the positions of a response with the prefix weights, multiplies by the outcome weight and
    divides the sum by the number of responses that have a token (not by the sum of the weights). `token` divides the
    sum over all positions by their number; there the prefix weights of a response sum to its length, so that a
    response keeps the influence its length gives it.

    Args:
        log_ratios: per-token log-probability ratio, reward model over reference, [B, T].
        outcomes: 1 right, 0 wrong, [B].
        mask: True at response positions, bool, [B, T].
        beta: scale of the implicit reward.
        margin: m, for all sequences or one for each, [B].
        reduction: sequence or token.
        prefix_weighting: uniform, late or early (Eqs. 17, 18).
        outcome_weights: weight of each sequence (Eq. 15), [B]; ones where None.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: an unknown reduction or weighting, outcomes that are not 0 or 1, shapes that do not match.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, found {reduction!r}")
    values = normalized_values(log_ratios, mask, beta=beta)
    batch = values.shape[0]
    signs = 2 * check_outcomes(outcomes, batch).to(values.dtype) - 1
    margins = _per_sequence(margin, batch, "margin", values)
    # -logsigmoid(z - m) and -logsigmoid(-(z + m)) are softplus(m - z) and softplus(m + z).
    losses = softplus(margins.unsqueeze(-1) - signs.unsqueeze(-1) * values)
    weights = prefix_weights(mask, prefix_weighting, values.dtype)
    sequences = (losses * weights).sum(-1)
    if outcome_weights is not None:
        sequences = sequences * _per_sequence(outcome_weights, batch, "outcome_weights", values)
    lengths = mask.sum(-1)
    if reduction == "token":
        return (sequences * lengths).sum() / lengths.sum().clamp_min(1)
    return masked_mean(sequences, lengths > 0)


def implicit_prm_loss(log_ratios: Tensor, outcomes: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    """Implicit PRM (Yuan et al., arXiv:2412.01981): binary cross-entropy of beta * (sum of log-ratios) and outcome.

    Args:
        log_ratios: per-token log-probability ratio, reward model over reference, [B, T].
        outcomes: 1 right, 0 wrong, [B].
        mask: True at response positions, bool, [B, T].
        beta: scale of the implicit reward.

    Returns:
        The loss, a mean over sequences that have a token.

    Raises:
        ValueError: outcomes that are not 0 or 1, or shapes that do not match.
    """
    rewards = beta * pool(log_ratios, mask, "sum")
    signs = 2 * check_outcomes(outcomes, rewards.shape[0]).to(rewards.dtype) - 1
    return masked_mean(softplus(-signs * rewards), mask.any(-1))


def pairwise_loss(
    chosen: Tensor,
    chosen_mask: Tensor,
    rejected: Tensor,
    rejected_mask: Tensor,
    *,
    beta: float,
    margin: float = 0.0,
    pooling: str = "sum",
) -> Tensor:
    """Bradley-Terry loss of pairs: -logsigmoid(beta * (pool(chosen) - pool(rejected)) - margin).

    On log-ratios with `pooling="sum"` it is DPO-RM (Rafailov et al., arXiv:2305.18290); on the outputs of a value head
    with `pooling="mean"`, beta 0.2 and margin 2 it is Q-RM (Chen et al. 2025). The two sides may differ in length.

    Args:
        chosen: per-token values of the better responses, [P, T].
        chosen_mask: True at their response positions, bool, [P, T].
        rejected: per-token values of the worse responses, [P, T'].
        rejected_mask: True at their response positions, bool, [P, T'].
        beta: scale of the difference.
        margin: by how much the better one should win.
        pooling: sum or mean over the response.

    Returns:
        The loss, a mean over pairs of which both sides have a token.

    Raises:
        ValueError: an unknown pooling, or shapes that do not match.
    """
    better, worse = pool(chosen, chosen_mask, pooling), pool(rejected, rejected_mask, pooling)
    if better.shape != worse.shape:
        raise ValueError(f"{better.shape[0]} chosen for {worse.shape[0]} rejected responses")
    losses = -logsigmoid(beta * (better - worse) - margin)
    return masked_mean(losses, chosen_mask.any(-1) & rejected_mask.any(-1))


def pool(values: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Sum or mean of per-token values over each response, float32 or wider: [B, T] to [B].

    Args:
        values: per-token values, [B, T].
        mask: True at response positions, bool, [B, T].
        pooling: sum or mean.

    Raises:
        ValueError: an unknown pooling, or shapes that do not match.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, found {pooling!r}")
    check_mask(mask, values)
    if pooling == "mean":
        return masked_mean(widen(values), mask, dim=-1)
    return keep(widen(values), mask).sum(-1)


def _per_sequence(setting: float | Tensor, batch: int, name: str, like: Tensor) -> Tensor:
    if isinstance(setting, (int, float)):
        return like.new_full((batch,), setting)  # filled there; a copy of a number to a GPU waits for it
    tensor = torch.as_tensor(setting, dtype=like.dtype, device=like.device).detach()
    if tensor.dim() == 0:
        return tensor.expand(batch)
    if tensor.shape != (batch,):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected ({batch},)")
    return tensor
