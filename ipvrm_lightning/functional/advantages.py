"""Advantages of sampled tokens and of candidates for DistRL (arXiv:2604.13197, Eqs. 8, 10, 13, 25, 27-29).

Two normalisations of the TD part: `prompt_group` is the paper's (Eqs. 27-29), `minibatch` the reference code's. The
coefficient of the TD part is 0.05 as in the reference code; Eq. 13 writes 1. Statistics carry no gradient, and so
neither do the advantages.

Letters: B sequences, T response positions, K candidates per position, mu and s the mean and population standard
deviation of the outcomes of a prompt's rollouts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ipvrm_lightning.functional.masking import (
    EPSILON,
    check_groups,
    check_mask,
    check_outcomes,
    group_moments,
    keep,
    masked_mean,
    masked_std,
    widen,
)

NORMALIZATIONS = ("prompt_group", "minibatch")


class Advantages(NamedTuple):
    """Advantages of one batch, zero at padding.

    Args:
        tokens: of the sampled tokens, [B, T].
        candidates: of the candidates, the sampled token first, [B, T, K].
    """

    tokens: Tensor
    candidates: Tensor


@torch.no_grad()
def group_relative_advantages(outcomes: Tensor, group_ids: Tensor) -> Tensor:
    """GRPO's advantage of each rollout within its prompt: (o - mu) / max(s, 1e-6).

    Args:
        outcomes: 1 right, 0 wrong, [B].
        group_ids: equal for rollouts of the same prompt, integer, [B].

    Returns:
        Advantages, zero where all rollouts of a prompt end alike, [B].

    Raises:
        ValueError: outcomes that are not 0 or 1, or shapes that do not match.
    """
    right = check_outcomes(outcomes)
    check_groups(group_ids, right.shape[0])
    moments = group_moments(right, group_ids)
    return (right - moments.mean) / moments.std.clamp_min(EPSILON)


def generalized_advantages(td_advantages: Tensor, mask: Tensor, *, discount: float, gae_lambda: float) -> Tensor:
    """Generalised advantage estimate (Eq. 8): A_t = sum over l >= 0 of (discount * gae_lambda)^l * delta_{t+l}.

    Computed by doubling, in log2(T) vectorised steps: the sum over 2s terms is the sum over the first s plus
    (discount * gae_lambda)^s times the one that starts s positions later.

    Args:
        td_advantages: one-step advantages delta, [B, T].
        mask: True at response positions, which form one contiguous run, bool, [B, T].
        discount: gamma, in [0, 1].
        gae_lambda: lambda, in [0, 1].

    Returns:
        A, zero at padding, float32 or wider, [B, T].

    Raises:
        ValueError: a coefficient outside [0, 1], or shapes that do not match.
    """
    check_decay(discount, gae_lambda)
    check_mask(mask, td_advantages)
    sums = keep(widen(td_advantages), mask)
    decay, span, length = discount * gae_lambda, 1, td_advantages.shape[-1]
    while span < length:
        later = torch.nn.functional.pad(sums[..., span:], (0, span))
        sums = sums + decay**span * later
        span *= 2
    return keep(sums, mask)


def check_decay(discount: float, gae_lambda: float) -> None:
    """Refuse what an advantage estimate cannot decay by.

    Raises:
        ValueError: names the coefficient that lies outside [0, 1].
    """
    for name, coefficient in (("discount", discount), ("gae_lambda", gae_lambda)):
        if not 0 <= coefficient <= 1:
            raise ValueError(f"{name} must lie in [0, 1], found {coefficient}")


@torch.no_grad()
def distrl_advantages(
    candidate_td: Tensor,
    outcomes: Tensor,
    group_ids: Tensor,
    mask: Tensor,
    *,
    discount: float = 1.0,
    gae_lambda: float = 1.0,
    outcome_coef: float = 1.0,
    gae_coef: float = 0.05,
    normalization: str = "prompt_group",
) -> Advantages:
    """Advantages for DistRL: outcome_coef * (o - mu)/s + gae_coef * GAE of the normalised TD (Eq. 13).

    `prompt_group` (Eqs. 27-29): TD is centred and scaled by the mean and population standard deviation over all tokens
    of the prompt's rollouts, then GAE. `minibatch`: TD is centred by the batch mean and divided by the population
    standard deviation of the sampled paths' prefix values, then GAE, then whitened over all response tokens with the
    sample (Bessel) standard deviation. Every divisor is at least 1e-6.

    Candidates, under both: TD divided by the population standard deviation of the sampled paths' prefix values over
    the minibatch, not centred (Eq. 25).

    Args:
        candidate_td: TD advantages of the candidates, the sampled token first, [B, T, K].
        outcomes: 1 right, 0 wrong, [B].
        group_ids: equal for rollouts of the same prompt, integer, [B].
        mask: True at response positions, bool, [B, T].
        discount: gamma.
        gae_lambda: lambda.
        outcome_coef: weight of the outcome part.
        gae_coef: weight of the TD part.
        normalization: prompt_group or minibatch.

    Returns:
        Advantages of tokens and candidates without a gradient.

    Raises:
        ValueError: an unknown normalisation, outcomes that are not 0 or 1, shapes that do not match.
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization must be one of {', '.join(NORMALIZATIONS)}, found {normalization!r}")
    if candidate_td.dim() != 3:
        raise ValueError(f"candidate_td must be [B, T, K], found shape {tuple(candidate_td.shape)}")
    check_mask(mask, candidate_td[..., 0])
    if outcomes.shape[:1] != mask.shape[:1]:
        raise ValueError(f"{outcomes.shape[0]} outcomes for {mask.shape[0]} sequences")
    relative = group_relative_advantages(outcomes, group_ids).unsqueeze(-1)
    candidate_td = keep(widen(candidate_td), mask.unsqueeze(-1))
    sampled_td = candidate_td[..., 0]
    value_std = masked_std(sampled_td.cumsum(-1), mask).clamp_min(EPSILON)
    if normalization == "prompt_group":
        ids = group_ids.unsqueeze(-1).expand_as(mask)
        moments = group_moments(sampled_td.flatten(), ids.flatten(), mask.flatten())
        mean, std = (moment.view_as(mask) for moment in moments)
        steps = (sampled_td - mean) / std.clamp_min(EPSILON)
    else:
        steps = (sampled_td - masked_mean(sampled_td, mask)) / value_std
    generalized = generalized_advantages(steps, mask, discount=discount, gae_lambda=gae_lambda)
    if normalization == "minibatch":
        spread = masked_std(generalized, mask, correction=1).clamp_min(EPSILON)
        generalized = (generalized - masked_mean(generalized, mask)) / spread
    tokens = outcome_coef * relative.to(generalized.dtype) + gae_coef * generalized
    return Advantages(keep(tokens, mask), candidate_td / value_std)
