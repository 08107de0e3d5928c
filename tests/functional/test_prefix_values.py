from __future__ import annotations

import pytest
import torch

from ipvrm_lightning import functional as F
from tests.functional.cases import padded, random_case

RATIOS = torch.tensor([[1.0, -0.5, 2.0], [4.0, float("nan"), float("inf")]])
MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_values_by_hand() -> None:
    assert F.prefix_values(RATIOS, MASK, beta=2.0).tolist() == [[2, 1, 5], [8, 0, 0]]
    assert F.normalized_values(RATIOS, MASK, beta=6.0).tolist() == [[6, 1.5, 5], [24, 0, 0]]
    assert F.td_advantages(RATIOS, MASK, beta=2.0).tolist() == [[2, -1, 4], [8, 0, 0]]
    candidates = torch.stack((RATIOS, 10 * RATIOS), -1)
    assert F.td_advantages(candidates, MASK, beta=1.0)[..., 1].tolist() == [[10, -5, 20], [40, 0, 0]]


def test_td_advantages_of_a_path_sum_to_its_last_value() -> None:
    case = random_case()
    last = F.prefix_values(case.ratios, case.mask, beta=10.0)[F.last_positions(case.mask)]
    sums = F.td_advantages(case.ratios, case.mask, beta=10.0).sum(-1)
    torch.testing.assert_close(sums, last)


@pytest.mark.parametrize("name", ["prefix_values", "normalized_values", "td_advantages"])
def test_padding_changes_nothing_and_gets_no_gradient(name: str) -> None:
    case = random_case()
    function = getattr(F, name)
    plain = function(case.ratios, case.mask, beta=3.0)
    ratios, mask = padded(case.ratios, case.mask)
    ratios.requires_grad_()
    values = function(ratios, mask, beta=3.0)
    torch.testing.assert_close(values[:, :7], plain, rtol=0, atol=0)
    assert not values[:, 7:].any()
    (gradient,) = torch.autograd.grad(values.sum(), ratios)
    assert gradient.isfinite().all()
    assert not gradient[~mask].any()


def test_left_padding_shifts_the_values() -> None:
    right = F.normalized_values(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[True, True, False]]), beta=1.0)
    left = F.normalized_values(torch.tensor([[9.0, 1.0, 2.0]]), torch.tensor([[False, True, True]]), beta=1.0)
    assert left.tolist() == [[0, *right[0, :2].tolist()]]
    logits, log_probs, mask = torch.tensor([[1.0, 3.0, 9.0]]), -torch.ones(1, 3), torch.tensor([[True, True, False]])
    right = F.endo_rewards(logits, log_probs, mask)
    left = F.endo_rewards(logits.roll(1), log_probs.roll(1), mask.roll(1))
    assert left.tolist() == [[0, *right[0, :2].tolist()]]


def test_half_precision_is_widened_before_summing() -> None:
    # 256 + 1 is not a bfloat16: a sum in bfloat16 would stay at 256.
    ratios = torch.ones(1, 300, dtype=torch.bfloat16)
    values = F.prefix_values(ratios, torch.ones(1, 300).bool(), beta=1.0)
    assert values.dtype == torch.float32
    assert values[0, -1].item() == 300


def test_endo_rewards_by_hand() -> None:
    # V = logit - log-prob: 1 + 1 = 2 and 3 + 0.5 = 3.5; r = Q - 0.5 * next V.
    logits = torch.tensor([[1.0, 3.0, float("nan")]])
    log_probs = torch.tensor([[-1.0, -0.5, float("nan")]])
    mask = torch.tensor([[True, True, False]])
    assert F.endo_rewards(logits, log_probs, mask, discount=0.5).tolist() == [[1 - 1.75, 3.0, 0.0]]


def test_endo_rewards_from_full_logits() -> None:
    logits = torch.randn(2, 4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])
    picked = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    log_probs = logits.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    rewards = F.endo_rewards(picked, log_probs, torch.ones(2, 4).bool())
    soft_values = logits.logsumexp(-1)
    torch.testing.assert_close(rewards[:, :-1], picked[:, :-1] - 0.95 * soft_values[:, 1:])
    torch.testing.assert_close(rewards[:, -1], picked[:, -1])


def test_a_mask_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="boolean"):
        F.prefix_values(RATIOS, MASK.float(), beta=1.0)
    with pytest.raises(ValueError, match="shape"):
        F.normalized_values(RATIOS, MASK[:, :2], beta=1.0)
    for ratios in (RATIOS, RATIOS.unsqueeze(-1)):
        with pytest.raises(ValueError, match="mask must be boolean"):
            F.td_advantages(ratios, MASK.long(), beta=1.0)
    for logits, log_probs in ((RATIOS, RATIOS[:, :1]), (RATIOS[:, :1], RATIOS)):
        with pytest.raises(ValueError, match="mask has shape"):
            F.endo_rewards(logits, log_probs, MASK)
