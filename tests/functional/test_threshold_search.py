from __future__ import annotations

import random
from fractions import Fraction

import pytest
import torch

from ipvrm_lightning.functional import best_threshold, first_error, step_f1_at
from ipvrm_lightning.functional.threshold_search import ThresholdSearch


def draw(seed: int, count: int, *, ties: bool) -> tuple[list[list[float]], list[int]]:
    source = random.Random(seed)
    scores = [
        [float(source.randint(-2, 2)) if ties else source.gauss(0, 1) for _ in range(source.randint(1, 6))]
        for _ in range(count)
    ]
    return scores, [source.randint(-1, len(row) - 1) for row in scores]


def exact_best(scores: list[list[float]], labels: list[int]) -> tuple[float, float]:
    """Step F1 and threshold by the definition: every stretch between neighbouring scores is tried."""
    flat = sorted({score for row in scores for score in row})
    right = [
        [first_error(row, threshold) == label for row, label in zip(scores, labels, strict=True)]
        for threshold in (*flat, flat[-1] + 1)  # a stretch ends with its score, which is not below itself
    ]
    changes = [place for place in range(len(flat)) if right[place] != right[place + 1]]
    wrong = sum(label >= 0 for label in labels)

    def f1(place: int) -> Fraction:
        found = Fraction(sum(hit and label >= 0 for hit, label in zip(right[place], labels, strict=True)), wrong)
        passed = Fraction(sum(right[place]) - found * wrong, len(labels) - wrong)
        return 2 * found * passed / (found + passed) if found + passed else Fraction(0)

    places = [*changes, len(flat)]
    best = max(range(len(places)), key=lambda state: f1(places[state]))  # the first of equal ones
    if best == 0:
        return float(f1(places[0])), flat[changes[0]] - 1
    low = flat[changes[best - 1]]
    return float(f1(places[best])), low + 1 if best == len(changes) else low / 2 + flat[changes[best]] / 2


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_with_equal_weights_it_is_the_exact_optimum(seed: int, ties: bool) -> None:
    scores, labels = draw(seed, 40, ties=ties)
    found = ThresholdSearch(scores, labels).best(torch.ones(1, 40, dtype=torch.float64))
    f1, threshold = exact_best(scores, labels)
    assert found.f1.item() == pytest.approx(f1, abs=1e-15)
    assert found.threshold.item() == threshold
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


@pytest.mark.parametrize("ties", [False, True])
def test_the_curve_is_step_f1_at_every_threshold(ties: bool) -> None:
    scores, labels = draw(1, 30, ties=ties)
    curve = ThresholdSearch(scores, labels).curve()
    thresholds = curve.threshold.tolist()
    assert thresholds == sorted(set(thresholds))
    assert curve.f1.tolist() == pytest.approx([step_f1_at(scores, labels, each).f1 for each in thresholds])
    # what it says of a stretch holds at each score and above all of them
    flat = sorted({score for row in scores for score in row})
    every = {round(step_f1_at(scores, labels, each).f1, 12) for each in (*flat, flat[-1] + 1)}
    assert {round(f1, 12) for f1 in curve.f1.tolist()} == every


def test_nothing_weighted_has_no_threshold() -> None:
    found = ThresholdSearch([[0.0], [1.0]], [0, -1]).best(torch.zeros(1, 2, dtype=torch.float64))
    assert found.f1.isnan().all() and found.threshold.isnan().all()
