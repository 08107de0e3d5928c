"""Online balancing of outcomes by the difficulty of their prompt (arXiv:2604.13197, Eq. 15).

Where it departs from the paper: with `normalize=True` (reference code) the weights of a prompt's rollouts are rescaled
to sum to their number, and a prompt whose rollouts are all right or all wrong, whose raw weights are all zero, gets
ones. `normalize=False` gives the paper's raw weights.

Letters: B sequences, mu the share of right answers among the rollouts of a prompt.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ipvrm_lightning.functional.masking import EPSILON, check_groups, check_outcomes, group_moments


class OutcomeBalance(NamedTuple):
    """Weight and margin of each sequence in the IPVRM loss.

    Args:
        weights: outcome weights w, [B].
        margins: margins m, [B].
    """

    weights: Tensor
    margins: Tensor


@torch.no_grad()
def balance_outcomes(
    outcomes: Tensor,
    group_ids: Tensor,
    *,
    margin: float,
    adaptive_difficulty_boundary: bool,
    dynamic_loss_weighting: bool,
    normalize: bool = True,
) -> OutcomeBalance:
    """Margins and weights that keep easy prompts from being all reward and hard ones from being all penalty (Eq. 15).

    Adaptive difficulty boundary: the margin becomes m - logit(mu) for right answers and m + logit(mu) for wrong ones,
    mu clamped to [1e-6, 1 - 1e-6]. Dynamic loss weighting: w = 1 - mu for right answers and mu for wrong ones.

    Args:
        outcomes: 1 right, 0 wrong, [B].
        group_ids: equal for rollouts of the same prompt, integer, [B].
        margin: m before it is moved.
        adaptive_difficulty_boundary: move the margins.
        dynamic_loss_weighting: weight the outcomes.
        normalize: rescale the weights of a prompt to sum to the number of its rollouts, ones where they sum to zero.

    Returns:
        Weights and margins, [B] each; ones and `margin` for what is switched off.

    Raises:
        ValueError: outcomes that are not 0 or 1, or shapes that do not match.
    """
    right = check_outcomes(outcomes)
    check_groups(group_ids, right.shape[0])
    accuracy = group_moments(right, group_ids).mean
    margins = torch.full_like(right, margin)
    weights = torch.ones_like(right)
    if adaptive_difficulty_boundary:
        difficulty = torch.logit(accuracy, eps=EPSILON)
        margins = margins - (2 * right - 1) * difficulty
    if dynamic_loss_weighting:
        weights = torch.where(right == 1, 1 - accuracy, accuracy)
        if normalize:
            mean = group_moments(weights, group_ids).mean
            weights = torch.where(mean > 0, weights / mean, 1.0)
    return OutcomeBalance(weights, margins)
