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
    assert math.isnan(F.pearson_correlation(x, torch.full((4,), 0.1)))
    assert math.isnan(F.pearson_correlation(x[:1], x[:1]))


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
    with pytest.raises(ValueError, match="differ"):
        F.spearman_correlation(PREDICTED, PREDICTED[:2])
