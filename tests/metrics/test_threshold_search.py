from __future__ import annotations

import random

import pytest
import torch

from ipvrm_lightning.functional import best_threshold, first_error
from ipvrm_lightning.metrics.threshold_search import ThresholdSearch


def draw(seed: int, count: int, *, ties: bool) -> tuple[list[list[float]], list[int]]:
    source = random.Random(seed)
    scores = [
        [float(source.randint(-2, 2)) if ties else source.gauss(0, 1) for _ in range(source.randint(1, 6))]
        for _ in range(count)
    ]
    return scores, [source.randint(-1, len(row) - 1) for row in scores]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_with_equal_weights_it_is_the_exact_optimum(seed: int, ties: bool) -> None:
    scores, labels = draw(seed, 40, ties=ties)
    found = ThresholdSearch(scores, labels).best(torch.ones(1, 40, dtype=torch.float64))
    exact = best_threshold(scores, labels)
    assert (found.f1.item(), found.threshold.item()) == (exact.f1, exact.threshold)


@pytest.mark.parametrize("seed", range(5))
def test_a_weight_is_a_number_of_copies_and_zero_leaves_out(seed: int) -> None:
    scores, labels = draw(seed, 30, ties=False)
    source = random.Random(seed)
    weights = torch.tensor([[source.randint(0, 3) for _ in labels] for _ in range(4)], dtype=torch.float64)
    found = ThresholdSearch(scores, labels).best(weights)
    for row in range(4):
        copies = [index for index, weight in enumerate(weights[row].long().tolist()) for _ in range(weight)]
        few_scores, few_labels = [scores[index] for index in copies], [labels[index] for index in copies]
        exact = best_threshold(few_scores, few_labels)
        assert found.f1[row].item() == pytest.approx(exact.f1, abs=1e-15)
        assert (
            found.threshold[row].item() == exact.threshold
        )  # nothing that was left out decides where in a gap it lies


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("count", [2, 5, 12, 40])
def test_a_threshold_for_other_solutions_is_theirs_alone(count: int, ties: bool) -> None:
    for seed in range(20):
        scores, labels = draw(seed, count, ties=ties)
        others = 1 - torch.eye(count, dtype=torch.float64)
        found = ThresholdSearch(scores, labels).best(others).threshold.tolist()
        left = [[row for row in range(count) if row != out] for out in range(count)]
        exact = [best_threshold([scores[i] for i in rows], [labels[i] for i in rows]).threshold for rows in left]
        assert found == exact


def test_right_at_agrees_with_the_definition() -> None:
    scores, labels = draw(3, 50, ties=True)
    search = ThresholdSearch(scores, labels)
    for threshold in (-3.0, -2.0, -1.5, 0.0, 1.0, 2.0, 2.5):
        expected = [first_error(row, threshold) == label for row, label in zip(scores, labels, strict=True)]
        assert search.right_at(torch.tensor([threshold], dtype=torch.float64)).tolist() == expected


def test_nothing_weighted_has_no_threshold() -> None:
    found = ThresholdSearch([[0.0], [1.0]], [0, -1]).best(torch.zeros(1, 2, dtype=torch.float64))
    assert found.f1.isnan().all() and found.threshold.isnan().all()
