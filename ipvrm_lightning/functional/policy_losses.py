"""The policy loss of DistRL: a GRPO-style update on sampled tokens plus one on candidates (Eqs. 11, 12, 14).

Where it departs from the paper: the candidates' clip is symmetric (0.2), as in the reference code, and the dual clip
for negative advantages applies to both parts. With `distribution_coef=0` it is GRPO's token-level loss.

Letters: B sequences, T response positions, K candidates per position.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ipvrm_lightning.functional.masking import check_mask, keep, masked_mean, widen

_LARGEST_LOG_RATIO = 20.0
"""Beyond it exp() may overflow and turn a zero gradient into NaN; every clip range ends far below exp(20)."""


class PolicyLoss(NamedTuple):
    """The policy loss and what to watch beside it; all scalars, only the first three carry gradients.

    Args:
        total: token + distribution_coef * candidate.
        token: clipped surrogate over response tokens.
        candidate: clipped surrogate over counted candidates, weighted by their behaviour probability.
        token_clip_fraction: share of response tokens whose ratio was clipped.
        candidate_clip_fraction: share of counted candidates whose ratio was clipped.
        token_count: response tokens, the divisor of `token`.
        candidate_weight: sum of the behaviour probabilities of counted candidates, the divisor of `candidate`.
    """

    total: Tensor
    token: Tensor
    candidate: Tensor
    token_clip_fraction: Tensor
    candidate_clip_fraction: Tensor
    token_count: Tensor
    candidate_weight: Tensor


def clipped_surrogate(
    log_ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float, dual_clip: float | None
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate per element, with a floor for negative advantages.

    L = max(-A * r, -A * clip(r, 1 - clip_low, 1 + clip_high)), and for A < 0 at most -A * dual_clip.
    A log-ratio beyond 20 in size is held there and gets no gradient.

    Args:
        log_ratio: log pi - log pi_old, [...].
        advantages: A, [...].
        clip_low: how far the ratio may fall below 1.
        clip_high: how far the ratio may rise above 1.
        dual_clip: largest ratio that counts for a negative advantage, above 1; None for none.

    Returns:
        The losses and where the ratio was clipped (bool), [...] each.
    """
    ratio = log_ratio.clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO).exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    losses = torch.maximum(plain, clipped)
    if dual_clip is not None:
        losses = torch.where(advantages < 0, torch.minimum(losses, -advantages * dual_clip), losses)
    return losses, clipped > plain


def distrl_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    candidate_advantages: Tensor,
    mask: Tensor,
    candidate_mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    candidate_clip: float = 0.2,
    dual_clip: float | None = 3.0,
    distribution_coef: float = 0.1,
) -> PolicyLoss:
    """DistRL's loss (Eqs. 11, 12, 14): mean token surrogate + distribution_coef * weighted candidate surrogate.

    The candidate part weights each counted candidate with its behaviour probability and divides by the sum of these;
    it is 0 where no candidate counts. Advantages and behaviour log-probabilities get no gradient.

    Args:
        log_probs: under the policy being trained, the sampled token first, [B, T, K].
        old_log_probs: under the behaviour policy, [B, T, K].
        advantages: of the sampled tokens, [B, T].
        candidate_advantages: of the candidates, [B, T, K].
        mask: True at response positions, bool, [B, T].
        candidate_mask: True where a candidate counts, bool, [B, T, K].
        clip_low: lower clip of sampled tokens.
        clip_high: upper clip of sampled tokens.
        candidate_clip: symmetric clip of candidates.
        dual_clip: largest ratio that counts for a negative advantage; None for none.
        distribution_coef: alpha, weight of the candidate part.

    Returns:
        The losses, clip fractions and divisors.

    Raises:
        ValueError: shapes that do not match, masks that are not boolean, or clips out of range.
    """
    check_clips(clip_low, clip_high, candidate_clip, dual_clip)
    if log_probs.dim() != 3:
        raise ValueError(f"log_probs must be [B, T, K], found shape {tuple(log_probs.shape)}")
    check_mask(candidate_mask, log_probs, "candidate_mask")
    for name, values in (("old_log_probs", old_log_probs), ("candidate_advantages", candidate_advantages)):
        if values.shape != log_probs.shape:
            raise ValueError(f"{name} has shape {tuple(values.shape)}, log_probs {tuple(log_probs.shape)}")
    check_mask(mask, log_probs[..., 0])
    check_mask(mask, advantages)

    old = widen(old_log_probs.detach())
    token_log_ratio = keep(widen(log_probs[..., 0]), mask) - keep(old[..., 0], mask)
    advantages = keep(widen(advantages.detach()), mask)
    losses, clipped = clipped_surrogate(
        token_log_ratio, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
    )
    token = masked_mean(losses, mask)
    token_clip_fraction = masked_mean(clipped.to(losses.dtype), mask)

    old = keep(old, candidate_mask)
    log_ratio = keep(widen(log_probs), candidate_mask) - old
    advantages = keep(widen(candidate_advantages.detach()), candidate_mask)
    losses, clipped = clipped_surrogate(
        log_ratio, advantages, clip_low=candidate_clip, clip_high=candidate_clip, dual_clip=dual_clip
    )
    weights = keep(old.exp(), candidate_mask)
    total_weight = weights.sum()
    candidate = (losses * weights).sum() / total_weight.clamp_min(torch.finfo(weights.dtype).tiny)
    return PolicyLoss(
        total=token + distribution_coef * candidate,
        token=token,
        candidate=candidate,
        token_clip_fraction=token_clip_fraction,
        candidate_clip_fraction=masked_mean(clipped.to(losses.dtype), candidate_mask),
        token_count=mask.sum(),
        candidate_weight=total_weight,
    )


def check_clips(clip_low: float, clip_high: float, candidate_clip: float, dual_clip: float | None) -> None:
    """Refuse clips that no ratio could be held to; the arguments are those of `distrl_loss`.

    Raises:
        ValueError: names the clip.
    """
    for name, clip in (("clip_low", clip_low), ("candidate_clip", candidate_clip)):
        if not 0 <= clip <= 1:
            raise ValueError(f"{name} must lie in [0, 1], found {clip}")
    if not clip_high >= 0:
        raise ValueError(f"clip_high must not be negative, found {clip_high}")
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip must be above 1, found {dual_clip}")


def low_variance_kl(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) at each sampled token: r - 1 - log r with r = reference / policy.

    Never negative, and unbiased under samples of the policy (Schulman 2020, "Approximating KL divergence", k3).
    Multiplied by the policy's probability and summed over all tokens of the vocabulary it is the divergence itself.

    Args:
        log_probs: under the policy, [...].
        reference_log_probs: under the reference, [...].

    Returns:
        The estimate, float32 or wider, [...].
    """
    log_ratio = widen(reference_log_probs.detach()) - widen(log_probs)
    log_ratio = log_ratio.clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
    return log_ratio.exp() - 1 - log_ratio


def candidate_kl(log_probs: Tensor, reference_log_probs: Tensor, candidate_mask: Tensor) -> Tensor:
    """The part of KL(policy || reference) that lies on the counted candidates of each position, summed over them.

    Each candidate adds pi * (r - 1 - log r), which is never negative, with its exact gradient: where the candidates
    hold all of the probability this is the divergence of the position.

    Args:
        log_probs: under the policy, [B, T, K].
        reference_log_probs: under the reference, [B, T, K].
        candidate_mask: True where a candidate counts, bool, [B, T, K].

    Returns:
        Per position, [B, T].
    """
    check_mask(candidate_mask, log_probs, "candidate_mask")
    own = keep(widen(log_probs), candidate_mask)
    # what does not count is log-probability 0 on both sides, which differs by nothing
    return (own.exp() * low_variance_kl(own, keep(widen(reference_log_probs), candidate_mask))).sum(-1)
