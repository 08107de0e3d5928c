from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

import pytest
import torch

from ipvrm_lightning.metrics import BestOfN, BestOfNReport, report_to_json, rollout_scores

SCORERS = ("final_value", "min_step", "mean_step")


def rollouts(prompts: int, each: int, seed: int = 0) -> list[dict[str, Any]]:
    source = random.Random(seed)
    rows = []
    for prompt in range(prompts):
        for _ in range(each):
            outcome = int(source.random() < 0.4)
            scores = {name: source.gauss(0.5 * outcome, 1) for name in SCORERS}
            answer = "right" if outcome else source.choice(["x", "y"])
            rows.append({"prompt": f"p{prompt}", "outcome": outcome, "answer": answer, "scores": scores})
    return rows


def feed(metric: BestOfN, rows: list[dict[str, Any]]) -> None:
    metric.update(
        {name: torch.tensor([row["scores"][name] for row in rows]).double() for name in SCORERS},
        torch.tensor([row["outcome"] for row in rows]),
        [row["prompt"] for row in rows],
        [row["answer"] for row in rows],
    )


def judge(rows: list[dict[str, Any]], **settings: Any) -> BestOfNReport:
    metric = BestOfN(**settings)
    feed(metric, rows)
    report = metric.compute()
    assert isinstance(report, BestOfNReport)
    return report


def test_accuracies_are_means_over_all_choices_of_n() -> None:
    rows = rollouts(3, 5)
    report = judge(rows, sizes=(1, 2, 3, 5))
    groups = [rows[start : start + 5] for start in range(0, 15, 5)]
    for n in (1, 2, 3, 5):
        by_way: dict[str, list[float]] = {name: [] for name in (*SCORERS, "oracle")}
        for group in groups:
            choices = list(itertools.combinations(group, n))
            for name in SCORERS:
                best = [max(choice, key=lambda row: row["scores"][name])["outcome"] for choice in choices]
                by_way[name].append(sum(best) / len(best))
            by_way["oracle"].append(sum(any(row["outcome"] for row in choice) for choice in choices) / len(choices))
        for way, values in by_way.items():
            assert report.accuracy[way][n].accuracy == pytest.approx(sum(values) / 3)
        assert report.accuracy["pass@1"][n].accuracy == pytest.approx(sum(row["outcome"] for row in rows) / 15)


def test_majority_of_all_rollouts_shares_ties() -> None:
    report = judge(rollouts(4, 6), sizes=(6,))
    expected = []
    rows = rollouts(4, 6)
    for start in range(0, 24, 6):
        votes = Counter(row["answer"] for row in rows[start : start + 6])
        leaders = [answer for answer, count in votes.items() if count == max(votes.values())]
        expected.append(leaders.count("right") / len(leaders))
    assert report.accuracy["majority vote"][6].accuracy == pytest.approx(sum(expected) / 4)


def test_majority_of_fewer_is_near_its_mean_over_all_choices() -> None:
    rows = rollouts(1, 6)
    exact = []
    for choice in itertools.combinations(rows, 3):
        votes = Counter(row["answer"] for row in choice)
        leaders = [answer for answer, count in votes.items() if count == max(votes.values())]
        exact.append(leaders.count("right") / len(leaders))
    found = judge(rows, sizes=(3,), vote_draws=4000).accuracy["majority vote"][3].accuracy
    assert found == pytest.approx(sum(exact) / len(exact), abs=0.03)


def test_order_and_splits_change_nothing() -> None:
    rows = rollouts(10, 4)
    shuffled = rows[:]
    random.Random(3).shuffle(shuffled)
    first, second = BestOfN(), BestOfN()
    feed(first, shuffled[:13])
    feed(second, shuffled[13:])
    first.merge_state(second)
    assert report_to_json(first.compute()) == report_to_json(judge(rows))


def test_prompts_with_too_few_rollouts_are_left_out_and_counted() -> None:
    rows = rollouts(2, 4)[:6]
    report = judge(rows, sizes=(2, 4, 8))
    assert report.prompts_at == {2: 2, 4: 1, 8: 0}
    assert report.accuracy["oracle"][8].accuracy != report.accuracy["oracle"][8].accuracy
    assert report.accuracy["pass@1"][4].accuracy == pytest.approx(sum(row["outcome"] for row in rows[:4]) / 4)


def test_without_answers_there_is_no_vote() -> None:
    metric = BestOfN(sizes=(2,))
    metric.update({"final_value": torch.tensor([1.0, 0.0])}, torch.tensor([1, 0]), torch.tensor([7, 7]))
    report = metric.compute()
    assert report.accuracy["final_value"][2].accuracy == 1.0
    assert report.accuracy["majority vote"][2].accuracy != report.accuracy["majority vote"][2].accuracy


def test_a_prompt_without_answers_is_left_to_luck_and_spoils_no_vote() -> None:
    rows = rollouts(4, 6)
    for row in rows[:6]:
        row["answer"] = None
    report = judge(rows, sizes=(3, 6), vote_draws=4000)
    lucky = sum(row["outcome"] for row in rows[:6]) / 6
    others = judge(rows[6:], sizes=(3, 6), vote_draws=4000).accuracy["majority vote"]
    for n, result in report.accuracy["majority vote"].items():
        assert result.accuracy == pytest.approx((lucky + 3 * others[n].accuracy) / 4, abs=0.01)
        assert result.interval.low <= result.accuracy <= result.interval.high


def test_usual_scores_by_hand() -> None:
    scores = rollout_scores(torch.tensor([0.5, -1.0], requires_grad=True), [[1.0, 3.0], [-2.0]])
    assert all(row.dtype == torch.float64 and not row.requires_grad for row in scores.values())
    assert {name: row.tolist() for name, row in scores.items()} == {
        "final_value": [0.5, -1.0],
        "min_step": [1.0, -2.0],
        "mean_step": [2.0, -2.0],
    }


def test_bad_input_is_named() -> None:
    metric = BestOfN()
    with pytest.raises(ValueError, match="outcomes must be 0 or 1, found 2"):
        metric.update({"final_value": torch.tensor([1.0])}, torch.tensor([2]), ["p"])
    with pytest.raises(ValueError, match=r"scores\.final_value: expected finite"):
        metric.update({"final_value": torch.tensor([float("inf")])}, torch.tensor([1]), ["p"])
    with pytest.raises(ValueError, match="final_value: expected one for each of 2"):
        metric.update({"final_value": torch.tensor([1.0])}, torch.tensor([1, 0]), ["p", "q"])
    with pytest.raises(ValueError, match="no rollouts"):
        metric.compute()
