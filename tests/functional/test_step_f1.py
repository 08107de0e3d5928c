from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ipvrm_lightning import functional as F

COARSE = st.integers(-3, 3).map(float)
NEIGHBOURS = st.sampled_from(
    [1.0, math.nextafter(1.0, 2.0), math.nextafter(1.0, 0.0), -0.0, 0.0, 5e-324, 1e300, -1e300]
)
ANY = st.floats(-1e300, 1e300)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[list[float]], list[int]]:
    values = draw(st.sampled_from([COARSE, NEIGHBOURS, ANY, COARSE | NEIGHBOURS | ANY]))
    scores = draw(st.lists(st.lists(values, min_size=1, max_size=5), min_size=1, max_size=8))
    labels = [draw(st.integers(-1, len(row) - 1)) for row in scores]
    return scores, labels


def brute(scores: list[list[float]], labels: list[int], threshold: float) -> tuple[int, int]:
    """Correct and erroneous solutions judged rightly, by the definition."""
    passed = found = 0
    for row, label in zip(scores, labels, strict=True):
        wrong = [step for step, score in enumerate(row) if score < threshold]
        if (wrong[0] if wrong else -1) == label:
            passed += label < 0
            found += label >= 0
    return passed, found


def brute_f1(scores: list[list[float]], labels: list[int], threshold: float) -> float:
    passed, found = brute(scores, labels, threshold)
    correct = passed / sum(label < 0 for label in labels)
    error = found / sum(label >= 0 for label in labels)
    return 0.0 if correct + error == 0 else 2 * correct * error / (correct + error)


@settings(max_examples=300, deadline=None)
@given(problems())
def test_no_threshold_is_better(problem: tuple[list[list[float]], list[int]]) -> None:
    scores, labels = problem
    best = F.best_threshold(scores, labels)
    assert math.isfinite(best.threshold)
    # Predictions change only where the threshold passes a score: every score and one beyond the highest are enough.
    flat = sorted({score for row in scores for score in row})
    thresholds = [*flat, math.nextafter(flat[-1], math.inf)]
    again = F.step_f1_at(scores, labels, best.threshold)
    if {label < 0 for label in labels} == {True, False}:
        assert best.f1 == pytest.approx(max(brute_f1(scores, labels, t) for t in thresholds), abs=1e-12)
        assert best.f1 == pytest.approx(brute_f1(scores, labels, best.threshold), abs=1e-12)
        assert again == best
    else:
        assert math.isnan(best.f1)
        assert sum(brute(scores, labels, best.threshold)) == max(sum(brute(scores, labels, t)) for t in thresholds)
    predictions = [F.first_error(row, best.threshold) for row in scores]
    hits = sum(prediction == label for prediction, label in zip(predictions, labels, strict=True))
    assert hits == sum(brute(scores, labels, best.threshold))


def test_by_hand() -> None:
    scores = [[0.9, 0.2, 0.1], [0.8, 0.6], [0.3, 0.9]]
    labels = [1, -1, 0]
    # Thresholds in (0.3, 0.6] get all three: the first sinks below at step 1, the third at step 0, the second never.
    best = F.best_threshold(scores, labels)
    assert best == (1.0, pytest.approx(0.45), 1.0, 1.0)
    low = F.step_f1_at(scores, labels, 0.25)
    assert low == (pytest.approx(2 / 3), 0.25, 1.0, 0.5)
    assert F.step_f1_at(scores, labels, 0.1).f1 == 0
    assert F.step_f1_at(scores[:2], labels[:2], 1.0) == (0.0, 1.0, 0.0, 0.0)


def test_first_error() -> None:
    assert F.first_error([3.0, 1.0, 0.0], 2.0) == 1
    assert F.first_error([3.0, 2.0], 2.0) == -1
    assert F.first_error([], 2.0) == -1
    # As a float32 comparison this would be false: the threshold rounds to the score.
    for scores in (torch.tensor([1.0]), np.ones(1, dtype=np.float32)):
        assert F.first_error(scores, 1.0 + 1e-12) == 0  # type: ignore[arg-type]


def test_float32_scores_are_judged_as_they_were_chosen() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(5, generator=generator).to(torch.float32) for _ in range(40)]
    labels = torch.randint(-1, 5, (40,), generator=generator)
    best = F.best_threshold(scores, labels)
    assert F.step_f1_at(scores, labels, best.threshold) == best


def test_an_absent_class_is_nan_and_the_other_is_still_served() -> None:
    only_right = F.best_threshold([[0.5, 0.4], [0.7]], [-1, -1])
    assert math.isnan(only_right.f1)
    assert math.isnan(only_right.error_accuracy)
    assert only_right.correct_accuracy == 1
    only_wrong = F.best_threshold([[0.5, 0.4], [0.7]], [1, 0])
    assert math.isnan(only_wrong.correct_accuracy)
    assert math.isnan(only_wrong.f1)
    assert only_wrong.error_accuracy == 0.5


def test_order_of_solutions_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(3)
    scores = [torch.rand(int(size), generator=generator).tolist() for size in torch.randint(1, 9, (50,))]
    labels = [int(torch.randint(-1, len(row), (1,), generator=generator)) for row in scores]
    assert F.best_threshold(scores[::-1], labels[::-1]) == F.best_threshold(scores, labels)


@pytest.mark.parametrize("labels", [[1.0, -1.0], torch.tensor([1.0, -1.0]), torch.tensor([1, -1], dtype=torch.int8)])
def test_labels_may_be_whole_numbers_of_any_type(labels: Any) -> None:
    scores = [[2.0, 1.0], [3.0]]
    assert F.best_threshold(scores, labels) == F.best_threshold(scores, [1, -1])
    assert F.step_f1_at(scores, labels, 1.5) == F.step_f1_at(scores, [1, -1], 1.5)


def test_what_is_refused() -> None:
    for label in (0.5, float("nan")):
        with pytest.raises(ValueError, match=f"solution 0: label {label} with 2 steps"):
            F.best_threshold([[2.0, 1.0]], [label])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="no solutions"):
        F.best_threshold([], [])
    with pytest.raises(ValueError, match="2 solutions for 1 labels"):
        F.best_threshold([[1.0], [2.0]], [0])
    with pytest.raises(ValueError, match="solution 1: label 2 with 2 steps"):
        F.step_f1_at([[1.0], [2.0, 1.0]], [0, 2], 0.5)
    with pytest.raises(ValueError, match="solution 0: label -2"):
        F.best_threshold([[1.0]], [-2])
    with pytest.raises(ValueError, match="solution 1: step 1 has score nan"):
        F.best_threshold([[1.0], [2.0, float("nan")]], [0, 0])
