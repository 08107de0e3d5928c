from __future__ import annotations

import math

import pytest
import torch

from ipvrm_lightning import functional as F
from ipvrm_lightning.functional.calibration import ranks

PREDICTED = torch.tensor([0.1, 0.3, 0.3, 0.9, 1.0])
OUTCOMES = torch.tensor([0, 1, 0, 1, 1])


def test_by_hand() -> None:
    assert F.brier_score(PREDICTED, OUTCOMES) == pytest.approx((0.01 + 0.49 + 0.09 + 0.01 + 0) / 5)
    table = F.reliability_bins(PREDICTED, OUTCOMES, 2)
    assert table.edges.tolist() == [0, 0.5, 1]
    assert table.counts.tolist() == [3, 2]
    assert table.confidence.tolist() == pytest.approx([0.7 / 3, 0.95])
    assert table.accuracy.tolist() == pytest.approx([1 / 3, 1])
    assert F.expected_calibration_error(PREDICTED, OUTCOMES, 2) == pytest.approx((3 * (0.1) + 2 * 0.05) / 5)


def test_empty_bins_are_nan_and_do_not_count() -> None:
    table = F.reliability_bins(torch.tensor([0.95, 1.0]), torch.tensor([1, 1]), 10)
    assert table.counts.tolist() == [0] * 9 + [2]
    assert all(math.isnan(value) for value in table.accuracy[:9].tolist())
    assert F.expected_calibration_error(torch.tensor([0.95, 1.0]), torch.tensor([1, 1])) == pytest.approx(0.025)


def test_few_predictions_and_few_bins() -> None:
    # Nothing in the upper bins, and a bin of one prediction counts.
    low, wrong = torch.tensor([0.05]), torch.tensor([0])
    assert F.reliability_bins(low, wrong, 4).counts.tolist() == [1, 0, 0, 0]
    assert F.expected_calibration_error(low, wrong) == pytest.approx(0.05)
    # One bin: the mean prediction of 0.52 against the share of 0.6.
    assert F.expected_calibration_error(PREDICTED, OUTCOMES, 1) == pytest.approx(0.08)


def test_ten_bins_are_the_default() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, outcomes = torch.rand(50, generator=generator), torch.randint(0, 2, (50,), generator=generator)
    assert len(F.reliability_bins(predicted, outcomes).counts) == 10
    found = F.expected_calibration_error(predicted, outcomes)
    assert found == F.expected_calibration_error(predicted, outcomes, 10)
    assert found != F.expected_calibration_error(predicted, outcomes, 9)


def test_a_float_comes_back_whatever_carries_a_gradient() -> None:
    predicted = PREDICTED.clone().requires_grad_()
    functions = (F.brier_score, F.expected_calibration_error, F.auroc, F.pearson_correlation, F.spearman_correlation)
    assert {type(function(predicted, OUTCOMES.float())) for function in functions} == {float}


def test_auroc_of_more_pairs_than_float32_counts() -> None:
    # 5001 * 5003 pairs, an odd number above 2^24, all won.
    outcomes = torch.arange(10_004) >= 5001
    assert F.auroc(torch.arange(10_004.0), outcomes) == 1
    assert F.auroc(torch.arange(10_004.0), ~outcomes) == 0


def test_auroc_against_all_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (40,), generator=generator).double()
    outcomes = torch.randint(0, 2, (40,), generator=generator)
    wins = [
        1.0 if right > wrong else 0.5 if right == wrong else 0.0
        for right in scores[outcomes == 1].tolist()
        for wrong in scores[outcomes == 0].tolist()
    ]
    assert F.auroc(scores, outcomes) == pytest.approx(sum(wins) / len(wins))
    assert F.auroc(-scores, outcomes) == pytest.approx(1 - sum(wins) / len(wins))
    assert F.auroc(scores.exp(), outcomes) == pytest.approx(F.auroc(scores, outcomes))


def test_auroc_with_one_class_is_nan() -> None:
    assert math.isnan(F.auroc(PREDICTED, torch.ones(5)))
    assert math.isnan(F.auroc(PREDICTED, torch.zeros(5)))


def test_ranks_share_ties() -> None:
    assert ranks(torch.tensor([10.0, 20.0, 10.0, 5.0])).tolist() == [2.5, 4, 2.5, 1]


def test_correlations_by_hand() -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    # Deviations of x: -1.5, -0.5, 0.5, 1.5; of y: -2, -1, 0, 3. Products sum to 8; squares to 5 and 14.
    assert F.pearson_correlation(x, torch.tensor([0.0, 1.0, 2.0, 5.0])) == pytest.approx(8 / (5 * 14) ** 0.5)
    assert F.spearman_correlation(x, torch.tensor([0.0, 1.0, 2.0, 5.0])) == pytest.approx(1)
    # One swap of neighbours among four: 1 - 6 * 2 / (4 * 15).
    assert F.spearman_correlation(x, torch.tensor([1.0, 9.0, 3.0, 30.0])) == pytest.approx(0.8)
    # Two pairs lie on a line.
    assert F.pearson_correlation(x[:2], torch.tensor([3.0, 1.0])) == pytest.approx(-1)


def test_a_correlation_keeps_its_digits_far_from_zero() -> None:
    x, y = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 2.0, 6.0])
    far = y + 2.0**24  # exact in float32, whose mean of these is not
    assert F.pearson_correlation(x, far) == pytest.approx(F.pearson_correlation(x, y), abs=1e-12)
    assert F.pearson_correlation(far, x) == pytest.approx(F.pearson_correlation(x, y), abs=1e-12)


@pytest.mark.parametrize("count", range(8))
def test_a_constant_has_no_correlation(count: int) -> None:
    """Nor one whose mean is not itself for rounding, as that of seven times 0.1."""
    constant, other = torch.full((count,), 0.1, dtype=torch.float64), torch.arange(float(count)).double()
    assert math.isnan(F.pearson_correlation(constant, other))
    assert math.isnan(F.pearson_correlation(other, constant))


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="probabilities must lie in"):
        F.brier_score(PREDICTED * 2, OUTCOMES)
    with pytest.raises(ValueError, match="must be equal"):
        F.brier_score(PREDICTED[:2], OUTCOMES)
    with pytest.raises(ValueError, match="no predictions"):
        F.brier_score(PREDICTED[:0], OUTCOMES[:0])
    with pytest.raises(ValueError, match="bins must be at least 1"):
        F.reliability_bins(PREDICTED, OUTCOMES, 0)
    with pytest.raises(ValueError, match="value 0 is NaN"):
        F.auroc(torch.tensor([float("nan"), 1.0]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"must be equal and \[N\]"):
        F.brier_score(PREDICTED[None], OUTCOMES[None])
    with pytest.raises(ValueError, match=r"expected one dimension, found shape \(5, 1\)"):
        F.auroc(PREDICTED[:, None], OUTCOMES)
    for first, second in ((PREDICTED, PREDICTED[:2]), (PREDICTED[None], PREDICTED[None])):
        with pytest.raises(ValueError, match="must be equal and one-dimensional"):
            F.pearson_correlation(first, second)
    with pytest.raises(ValueError, match="differ"):
        F.spearman_correlation(PREDICTED, PREDICTED[:2])
