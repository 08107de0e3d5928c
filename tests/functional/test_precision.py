"""Half precision is widened before anything is computed, and no statistic in float64 widens float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ipvrm_lightning import functional as F
from tests.functional.cases import random_case

CASE = random_case(rows=8, length=9)
MASK, OUTCOMES, GROUPS = CASE.mask, CASE.outcomes, CASE.groups  # outcomes in float64
COUNTED = MASK.unsqueeze(-1).expand(-1, -1, 3)
STEPS = torch.where(MASK, torch.arange(9) // 3, -1)


def side(x: Tensor) -> Tensor:
    """Other numbers in the same precision."""
    return x.flip(0)


FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "prefix_values": lambda x: F.prefix_values(x[..., 0], MASK, beta=0.3),
    "td_advantages": lambda x: F.td_advantages(x, MASK, beta=0.3),
    "endo_rewards": lambda x: F.endo_rewards(x[..., 0], side(x)[..., 0], MASK),
    "endo_rewards of wide logits": lambda x: F.endo_rewards(x[..., 0].float(), side(x)[..., 0], MASK),
    "step_scores": lambda x: torch.cat(list(F.step_scores(x[..., 0], STEPS, protocol="step_mean"))),
    "generalized_advantages": lambda x: F.generalized_advantages(x[..., 0], MASK, discount=0.9, gae_lambda=0.9),
    "distrl_advantages": lambda x: F.distrl_advantages(x, OUTCOMES, GROUPS, MASK),
    "distrl_advantages by minibatch": lambda x: F.distrl_advantages(
        x, OUTCOMES, GROUPS, MASK, normalization="minibatch"
    ),
    "ipvrm_loss": lambda x: F.ipvrm_loss(x[..., 0], OUTCOMES, MASK, beta=0.3, margin=0.7),
    "implicit_prm_loss": lambda x: F.implicit_prm_loss(x[..., 0], OUTCOMES, MASK, beta=0.3),
    "pairwise_loss": lambda x: F.pairwise_loss(x[..., 0], MASK, x[..., 1], MASK, beta=0.3, pooling="mean"),
    "distrl_loss": lambda x: F.distrl_loss(
        x, side(x), x[..., 1], side(x), MASK, COUNTED, candidate_clip=0.9, dual_clip=None
    ),
    "low_variance_kl": lambda x: F.low_variance_kl(x, side(x)),
    "candidate_kl": lambda x: F.candidate_kl(x, side(x), COUNTED),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_half_precision_gives_what_the_same_numbers_give_in_float32(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    half = -torch.rand(8, 9, 3, generator=generator).bfloat16() - 0.01
    found, expected = FUNCTIONS[name](half), FUNCTIONS[name](half.float())
    for one, other in zip(*((x,) if isinstance(x, Tensor) else x for x in (found, expected)), strict=True):
        assert one.dtype == other.dtype
        assert one.dtype in (torch.float32, torch.int64)
        assert torch.equal(one, other)


def test_a_candidates_probability_is_compared_in_float32() -> None:
    # This log-probability is a bfloat16; its exponential, 0.100573, would round to 0.10059.
    half = torch.full((1, 2, 2), -2.296875, dtype=torch.bfloat16)
    mask = torch.tensor([[True, True]])
    assert F.candidate_mask(half, mask, min_probability=0.10058)[0, 0].tolist() == [True, False]
    assert F.candidate_mask(half, mask, min_probability=0.10057)[0, 0].tolist() == [True, True]
