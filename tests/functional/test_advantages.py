from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ipvrm_lightning import functional as F
from tests.functional.cases import padded, random_case

# Prompt 0: TD 1, 3 (right) and 2 (wrong): mean 2, population variance (1 + 1 + 0) / 3. Prompt 1: 4 and 4, both right.
NAN = float("nan")
SAMPLED = torch.tensor([[1.0, 3.0], [2.0, NAN], [4.0, NAN], [4.0, NAN]], dtype=torch.float64)
TD = torch.stack((SAMPLED, -10 * SAMPLED), -1)
MASK = torch.tensor([[True, True], [True, False], [True, False], [True, False]])
OUTCOMES = torch.tensor([1, 0, 1, 1])
GROUPS = torch.tensor([0, 0, 1, 1])
S = (2 / 3) ** 0.5


def test_outcome_part_by_hand() -> None:
    # Accuracy 1/3: population std sqrt(2)/3, so (1 - 1/3) / s = sqrt(2) and (0 - 1/3) / s = -1/sqrt(2).
    found = F.group_relative_advantages(torch.tensor([1, 0, 0, 1, 1]), torch.tensor([5, 5, 5, 2, 2]))
    assert found.tolist() == pytest.approx([2**0.5, -(0.5**0.5), -(0.5**0.5), 0, 0], abs=1e-6)


def test_prompt_group_by_hand() -> None:
    # Standardised TD: -1/S, 1/S | 0 | 0 | 0. GAE with both coefficients 1 adds what follows: 0, 1/S | 0 | 0 | 0.
    found = F.distrl_advantages(TD, OUTCOMES, GROUPS, MASK, gae_coef=0.5)
    expected = torch.tensor([[1, 1 + 0.5 / S], [-1, 0], [0, 0], [0, 0]], dtype=torch.float64)
    torch.testing.assert_close(found.tokens, expected)
    # Half of the second token's 1/S reaches the first; the outcome part is doubled.
    found = F.distrl_advantages(TD, OUTCOMES, GROUPS, MASK, discount=0.5, outcome_coef=2.0, gae_coef=1.0)
    expected = torch.tensor([[2 - 1 / S + 0.5 / S, 2 + 1 / S], [-2, 0], [0, 0], [0, 0]], dtype=torch.float64)
    torch.testing.assert_close(found.tokens, expected)


@pytest.mark.parametrize("normalization", F.NORMALIZATIONS)
def test_candidates_by_hand(normalization: str) -> None:
    # Prefix values 1, 4 | 2 | 4 | 4: mean 3, population variance (4 + 1 + 1 + 1 + 1) / 5.
    found = F.distrl_advantages(TD, OUTCOMES, GROUPS, MASK, normalization=normalization)
    expected = torch.tensor([[1.0, 3.0], [2.0, 0.0], [4.0, 0.0], [4.0, 0.0]], dtype=torch.float64) / 1.6**0.5
    torch.testing.assert_close(found.candidates[..., 0], expected)
    torch.testing.assert_close(found.candidates[..., 1], -10 * expected)


def loop_gae(td: Tensor, mask: Tensor, decay: float) -> Tensor:
    result = torch.zeros_like(td)
    for row in range(td.shape[0]):
        running = 0.0
        for t in reversed(range(int(mask[row].sum()))):
            running = td[row, t].item() + decay * running
            result[row, t] = running
    return result


@pytest.mark.parametrize("length", [1, 2, 7, 64, 100])
@pytest.mark.parametrize(("discount", "gae_lambda"), [(1.0, 1.0), (1.0, 0.95), (0.9, 0.5), (0.0, 1.0), (1.0, 0.0)])
def test_generalised_advantages_against_the_recursion(length: int, discount: float, gae_lambda: float) -> None:
    case = random_case(length=length)
    found = F.generalized_advantages(case.ratios, case.mask, discount=discount, gae_lambda=gae_lambda)
    torch.testing.assert_close(found, loop_gae(case.ratios, case.mask, discount * gae_lambda))


@pytest.mark.parametrize(("discount", "gae_lambda"), [(1.0, 1.0), (0.9, 0.5)])
def test_left_padding_shifts_the_advantages_and_stays_zero(discount: float, gae_lambda: float) -> None:
    settings = {"discount": discount, "gae_lambda": gae_lambda}
    td, mask = torch.tensor([[1.0, -2.0, 3.0, NAN, NAN]]), torch.tensor([[True, True, True, False, False]])
    right = F.generalized_advantages(td, mask, **settings)
    left = F.generalized_advantages(td.roll(2, -1), mask.roll(2, -1), **settings)
    assert torch.equal(left, right.roll(2, -1))
    assert left[0, :2].tolist() == [0, 0]


@pytest.mark.parametrize("normalization", F.NORMALIZATIONS)
@pytest.mark.parametrize("scale", [1e-4, 1e3])
def test_the_scale_of_values_changes_nothing(normalization: str, scale: float) -> None:
    case = random_case()
    td = case.ratios.unsqueeze(-1)
    plain, scaled = (
        F.distrl_advantages(factor * td, case.outcomes, case.groups, case.mask, normalization=normalization)
        for factor in (1.0, scale)
    )
    torch.testing.assert_close(scaled.tokens, plain.tokens)
    torch.testing.assert_close(scaled.candidates, plain.candidates)


@pytest.mark.parametrize("normalization", F.NORMALIZATIONS)
def test_the_reference_codes_coefficients_are_the_defaults(normalization: str) -> None:
    case = random_case()
    given = (case.ratios.unsqueeze(-1), case.outcomes, case.groups, case.mask)
    named = {"discount": 1.0, "gae_lambda": 1.0, "outcome_coef": 1.0, "gae_coef": 0.05}
    found = F.distrl_advantages(*given, normalization=normalization).tokens
    assert torch.equal(found, F.distrl_advantages(*given, normalization=normalization, **named).tokens)


def test_with_coefficients_of_one_the_first_advantage_is_the_last_prefix_value() -> None:
    case = random_case()
    first = F.generalized_advantages(
        F.td_advantages(case.ratios, case.mask, beta=10.0), case.mask, discount=1.0, gae_lambda=1.0
    )[:, 0]
    last = F.prefix_values(case.ratios, case.mask, beta=10.0)[F.last_positions(case.mask)]
    torch.testing.assert_close(first, last)


@pytest.mark.parametrize("normalization", F.NORMALIZATIONS)
def test_padding_and_permuting_change_nothing(normalization: str) -> None:
    case = random_case()
    td = torch.randn(*case.ratios.shape, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain = F.distrl_advantages(td, case.outcomes, case.groups, case.mask, normalization=normalization)
    order = torch.tensor([5, 2, 0, 3, 1, 4])
    wide, mask = padded(td, case.mask)
    moved = F.distrl_advantages(
        wide[order], case.outcomes[order], case.groups[order], mask[order], normalization=normalization
    )
    torch.testing.assert_close(moved.tokens[:, :7], plain.tokens[order])
    torch.testing.assert_close(moved.candidates[:, :7], plain.candidates[order])
    assert not moved.tokens[~mask[order]].any()
    assert not moved.candidates[~mask[order]].any()


def test_prompts_split_over_batches_get_the_same_token_advantages() -> None:
    case = random_case()
    td = case.ratios.unsqueeze(-1)
    whole = F.distrl_advantages(td, case.outcomes, case.groups, case.mask).tokens
    parts = [
        F.distrl_advantages(td[rows], case.outcomes[rows], case.groups[rows], case.mask[rows]).tokens
        for rows in (slice(0, 3), slice(3, 6))
    ]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_minibatch_whitening_leaves_mean_zero_and_sample_deviation_one() -> None:
    case = random_case()
    found = F.distrl_advantages(
        case.ratios.unsqueeze(-1),
        case.outcomes,
        case.groups,
        case.mask,
        outcome_coef=0.0,
        gae_coef=1.0,
        normalization="minibatch",
    ).tokens[case.mask]
    assert found.mean().item() == pytest.approx(0, abs=1e-12)
    assert found.std(unbiased=True).item() == pytest.approx(1)


def test_without_the_td_part_it_is_grpo() -> None:
    case = random_case()
    for normalization in F.NORMALIZATIONS:
        found = F.distrl_advantages(
            case.ratios.unsqueeze(-1),
            case.outcomes,
            case.groups,
            case.mask,
            gae_coef=0.0,
            normalization=normalization,
        ).tokens
        expected = F.group_relative_advantages(case.outcomes, case.groups).unsqueeze(-1) * case.mask
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("normalization", F.NORMALIZATIONS)
def test_zero_log_ratios_stay_finite_and_nothing_carries_a_gradient(normalization: str) -> None:
    td = torch.zeros(4, 2, 3, requires_grad=True)
    found = F.distrl_advantages(td, OUTCOMES, GROUPS, MASK, normalization=normalization)
    assert found.tokens.isfinite().all()
    assert found.candidates.isfinite().all()
    assert not found.tokens.requires_grad
    assert not found.candidates.requires_grad


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="normalization must be one of prompt_group, minibatch, found 'batch'"):
        F.distrl_advantages(TD, OUTCOMES, GROUPS, MASK, normalization="batch")
    with pytest.raises(ValueError, match=r"candidate_td must be \[B, T, K\]"):
        F.distrl_advantages(SAMPLED, OUTCOMES, GROUPS, MASK)
    with pytest.raises(ValueError, match="3 outcomes for 4 sequences"):
        F.distrl_advantages(TD, OUTCOMES[:3], GROUPS, MASK)
    with pytest.raises(ValueError, match="group_ids"):
        F.distrl_advantages(TD, OUTCOMES, GROUPS[:3], MASK)
    with pytest.raises(ValueError, match="mask has shape"):
        F.distrl_advantages(TD, OUTCOMES, GROUPS, MASK[:, :1])
    with pytest.raises(ValueError, match="mask must be boolean"):
        F.generalized_advantages(SAMPLED, MASK.long(), discount=1.0, gae_lambda=1.0)
    with pytest.raises(ValueError, match="gae_lambda must lie in"):
        F.generalized_advantages(SAMPLED, MASK, discount=1.0, gae_lambda=1.1)
