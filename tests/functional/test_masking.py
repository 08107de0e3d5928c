from __future__ import annotations

import pytest
import torch

from ipvrm_lightning.functional import masking

NAN = float("nan")
MASK = torch.tensor([[False, True, True, False], [True, False, False, False], [False] * 4])


def test_positions_count_from_one_and_the_last_is_marked_wherever_the_padding_is() -> None:
    assert masking.position_numbers(MASK).tolist() == [[0, 1, 2, 0], [1, 0, 0, 0], [0] * 4]
    assert masking.last_positions(MASK).nonzero().tolist() == [[0, 2], [1, 0]]


def test_moments_ignore_what_is_masked() -> None:
    values = torch.tensor([[NAN, 1.0, 3.0, torch.inf], [5.0, NAN, NAN, NAN], [NAN] * 4])
    assert masking.masked_mean(values, MASK).item() == pytest.approx(3)
    assert masking.masked_mean(values, MASK, dim=-1).tolist() == pytest.approx([2, 5, 0])
    # Deviations -2, 0, 2: squares sum to 8, over 3 or over 2.
    assert masking.masked_std(values, MASK).item() == pytest.approx((8 / 3) ** 0.5)
    assert masking.masked_std(values, MASK, correction=1).item() == pytest.approx(2)


def test_a_deviation_that_no_numbers_give_is_zero() -> None:
    values = torch.tensor([1.0, 3.0])
    for mask in ([True, False], [False, False]):
        assert masking.masked_std(values, torch.tensor(mask)).item() == 0
        assert masking.masked_std(values, torch.tensor(mask), correction=1).item() == 0
    assert masking.masked_std(values, torch.tensor([True, True]), correction=1).item() == pytest.approx(2**0.5)


def test_groups_without_weight_and_no_groups_at_all() -> None:
    values, groups = torch.tensor([4.0, 2.0, 2.0]), torch.tensor([1, 0, 0])
    moments = masking.group_moments(values, groups, torch.tensor([False, True, True]))
    assert moments.mean.tolist() == [0, 2, 2]
    assert moments.std.tolist() == [0, 0, 0]
    assert masking.group_moments(values[:0], groups[:0]).mean.tolist() == []


def test_group_moments_by_hand_with_weights() -> None:
    moments = masking.group_moments(
        torch.tensor([1.0, 9.0, 3.0, 100.0]), torch.tensor([7, -2, 7, 7]), torch.tensor([1, 1, 1, 0])
    )
    assert moments.mean.tolist() == [2, 9, 2, 2]
    assert moments.std.tolist() == [1, 0, 1, 1]
    learned = torch.ones(2, requires_grad=True)
    assert not any(moment.requires_grad for moment in masking.group_moments(learned, torch.tensor([0, 0])))


@pytest.mark.parametrize(("given", "expected"), [("bfloat16", "float32"), ("float16", "float32"), ("int64", "float32")])
def test_widen(given: str, expected: str) -> None:
    values = torch.ones(2, dtype=getattr(torch, given))
    assert masking.widen(values).dtype == masking.check_outcomes(values).dtype == getattr(torch, expected)
    assert masking.widen(torch.ones(2, dtype=torch.float64)).dtype == torch.float64


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask must be boolean, found torch\.float32"):
        masking.check_mask(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        masking.check_mask(torch.ones(2, 3).bool(), torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"outcomes must be 0 or 1, found 0\.5"):
        masking.check_outcomes(torch.tensor([0.0, 0.5]))
    with pytest.raises(ValueError, match="2 outcomes for 3"):
        masking.check_outcomes(torch.zeros(2), 3)
    with pytest.raises(ValueError, match="one-dimensional"):
        masking.check_outcomes(torch.zeros(2, 2))
    for kind in (torch.float32, torch.bool):
        with pytest.raises(ValueError, match=f"integers, found {kind}"):
            masking.check_groups(torch.zeros(2, dtype=kind), 2)
    with pytest.raises(ValueError, match="expected"):
        masking.check_groups(torch.zeros(2).long(), 3)
