from __future__ import annotations

import math

import pytest
import torch

from ipvrm_lightning import functional as F

# Two prompts, rollouts interleaved: 7 has accuracy 3/4, 3 has 0.
OUTCOMES = torch.tensor([1, 0, 1, 0, 1, 0], dtype=torch.float64)
GROUPS = torch.tensor([7, 7, 7, 3, 7, 3])


def balance(**changes: bool) -> F.OutcomeBalance:
    settings = {"adaptive_difficulty_boundary": False, "dynamic_loss_weighting": False} | changes
    return F.balance_outcomes(OUTCOMES, GROUPS, margin=5.0, **settings)


def test_switched_off_it_changes_nothing() -> None:
    assert balance().weights.tolist() == [1] * 6
    assert balance().margins.tolist() == [5] * 6


def test_margins_by_hand() -> None:
    easy, never = math.log(3), math.log(1e-6 / (1 - 1e-6))
    expected = [5 - easy, 5 + easy, 5 - easy, 5 + never, 5 - easy, 5 + never]
    assert balance(adaptive_difficulty_boundary=True).margins.tolist() == pytest.approx(expected)


def test_raw_weights_by_hand() -> None:
    raw = balance(dynamic_loss_weighting=True, normalize=False).weights
    assert raw.tolist() == pytest.approx([0.25, 0.75, 0.25, 0, 0.25, 0])


def test_normalised_weights_sum_to_the_size_of_their_group() -> None:
    # 0.25 * 3 + 0.75 = 1.5 is rescaled to 4; the prompt that is never right has raw weights of zero only.
    weights = balance(dynamic_loss_weighting=True).weights
    assert weights.tolist() == pytest.approx([2 / 3, 2, 2 / 3, 1, 2 / 3, 1])


def test_permuting_permutes() -> None:
    order = torch.tensor([3, 5, 1, 0, 4, 2])
    settings = {"margin": 5.0, "adaptive_difficulty_boundary": True, "dynamic_loss_weighting": True}
    whole = F.balance_outcomes(OUTCOMES, GROUPS, **settings)
    moved = F.balance_outcomes(OUTCOMES[order], GROUPS[order], **settings)
    torch.testing.assert_close(moved.weights, whole.weights[order])
    torch.testing.assert_close(moved.margins, whole.margins[order])


def test_what_is_refused() -> None:
    settings = {"margin": 5.0, "adaptive_difficulty_boundary": True, "dynamic_loss_weighting": True}
    with pytest.raises(ValueError, match="0 or 1"):
        F.balance_outcomes(OUTCOMES * 0.5, GROUPS, **settings)
    with pytest.raises(ValueError, match="group_ids has shape"):
        F.balance_outcomes(OUTCOMES, GROUPS[:2], **settings)
