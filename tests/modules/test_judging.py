"""What a test run hands to its metrics: of each response the last value, of each step its score."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ipvrm_lightning.modules.judging import Judge
from ipvrm_lightning.types import TrajectoryBatch

#: Scores and logits of responses of three tokens and of two, each of two steps.
SCORES = torch.tensor([[0.1, -0.2, 0.4], [-0.3, 0.5, 0.0]], dtype=torch.float64)
LOGITS = torch.tensor([[1.0, 2.0, 3.0], [-4.0, -5.0, 9.0]])
MASK = torch.tensor([[True, True, True], [True, True, False]])
STEPS = torch.tensor([[0, 0, 1], [0, 1, -1]])


def batch_of(**known: Any) -> TrajectoryBatch:
    starts = torch.tensor([2, 1])
    return TrajectoryBatch(torch.zeros(2, 5).long(), starts + MASK.sum(1), starts, torch.arange(2), **known)


def test_a_solution_is_told_by_its_last_value_and_the_scores_of_its_steps() -> None:
    judge, batch = Judge(), batch_of(step_ids=STEPS, step_labels=torch.tensor([-1, 1]))
    known = {"subset": "s", "step_lengths": [2, 3]}
    records = [
        {"id": "a", "problem": "p", "final_answer_correct": True, "shared_problem": "other", **known},
        {"id": "b", "problem": "q", **known},
    ]
    judge.update(SCORES, LOGITS, MASK, batch, records, beta=10.0)
    first, second = judge.solutions
    assert (first.final_value, second.final_value) == (3.0, -5.0)
    assert first.step_scores["step_sum"] == pytest.approx([-1.0, 4.0])
    assert second.step_scores["step_sum"] == pytest.approx([-3.0, 5.0])
    assert second.step_scores["prefix_mean"] == pytest.approx([-3.0, 1.0])
    assert [(one.id, one.problem, one.label) for one in (first, second)] == [("a", "p", -1), ("b", "q", 1)]
    assert (first.final_answer_correct, second.final_answer_correct) == (True, None)
    assert (first.shared_problem, second.shared_problem) == ("other", None)


@pytest.mark.parametrize("with_steps", [False, True])
def test_a_rollout_is_ranked_by_its_last_value_and_by_the_sums_of_its_steps(
    with_steps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, given = Judge(), []
    monkeypatch.setattr(judge.best_of_n, "update", lambda *values: given.append(values))
    outcomes, prompts = torch.tensor([1.0, 0.0]), [{"prompt": "p", "answer": "4"}, {"prompt": "p"}]
    batch = batch_of(outcomes=outcomes, step_ids=STEPS if with_steps else None)
    judge.update(SCORES, LOGITS, MASK, batch, prompts, beta=10.0)
    ((ways, *rest),) = given
    expected = {"final_value": [3.0, -5.0]}
    if with_steps:
        expected |= {"min_step": [-1.0, -3.0], "mean_step": [1.5, 1.0]}
    assert {name: [round(value, 9) for value in values.tolist()] for name, values in ways.items()} == expected
    assert rest == [outcomes, ["p", "p"], ["4", None]]
    assert judge.fed == {"best_of_n", "calibration"}
    judge.reset()
    assert not judge.fed
