from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import numpy as np
import pytest
import torch

from ipvrm_lightning.functional import StepF1Result, best_threshold, first_error
from ipvrm_lightning.metrics import JudgeSettings, StepF1, StepF1Report, judge_solutions, recompute, report_to_json
from ipvrm_lightning.metrics.resampling import assign_folds, bootstrap_weights, seed_of
from ipvrm_lightning.metrics.score_file import write_scores
from ipvrm_lightning.metrics.step_f1_judge import thresholds_of_solutions
from ipvrm_lightning.types import ScoredSolution

from .conftest import PROTOCOLS

Make = Callable[..., list[ScoredSolution]]


def judge(solutions: list[ScoredSolution], **settings: Any) -> StepF1Report:
    metric = StepF1(**settings)
    metric.update(solutions)
    report = metric.compute()
    assert isinstance(report, StepF1Report)
    return report


def solution(name: str, label: int, scores: list[float], *, problem: str, **known: Any) -> ScoredSolution:
    return ScoredSolution(
        id=name,
        subset="only",
        problem=problem,
        label=label,
        step_scores={"step_sum": scores},
        step_lengths=known.pop("lengths", [1] * len(scores)),
        **known,
    )


def test_settings_are_those_it_is_given_and_those_that_judging_a_file_has() -> None:
    assert StepF1().settings == JudgeSettings()
    given = {"folds": 3, "resamples": 7, "confidence": 0.8, "random_seeds": 4, "seed": 9, "fixed_threshold": 0.1}
    assert StepF1(**given).settings == JudgeSettings(**given)


def test_thresholds_of_solutions_are_those_they_were_judged_by(make_solutions: Make) -> None:
    solutions = sorted(make_solutions(40, subsets=("only",)), key=lambda one: one.id)
    settings = JudgeSettings(resamples=2, random_seeds=2, fixed_threshold={"step_sum": -0.25})
    chosen = thresholds_of_solutions("only", solutions, settings)
    report = judge_solutions(solutions, settings).subsets["only"]
    for protocol, results in report.protocols.items():
        assert set(chosen[protocol]) == set(results)
        for origin, result in results.items():
            thresholds = chosen[protocol][origin]
            assert len(thresholds) == 40 and sum(thresholds) / 40 == pytest.approx(result.threshold)
            hits: dict[tuple[bool, bool | None], list[bool]] = {}
            for one, threshold in zip(solutions, thresholds, strict=True):
                found = first_error(one.step_scores[protocol], threshold) == one.label
                hits.setdefault((one.label >= 0, one.final_answer_correct), []).append(found)
            passed, lucky, others = hits[False, True], hits[True, True], hits[True, False]
            assert min(map(len, (passed, lucky, others))) > 1
            assert result.correct_accuracy == pytest.approx(sum(passed) / len(passed))
            assert result.right_answer_accuracy == pytest.approx(sum(lucky) / len(lucky))
            assert result.error_accuracy == pytest.approx(sum(lucky + others) / len(lucky + others))
    assert chosen["step_sum"]["fixed"] == [-0.25] * 40
    assert report.random.oracle_std > 0 and report.random.cross_fitted_std > 0


def test_intervals_are_of_problems_drawn_anew(make_solutions: Make) -> None:
    """Percentiles, mirrored ones for the best threshold; what was fitted to the data is fitted to each resample."""
    solutions = sorted(make_solutions(60, subsets=("only",)), key=lambda one: one.id)
    settings = JudgeSettings(resamples=20, random_seeds=2, confidence=0.8, fixed_threshold=-0.25)
    results = judge_solutions(solutions, settings).subsets["only"].protocols["step_sum"]
    scores, labels = [one.step_scores["step_sum"] for one in solutions], [one.label for one in solutions]
    problems, seed = [one.problem for one in solutions], seed_of(("only",), 0)
    folds = assign_folds(problems, folds=settings.folds, seed=seed).tolist()
    draws: dict[str, list[float]] = {origin: [] for origin in results}
    for resample in bootstrap_weights(problems, resamples=20, seed=seed).long().tolist():
        rows = [row for row, times in enumerate(resample) for _ in range(times)]

        def best(rows: list[int]) -> StepF1Result:
            return best_threshold([scores[row] for row in rows], [labels[row] for row in rows])

        draws["oracle"].append(best(rows).f1)
        of_others = {fold: best([row for row in rows if folds[row] != fold]).threshold for fold in set(folds)}
        for origin, chosen in (("cross_fitted", of_others), ("fixed", dict.fromkeys(of_others, -0.25))):
            hits = [(labels[row] < 0, first_error(scores[row], chosen[folds[row]]) == labels[row]) for row in rows]
            passed, found = ([hit for right, hit in hits if right == wanted] for wanted in (True, False))
            draws[origin].append(harmonic_mean([sum(passed) / len(passed), sum(found) / len(found)]))
    for origin, result in results.items():
        low, high = np.quantile(draws[origin], [0.1, 0.9])
        expected = (2 * result.f1 - high, 2 * result.f1 - low) if origin == "oracle" else (low, high)
        assert 0 < low < high < 1 and result.f1_interval == pytest.approx(expected)


def test_a_case_worked_by_hand() -> None:
    # right for thresholds in: a (-inf, 1], b (-inf, 3], c (0, 2], d (4, inf): of one score, first is wrong
    solutions = [
        solution("a", -1, [1.0, 5.0], problem="p"),
        solution("b", -1, [3.0], problem="q"),
        solution("c", 1, [2.0, 0.0], problem="r", final_answer_correct=True),
        solution("d", 0, [4.0], problem="s", final_answer_correct=False),
    ]
    report = judge(solutions, fixed_threshold=2.5)
    oracle = report.subsets["only"].protocols["step_sum"]["oracle"]
    # in (0, 1] a, b and c are right: accuracies 1 and 1/2
    assert 0 < oracle.threshold <= 1
    assert (oracle.correct_accuracy, oracle.error_accuracy) == (1.0, 0.5)
    assert oracle.f1 == pytest.approx(2 / 3)
    assert oracle.right_answer_accuracy == 1.0
    fixed = report.subsets["only"].protocols["step_sum"]["fixed"]
    # at 2.5 b alone is right
    assert (fixed.threshold, fixed.correct_accuracy, fixed.error_accuracy, fixed.f1) == (2.5, 0.5, 0.0, 0.0)
    assert fixed.right_answer_accuracy == 0.0
    assert report.subsets["only"].right_answer_with_error == 1
    assert report.subsets["only"].with_error == 2


def test_a_subset_is_not_hidden_by_the_average_of_all(make_solutions: Make) -> None:
    with pytest.raises(ValueError, match="a subset is named 'average'"):
        judge(make_solutions(12, subsets=("a", "average")))
    assert set(judge(make_solutions(12, subsets=("average",))).subsets) == {"average"}


def test_cross_fitting_with_one_problem_per_fold_by_hand() -> None:
    # leaving out one of three problems, the other two alone decide
    solutions = [
        solution("a", -1, [0.0], problem="p"),
        solution("a2", 0, [-1.0], problem="p"),
        solution("b", -1, [10.0], problem="q"),
        solution("b2", 0, [9.0], problem="q"),
        solution("c", -1, [20.0], problem="r"),
        solution("c2", 0, [19.0], problem="r"),
    ]
    # Thresholds from the others, the lowest optimum, midway between its ends. Without p: right are b for t <= 10,
    # b2 for t > 9, c for t <= 20, c2 for t > 19. F1 by t in (9, 10]: correct 1, error 1/2 -> 2/3; (10, 19]: 1/2, 1/2;
    # (19, 20]: 1/2, 1 -> 2/3. So 9.5: p's error is found (-1 < 9.5), its right one is not (0 < 9.5).
    # Without q: (-1, 0] gives 2/3 first, so -0.5: b right, b2 not found. Without r: -0.5: c right, c2 not found.
    result = judge(solutions, folds=3).subsets["only"].protocols["step_sum"]["cross_fitted"]
    assert result.correct_accuracy == pytest.approx(2 / 3)
    assert result.error_accuracy == pytest.approx(1 / 3)
    assert result.f1 == pytest.approx(4 / 9)
    assert result.threshold == pytest.approx((9.5 - 0.5 - 0.5) / 3)


def test_a_single_problem_has_no_cross_fitted_number() -> None:
    report = judge([solution("a", -1, [1.0], problem="p"), solution("b", 0, [0.0], problem="p")])
    results = report.average.protocols["step_sum"]
    assert results["oracle"].f1 == 1.0
    assert results["cross_fitted"].f1 != results["cross_fitted"].f1
    assert results["cross_fitted"].f1_interval.low != results["cross_fitted"].f1_interval.low
    assert report.average.random.cross_fitted_mean != report.average.random.cross_fitted_mean


def test_a_solution_has_no_hand_in_the_threshold_that_judges_it(make_solutions: Make) -> None:
    solutions = make_solutions(24, subsets=("a",))
    settings = JudgeSettings()
    before = thresholds_of_solutions("a", solutions, settings)
    for number, solution in enumerate(solutions):
        scores = {name: [value / 3 - 1 for value in row] for name, row in solution.step_scores.items()}
        others = [*solutions[:number], replace(solution, step_scores=scores), *solutions[number + 1 :]]
        after = thresholds_of_solutions("a", others, settings)
        for protocol in scores:
            assert after[protocol]["cross_fitted"][number] == before[protocol]["cross_fitted"][number]


def test_oracle_is_best_threshold_of_every_subset_and_protocol(make_solutions: Make) -> None:
    solutions = make_solutions(150)
    report = judge(solutions)
    for name, subset in report.subsets.items():
        part = [one for one in solutions if one.subset == name]
        for protocol in PROTOCOLS:
            exact = best_threshold([one.step_scores[protocol] for one in part], [one.label for one in part])
            found = subset.protocols[protocol]["oracle"]
            assert found.f1 == pytest.approx(exact.f1, abs=1e-15)
            assert found.correct_accuracy == pytest.approx(exact.correct_accuracy, abs=1e-15)
            assert found.error_accuracy == pytest.approx(exact.error_accuracy, abs=1e-15)
    for protocol in PROTOCOLS:
        mean = sum(one.protocols[protocol]["oracle"].f1 for one in report.subsets.values()) / 2
        assert report.average.protocols[protocol]["oracle"].f1 == pytest.approx(mean)


def test_cross_fitted_f1_on_pure_noise_is_no_better_than_oracle_and_intervals_cover(make_solutions: Make) -> None:
    report = judge(make_solutions(400))
    for subset in report.subsets.values():
        assert subset.random.cross_fitted_mean < subset.random.oracle_mean
        for results in subset.protocols.values():
            assert results["cross_fitted"].f1 <= results["oracle"].f1
            interval = results["cross_fitted"].f1_interval
            assert interval.low < results["cross_fitted"].f1 < interval.high


def test_order_and_number_of_updates_change_nothing(make_solutions: Make) -> None:
    solutions = make_solutions(120)
    shuffled = solutions[:]
    random.Random(1).shuffle(shuffled)
    metric = StepF1()
    for start in range(0, len(shuffled), 7):
        metric.update(shuffled[start : start + 7])
    # JSON compares NaN as equal
    assert report_to_json(metric.compute()) == report_to_json(judge(solutions))


def test_another_subset_beside_it_changes_no_number_of_a_subset(make_solutions: Make) -> None:
    solutions = make_solutions(120)
    alone = judge([one for one in solutions if one.subset == "alpha"])
    assert alone.subsets["alpha"] == judge(solutions).subsets["alpha"]


@pytest.mark.parametrize("renamed", [False, True])
def test_subsets_of_the_same_problems_do_not_narrow_the_interval_of_their_average(
    renamed: bool, make_solutions: Make
) -> None:
    # four copies say no more than one: the mean of equal numbers varies as each of them does
    copies = [
        replace(one, subset=name, problem=f"{name} {one.problem}", shared_problem=one.problem)
        if renamed
        else replace(one, subset=name)
        for one in make_solutions(200, subsets=("a",))
        for name in "abcd"
    ]
    report = judge(copies, resamples=2000, random_seeds=2)
    assert report.average.problems == report.subsets["a"].problems == 40
    for origin in ("oracle", "cross_fitted"):
        narrow, whole = (one.protocols["step_sum"][origin].f1_interval for one in (report.average, report.subsets["a"]))
        assert narrow.high - narrow.low == pytest.approx(whole.high - whole.low, rel=0.15)


def test_another_name_for_a_problem_moves_no_fold(make_solutions: Make) -> None:
    solutions = make_solutions(120)
    named = [replace(one, shared_problem=f"the {one.problem}") for one in solutions]
    for before, after in zip(judge(solutions).subsets.values(), judge(named).subsets.values(), strict=True):
        for protocol in PROTOCOLS:
            old, new = before.protocols[protocol]["cross_fitted"], after.protocols[protocol]["cross_fitted"]
            assert (new.f1, new.threshold) == (old.f1, old.threshold)


def test_the_oracle_interval_takes_off_what_the_best_of_many_thresholds_gains_by_chance(make_solutions: Make) -> None:
    solutions = make_solutions(200, subsets=("only",))
    weights = bootstrap_weights([one.problem for one in solutions], resamples=200, seed=seed_of(("only",), 0)).long()
    labels = [one.label for one in solutions]
    draws = []
    for row in weights.tolist():
        chosen = [index for index, count in enumerate(row) for _ in range(count)]
        found = best_threshold([solutions[i].step_scores["step_sum"] for i in chosen], [labels[i] for i in chosen])
        draws.append(found.f1)
    report = judge(solutions)
    oracle = report.subsets["only"].protocols["step_sum"]["oracle"]
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.quantile(torch.tensor(draws, dtype=torch.float64), ends).tolist()
    assert oracle.f1_interval == pytest.approx((2 * oracle.f1 - high, 2 * oracle.f1 - low), abs=1e-9)
    assert report.average.protocols["step_sum"]["oracle"].f1_interval == oracle.f1_interval


def test_states_of_two_metrics_merged_equal_one_metric(make_solutions: Make) -> None:
    solutions = make_solutions(60)
    first, second = StepF1(), StepF1()
    first.update(solutions[1::2])
    second.update(solutions[::2])
    first.merge_state(second)
    assert report_to_json(first.compute()) == report_to_json(judge(solutions))


def test_recompute_from_the_file_equals_compute(tmp_path: Path, make_solutions: Make) -> None:
    solutions = make_solutions(90)
    path = write_scores(tmp_path / "scores.jsonl", solutions)
    assert report_to_json(recompute(path)) == report_to_json(judge(solutions))


def test_reset_forgets(make_solutions: Make) -> None:
    metric = StepF1()
    metric.update(make_solutions(10))
    metric.reset()
    with pytest.raises(ValueError, match="no scored solutions"):
        metric.compute()


def test_bad_input_is_named() -> None:
    good = solution("a", -1, [1.0], problem="p")
    with pytest.raises(ValueError, match="'a' occurs twice"):
        judge([good, good])
    with pytest.raises(ValueError, match=r"solution 'x': step_scores\.step_sum: .*nan at step 1"):
        judge([solution("x", 0, [1.0, float("nan")], problem="p")])
    with pytest.raises(ValueError, match=r"solution 'x': label: .* found 2"):
        judge([solution("x", 2, [1.0, 0.0], problem="p")])
    with pytest.raises(ValueError, match="found \\['other'\\]"):
        judge([good], fixed_threshold={"other": 0.0})
    with pytest.raises(ValueError, match="folds: expected at least 2"):
        StepF1(folds=1)


def benchmark_solutions(shared_dir: Path) -> list[ScoredSolution]:
    import json

    solutions = []
    draw = random.Random(0)
    for subset in ("gsm8k", "math", "olympiadbench"):
        for row in json.loads((shared_dir / "data" / "processbench" / f"{subset}.json").read_text()):
            solutions.append(
                ScoredSolution(
                    id=row["id"],
                    subset=subset,
                    problem=row["problem"],
                    label=row["label"],
                    step_scores={protocol: [draw.random() for _ in row["steps"]] for protocol in PROTOCOLS},
                    step_lengths=[len(step) for step in row["steps"]],
                    final_answer_correct=row["final_answer_correct"],
                )
            )
    return solutions


def test_floors_on_processbench(shared_dir: Path) -> None:
    solutions = benchmark_solutions(shared_dir)
    report = judge_solutions(solutions, JudgeSettings())
    longest = {name: round(100 * one.longest_step["oracle"].f1, 1) for name, one in report.subsets.items()}
    assert longest == {"gsm8k": 36.2, "math": 28.1, "olympiadbench": 30.1}
    for name, published in {"gsm8k": 21.4, "math": 19.4, "olympiadbench": 15.5}.items():
        floor = report.subsets[name].random
        assert abs(100 * floor.oracle_mean - published) < 3 * 100 * floor.oracle_std
    # wrong steps though the final answer is right, counted in the files
    counts = {name: one.right_answer_with_error for name, one in report.subsets.items()}
    assert counts == {"gsm8k": 7, "math": 94, "olympiadbench": 161}
