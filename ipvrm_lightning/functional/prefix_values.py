"""The value of every prefix, from log-probability ratios (arXiv:2604.13197, Sec. 3.1), and EndoRM's rewards.

Letters: B sequences, T response positions, t the number of a position within its response (1..T).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ipvrm_lightning.functional.masking import check_mask, keep, position_numbers, widen


def prefix_values(log_ratios: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    """Value of each prefix: V(s_t) = beta * sum over i <= t of log pi_phi(y_i)/pi_ref(y_i).

    Args:
        log_ratios: per-token log-probability ratio, reward model over reference, [B, T].
        mask: True at response positions, bool, [B, T].
        beta: scale of the implicit reward.

    Returns:
        V, zero at padding, float32 or wider, [B, T].

    Raises:
        ValueError: the mask is not boolean or not shaped like the ratios.
    """
    check_mask(mask, log_ratios)
    return keep(beta * keep(widen(log_ratios), mask).cumsum(-1), mask)


def normalized_values(log_ratios: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    """Value of each prefix per token: V(s_t) / t; its sigmoid reads as P(ends right).

    Args:
        log_ratios: per-token log-probability ratio, reward model over reference, [B, T].
        mask: True at response positions, bool, [B, T].
        beta: scale of the implicit reward.

    Returns:
        V/t, zero at padding, float32 or wider, [B, T].
    """
    values = prefix_values(log_ratios, mask, beta=beta)
    return values / position_numbers(mask).clamp_min(1)


def td_advantages(log_ratios: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    """One-step advantage of each token: A_t = V(s_t) - V(s_{t-1}) = beta * log-ratio of the token (Eq. 10, discount 1).

    The advantages of a path sum to its last prefix value.

    Args:
        log_ratios: log-probability ratio of the sampled tokens, [B, T], or of candidates, [B, T, K].
        mask: True at response positions, bool, [B, T].
        beta: scale of the implicit reward.

    Returns:
        A, zero at padding, float32 or wider, shaped like `log_ratios`.
    """
    check_mask(mask, log_ratios if log_ratios.dim() == mask.dim() else log_ratios[..., 0])
    spread = mask if log_ratios.dim() == mask.dim() else mask.unsqueeze(-1)
    return beta * keep(widen(log_ratios), spread)


def endo_rewards(token_logits: Tensor, log_probs: Tensor, mask: Tensor, *, discount: float = 0.95) -> Tensor:
    """Rewards a language model already holds (Li et al., arXiv:2506.23235): the inverse soft Bellman operator.

    r_t = Q(s_t, y_t) - discount * V(s_{t+1}), where Q is the logit of the token and V(s) = logsumexp of the logits,
    so V(s_t) = token_logits_t - log_probs_t. After the last response token V is 0.

    Args:
        token_logits: logit of each sampled token, [B, T].
        log_probs: log-probability of each sampled token under the same logits, [B, T].
        mask: True at response positions, which form one contiguous run, bool, [B, T].
        discount: decay between positions.

    Returns:
        r, zero at padding, float32 or wider, [B, T].

    Raises:
        ValueError: shapes differ, or the mask is not boolean.
    """
    check_mask(mask, token_logits)
    check_mask(mask, log_probs)
    logits = keep(widen(token_logits), mask)
    values = logits - keep(widen(log_probs), mask)
    following = torch.nn.functional.pad(values[..., 1:], (0, 1))
    return keep(logits - discount * following, mask)
