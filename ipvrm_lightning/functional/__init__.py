"""The paper as pure functions on tensors: values, losses, advantages, and the judging of steps."""

from __future__ import annotations

from ipvrm_lightning.functional.advantages import (
    NORMALIZATIONS,
    Advantages,
    distrl_advantages,
    generalized_advantages,
    group_relative_advantages,
)
from ipvrm_lightning.functional.balancing import OutcomeBalance, balance_outcomes
from ipvrm_lightning.functional.best_of_n import best_of_n, majority_vote, oracle, pass_at_1
from ipvrm_lightning.functional.calibration import (
    ReliabilityBins,
    auroc,
    brier_score,
    expected_calibration_error,
    pearson_correlation,
    reliability_bins,
    spearman_correlation,
)
from ipvrm_lightning.functional.candidates import candidate_mask, select_candidates
from ipvrm_lightning.functional.masking import group_moments, last_positions, masked_mean, masked_std
from ipvrm_lightning.functional.objectives import (
    implicit_prm_loss,
    ipvrm_loss,
    pairwise_loss,
    pool,
    prefix_weights,
)
from ipvrm_lightning.functional.policy_losses import (
    PolicyLoss,
    candidate_kl,
    clipped_surrogate,
    distrl_loss,
    low_variance_kl,
)
from ipvrm_lightning.functional.prefix_values import endo_rewards, normalized_values, prefix_values, td_advantages
from ipvrm_lightning.functional.step_f1 import StepF1Result, best_threshold, first_error, step_f1_at
from ipvrm_lightning.functional.step_scores import PROTOCOLS, step_scores

__all__ = [
    "NORMALIZATIONS",
    "PROTOCOLS",
    "Advantages",
    "OutcomeBalance",
    "PolicyLoss",
    "ReliabilityBins",
    "StepF1Result",
    "auroc",
    "balance_outcomes",
    "best_of_n",
    "best_threshold",
    "brier_score",
    "candidate_kl",
    "candidate_mask",
    "clipped_surrogate",
    "distrl_advantages",
    "distrl_loss",
    "endo_rewards",
    "expected_calibration_error",
    "first_error",
    "generalized_advantages",
    "group_moments",
    "group_relative_advantages",
    "implicit_prm_loss",
    "ipvrm_loss",
    "last_positions",
    "low_variance_kl",
    "majority_vote",
    "masked_mean",
    "masked_std",
    "normalized_values",
    "oracle",
    "pairwise_loss",
    "pass_at_1",
    "pearson_correlation",
    "pool",
    "prefix_values",
    "prefix_weights",
    "reliability_bins",
    "select_candidates",
    "spearman_correlation",
    "step_f1_at",
    "step_scores",
    "td_advantages",
]
