"""Settings of `DistRLModule`, in groups: each is a block of the config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from ipvrm_lightning.functional import NORMALIZATIONS, Advantages, distrl_advantages
from ipvrm_lightning.functional.advantages import check_decay
from ipvrm_lightning.functional.policy_losses import check_clips
from ipvrm_lightning.modules.schedule import Schedule
from ipvrm_lightning.modules.updates import check_clip
from ipvrm_lightning.objectives import Objective
from ipvrm_lightning.rollouts.sources import Sampling


def check_sampling(sampling: Sampling) -> None:
    """Refuse responses that a policy cannot be trained on.

    Raises:
        ValueError: says why.
    """
    if sampling.group_size < 2:
        raise ValueError(f"sampling.group_size must be at least 2 for groups to compare, is {sampling.group_size}")
    if sampling.temperature == 0:
        raise ValueError("sampling.temperature must be above 0: there is no ratio of certain tokens")
    if sampling.top_p != 1:
        raise ValueError(
            f"sampling.top_p must be 1, is {sampling.top_p}: log-probabilities and ratios are those of the whole"
            " distribution, of which responses drawn from a part are no samples"
        )


@dataclass(frozen=True)
class Collecting:
    """Which sampled prompts a step learns from.

    Only prompts with both outcomes are kept; how many, the data module's `batch_size` says.

    Args:
        oversampling: prompts drawn for each one wanted.
        max_refills: further draws where too few have both outcomes; what was found is used then.
        batch_size: responses sampled at one time.

    Raises:
        ValueError: a setting out of range.
    """

    oversampling: float = 1.0
    max_refills: int = 1
    batch_size: int = 256

    def __post_init__(self) -> None:
        if not self.oversampling >= 1 or self.max_refills < 0 or self.batch_size < 1:
            raise ValueError(f"collecting needs oversampling >= 1, max_refills >= 0 and batch_size >= 1, found {self}")


@dataclass
class AdvantageSettings:
    """How outcomes and TD advantages add up (arXiv:2604.13197, Eq. 13).

    Credit of one's own is a dataclass that subclasses this one, named by its `class_path`; it overrides `compute`.

    Args:
        outcome_coef: weight of the group-relative outcome.
        gae_coef: weight of the generalised TD advantage. The reference code has 0.05, of a whitened one; Eq. 13 has 1.
        discount: gamma.
        gae_lambda: lambda.
        normalization: of the TD part: `prompt_group` (paper, Eqs. 27-29) or `minibatch` (reference code). The second is
            whitened after it was summed along a response, the first is not: its size grows with the square root of the
            length at least, and 0.05 of it is 0.4 at 100 tokens and 1.1 at 1,000, where outcomes have size 1.
    """

    outcome_coef: float = 1.0
    gae_coef: float = 0.05
    discount: float = 1.0
    gae_lambda: float = 1.0
    normalization: Literal["prompt_group", "minibatch"] = "prompt_group"

    def __post_init__(self) -> None:
        if self.normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization must be one of {', '.join(NORMALIZATIONS)}, found {self.normalization!r}")
        check_decay(self.discount, self.gae_lambda)

    def compute(self, candidate_td: Tensor, outcomes: Tensor, group_ids: Tensor, mask: Tensor) -> Advantages:
        """Advantages of a mini-batch, see `functional.distrl_advantages`.

        Args:
            candidate_td: TD advantages of the candidates, the sampled token first, [B, T, K].
            outcomes: 1 right, 0 wrong, [B].
            group_ids: equal for rollouts of the same prompt, integer, [B].
            mask: True at response positions, bool, [B, T].
        """
        return distrl_advantages(
            candidate_td,
            outcomes,
            group_ids,
            mask,
            discount=self.discount,
            gae_lambda=self.gae_lambda,
            outcome_coef=self.outcome_coef,
            gae_coef=self.gae_coef,
            normalization=self.normalization,
        )


@dataclass(frozen=True)
class PolicyUpdate:
    """One step's updates of the policy (arXiv:2604.13197, Eqs. 11, 12, 14).

    Args:
        epochs: passes over the step's responses.
        mini_batches: optimiser steps in each pass; the responses of a prompt stay together.
        max_tokens: rows times longest row of one forward pass, at most.
        clip_low: how far the ratio of a sampled token may fall below 1.
        clip_high: how far it may rise above 1.
        candidate_clip: symmetric clip of candidates (reference code).
        dual_clip: largest ratio that counts for a negative advantage; None for none.
        distribution_coef: alpha, weight of the candidate branch; 0 leaves it out.
        top_k: most likely tokens to choose candidates from (reference code: 5).
        min_probability: P_min; a candidate must be likelier.
        kl_coef: weight of the KL to the supervised model, estimated (k3) on sampled tokens, per response token.
        candidate_kl_coef: weight of the KL to the supervised model that lies on the candidates: each counted one adds
            p log(p / q) - p + q, per response token, where p is the policy's probability and q the supervised model's.
        entropy_coef: weight of the entropy bonus.
        gradient_clip_val: largest norm of the gradient, None for no limit.
        max_skipped_updates: updates in a row that may be skipped because their gradient was not finite.
    """

    epochs: int = 1
    mini_batches: int = 1
    max_tokens: int = 16384
    clip_low: float = 0.2
    clip_high: float = 0.28
    candidate_clip: float = 0.2
    dual_clip: float | None = 3.0
    distribution_coef: float = 0.1
    top_k: int = 5
    min_probability: float = 0.1
    kl_coef: float = 0.0
    candidate_kl_coef: float = 0.0
    entropy_coef: float = 0.0
    gradient_clip_val: float | None = 1.0
    max_skipped_updates: int = 3

    def __post_init__(self) -> None:
        for name in ("epochs", "mini_batches", "max_tokens", "top_k"):
            if getattr(self, name) < 1:
                raise ValueError(f"update.{name} must be at least 1, found {getattr(self, name)}")
        for name in ("distribution_coef", "kl_coef", "candidate_kl_coef", "entropy_coef", "max_skipped_updates"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"update.{name} must not be negative, found {getattr(self, name)}")
        check_clip("update.gradient_clip_val", self.gradient_clip_val)
        check_clips(self.clip_low, self.clip_high, self.candidate_clip, self.dual_clip)
        if not 0 <= self.min_probability <= 1:
            raise ValueError(f"update.min_probability must lie in [0, 1], found {self.min_probability}")

    @property
    def width(self) -> int:
        """Tokens looked at per position: the sampled one alone where no candidate is used."""
        return self.top_k if self.distribution_coef or self.candidate_kl_coef else 1

    @property
    def uses_kl(self) -> bool:
        """Whether the supervised model's log-probabilities enter the loss."""
        return bool(self.kl_coef or self.candidate_kl_coef)


@dataclass
class RewardModel:
    """The implicit reward model and its online update.

    Args:
        objective: how it is trained and how its log-ratios read as values; one of log-ratios. Class and beta must be
            those it was trained with.
        checkpoint: of an `ipvrm fit` of `IPVRMModule` on the same language model, the folder of its runs for the newest
            one in it, or what `ipvrm export` made of one: a folder, or a repository on the hub. None starts from the
            supervised model.
        reference: what its log-ratios are taken against: the `behavior` policy of the step (the paper's choice) or the
            supervised model, `sft` (its ablation).
        update: learn from a step's outcomes `before` its advantages are taken, `after` the policy's update, or never
            (`frozen`).
        epochs: passes over the step's responses per update.
        mini_batches: optimiser steps in each pass; the responses of a prompt stay together.
        max_pairs_per_prompt: pairs built per prompt for pairwise objectives, at most.
        adaptive_difficulty_boundary: move the margin by the difficulty of the prompt (Eq. 15).
        dynamic_loss_weighting: weight outcomes by the difficulty of the prompt (Eq. 15).
        normalize_outcome_weights: rescale these weights so that those of a prompt's responses have the mean 1, as the
            reference code does; False for the paper's 1 - mu and mu as they stand.
        optimizer: called with the reward model's parameters.
        scheduler: learning rate over the run's steps.
        gradient_clip_val: largest norm of the gradient, None for no limit.
    """

    objective: Objective
    checkpoint: str | None = None
    reference: Literal["behavior", "sft"] = "behavior"
    update: Literal["before", "after", "frozen"] = "before"
    epochs: int = 1
    mini_batches: int = 1
    max_pairs_per_prompt: int = 8
    adaptive_difficulty_boundary: bool = True
    dynamic_loss_weighting: bool = True
    normalize_outcome_weights: bool = True
    optimizer: OptimizerCallable = torch.optim.AdamW
    scheduler: Schedule | None = None
    gradient_clip_val: float | None = 1.0

    def __post_init__(self) -> None:
        for setting in ("epochs", "mini_batches", "max_pairs_per_prompt"):
            if getattr(self, setting) < 1:
                raise ValueError(f"reward.{setting} must be at least 1, found {getattr(self, setting)}")
        check_clip("reward.gradient_clip_val", self.gradient_clip_val)
        name = type(self.objective).__name__
        if self.objective.score_source != "log_ratio":
            raise ValueError(f"{name} gives no log-ratios: DistRL needs an implicit reward model")
        if own := sorted(self.objective.state_dict()):
            raise ValueError(
                f"{name} has weights or buffers of its own ({own[0]}), which DistRL neither trains nor keeps"
            )
        balances = self.adaptive_difficulty_boundary or self.dynamic_loss_weighting
        if balances and not self.objective.balanced and self.update != "frozen":
            raise ValueError(
                f"{name} has no outcome weights or margins to balance: set reward.adaptive_difficulty_boundary and"
                " reward.dynamic_loss_weighting to false"
            )
