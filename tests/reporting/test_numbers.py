"""The numbers that pictures and browser show, against the definitions."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from markupsafe import Markup

from ipvrm_lightning.functional import step_f1_at
from ipvrm_lightning.metrics import judge_solutions, plain_report, read_scores
from ipvrm_lightning.metrics.calibration import CalibrationReport, CalibrationResult, ReliabilityBin
from ipvrm_lightning.metrics.step_f1_report import StepF1Report
from ipvrm_lightning.metrics.token_file import TokenRecord, read_tokens
from ipvrm_lightning.reporting import figures, series
from ipvrm_lightning.reporting.browser import browser_data
from ipvrm_lightning.reporting.results import rebuild_results
from ipvrm_lightning.types import ScoredSolution
from tests.reporting.runs import SETTINGS

TEST = "20260101-110000-test"


@pytest.fixture(scope="module")
def solutions(runs: Path) -> list[ScoredSolution]:
    return read_scores(runs / TEST / "scores.jsonl")


def test_a_results_file_reads_back_as_the_reports_it_was_made_of(runs: Path, solutions: list[ScoredSolution]) -> None:
    back = rebuild_results(runs / TEST / "results.json").reports
    expected = judge_solutions(solutions, SETTINGS)
    # as text, where unknown numbers are equal
    assert str(back["step_f1"]) == str(expected)
    assert list(back["best_of_n"].prompts_at) == [2]  # type: ignore[attr-defined]


def test_the_curve_is_the_f1_at_its_thresholds(
    solutions: list[ScoredSolution], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = judge_solutions(solutions, SETTINGS)
    curves = series.threshold_curves(solutions, report, "step_sum")
    assert [curve.subset for curve in curves] == list(report.subsets)
    for curve in curves:
        own = [one for one in solutions if one.subset == curve.subset]
        scores, labels = [one.step_scores["step_sum"] for one in own], [one.label for one in own]
        assert curve.thresholds == sorted(curve.thresholds)
        for threshold, f1 in zip(curve.thresholds, curve.f1, strict=True):
            assert f1 == pytest.approx(step_f1_at(scores, labels, threshold).f1, abs=1e-12)
        at, f1 = curve.chosen["oracle"]
        assert f1 == pytest.approx(max(curve.f1)) and at in curve.thresholds
        axes: list[Any] = []
        monkeypatch.setattr(figures, "to_svg", lambda figure, name, axes=axes: axes.extend(figure.axes) or Markup())
        figures.threshold_picture("a", "step_sum", [curve], report.average)
        line, *marks = axes[0].lines
        known = dict(zip(curve.thresholds, curve.f1, strict=True))
        for threshold, percent in line.get_xydata():
            assert percent == pytest.approx(100 * known[threshold])
        assert marks[0].get_xydata()[0] == pytest.approx([at, 100 * f1])
        floor = report.average.longest_step["oracle"].f1
        assert list(marks[-1].get_ydata()) == pytest.approx([100 * floor] * 2)


def test_verdicts_are_those_that_the_tables_count(runs: Path, solutions: list[ScoredSolution]) -> None:
    report = judge_solutions(solutions, SETTINGS)
    data = browser_data(solutions, read_tokens(runs / TEST / "tokens.jsonl"), SETTINGS, most=1000)
    assert [name for name, _ in data["origins"]] == ["cross_fitted", "oracle"]
    assert len(data["solutions"]) == len(solutions)
    for subset, part in report.subsets.items():
        own = [one for one in data["solutions"] if one["subset"] == subset]
        for protocol, by_origin in part.protocols.items():
            for origin, result in by_origin.items():
                hits = [one["found"][protocol][origin][0] == one["label"] for one in own]
                wrong = [hit for hit, one in zip(hits, own, strict=True) if one["label"] >= 0]
                right = [hit for hit, one in zip(hits, own, strict=True) if one["label"] < 0]
                assert sum(wrong) / len(wrong) == pytest.approx(result.error_accuracy)
                assert sum(right) / len(right) == pytest.approx(result.correct_accuracy)


@pytest.mark.parametrize("fixed", [0.25, {"step_mean": -0.5}])
def test_fixed_thresholds_are_shown_where_every_protocol_has_one(
    fixed: Any, solutions: list[ScoredSolution], tmp_path: Path
) -> None:
    settings = replace(SETTINGS, fixed_threshold=fixed)
    report = judge_solutions(solutions, settings)
    (tmp_path / "results.json").write_text(json.dumps({"reports": {"step_f1": plain_report(report)}}))
    back = rebuild_results(tmp_path / "results.json").reports["step_f1"]
    assert isinstance(back, StepF1Report) and back.settings == settings and str(back) == str(report)
    data = browser_data(solutions, [], settings, most=3)
    everywhere = [["fixed", "fixed"]] if isinstance(fixed, float) else []
    assert data["origins"] == [["cross_fitted", "cross-fitted"], ["oracle", "oracle"], *everywhere]
    for one in data["solutions"]:
        scores = {solution.id: solution.step_scores for solution in solutions}[one["id"]]
        for protocol in scores if isinstance(fixed, float) else fixed:
            at = fixed if isinstance(fixed, float) else fixed[protocol]
            low = [step for step, score in enumerate(scores[protocol]) if score < at]
            assert one["found"][protocol]["fixed"] == [low[0] if low else -1, at]


def test_the_browser_shows_the_numbers_of_the_files(runs: Path, solutions: list[ScoredSolution]) -> None:
    records = {one.id: one for one in read_tokens(runs / TEST / "tokens.jsonl")}
    scored = {one.id: one for one in solutions}
    data = browser_data(solutions, list(records.values()), SETTINGS, most=1000)
    for entry in data["solutions"]:
        record, one = records[entry["id"]], scored[entry["id"]]
        assert (entry["label"], entry["steps"], entry["lengths"]) == (one.label, record.step_ids, one.step_lengths)
        assert entry["answer"] == one.final_answer_correct
        assert entry["advantages"] == pytest.approx(record.td_advantages, rel=0.006)
        assert entry["values"] == pytest.approx(record.values, rel=0.006)
        for protocol, scores in one.step_scores.items():
            assert entry["scores"][protocol] == pytest.approx(scores, rel=6e-4)
    assert data["protocols"] == ["step_sum", "step_mean"]
    sizes = [abs(value) for record in records.values() for value in record.td_advantages]
    assert sum(size < data["scale"] for size in sizes) / len(sizes) == pytest.approx(0.98, abs=0.005)


def test_pictures_draw_what_they_are_given_in_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "to_svg", lambda figure, name: drawn.append(figure.axes) or Markup())

    def points(axis: Any, line: int = 0) -> list[list[float]]:
        return [[round(float(value), 9) for value in point] for point in axis.lines[line].get_xydata()]

    figures.reliability_picture("a", "", [series.ReliabilityLine("all", [0.1, 0.5, 0.9], [0.2, 0.0, 0.7], [3, 0, 1])])
    above, below = drawn.pop()
    assert points(above, 1) == [[10, 20], [90, 70]]  # after the diagonal, without the bin that is empty
    assert [bar.get_height() for bar in below.patches] == [75, 0, 25]
    spreads = [series.Spread(0.5, 0.1, 0.2, 0.3, 4), series.Spread(1.0, 0.4, 0.5, 0.9, 4)]
    figures.position_picture({"all": spreads})
    (axis,) = drawn.pop()
    band = axis.collections[0].get_paths()[0].vertices
    assert points(axis) == [[50, 20], [100, 50]] and (band[:, 1].min(), band[:, 1].max()) == pytest.approx((10, 90))
    figures.error_picture(spreads)
    (axis,) = drawn.pop()
    assert points(axis, 1) == [[0.5, 20], [1, 50]]  # after the line at the wrong step
    figures.curve_picture("a", "", {"train/loss": ([0.0, 5.0], [3.0, -2.0])})
    (axis,) = drawn.pop()
    assert points(axis) == [[0, 3], [5, -2]]


def test_prefixes_of_the_first_and_the_last_stretch_have_lines_of_their_own() -> None:
    def part(start: float, stop: float, tokens: int) -> CalibrationResult:
        filled = ReliabilityBin(0.5, 1.0, tokens, 0.7, tokens / 10)
        return CalibrationResult(start, stop, tokens, 0.0, 0.0, 0.0, [ReliabilityBin(0.0, 0.5, 0, 0.0, 0.0), filled])

    parts = [part(0.0, 0.25, 1), part(0.25, 0.75, 2), part(0.75, 1.0, 3)]
    report = CalibrationReport(4, 2, part(0.0, 1.0, 6), parts, 0.0, 0.0, 0.0)
    said = [0.0, 0.7]
    assert figures.lines_of_calibration(report) == [
        series.ReliabilityLine("all prefixes", said, [0.0, 0.6], [0, 6]),
        series.ReliabilityLine("first 25 %", said, [0.0, 0.1], [0, 1]),
        series.ReliabilityLine("last 25 %", said, [0.0, 0.3], [0, 3]),
    ]
    alone = replace(report, positions=[report.overall])
    assert [line.name for line in figures.lines_of_calibration(alone)] == ["all prefixes"]


def test_tokens_come_before_solutions_without(runs: Path, solutions: list[ScoredSolution]) -> None:
    records = read_tokens(runs / TEST / "tokens.jsonl")[:5]
    data = browser_data(solutions, records, SETTINGS, most=8)
    assert sum("tokens" in one for one in data["solutions"]) == 5


def record(label: int, values: list[float], step_ids: list[int]) -> TokenRecord:
    return TokenRecord("a", "s", label, "p", ["x"] * len(values), step_ids, [0.0] * len(values), values)


def test_values_by_hand() -> None:
    def logit(share: float) -> float:
        return math.log(share / (1 - share))

    first = record(1, [logit(0.5), logit(0.6), logit(0.2), logit(0.1)], [0, 0, 1, -1])
    second = record(0, [logit(0.4), logit(0.8)], [0, 1])
    around = {one.place: one for one in series.values_around_error([first, second, record(-1, [0.0], [0])])}
    assert {place: one.count for place, one in around.items()} == {-1.0: 1, 0.0: 2, 1.0: 1}
    assert around[-1.0].middle == pytest.approx(0.6)
    assert around[0.0].middle == pytest.approx((0.2 + 0.4) / 2)
    assert around[0.0].low == pytest.approx(0.25) and around[0.0].high == pytest.approx(0.35)
    shares = [0.9, 0.2, 0.4, 0.3, 0.8, 0.1]
    (spread,) = series.values_around_error([record(0, [logit(share)], [0]) for share in shares])
    quartiles = torch.tensor(shares).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    assert [spread.low, spread.middle, spread.high] == pytest.approx(quartiles)
    assert [one.place for one in series.values_around_error([second], reach=1)] == [0.0, 1.0]
    groups = series.values_by_position([first, second, record(-1, [logit(0.7)], [0])], parts=2)
    assert list(groups) == ["every step is right", "with a wrong step"]
    half, end = groups["with a wrong step"]
    assert (half.place, half.count, end.place, end.count) == (0.5, 2, 1.0, 2)
    assert half.middle == pytest.approx((0.6 + 0.4) / 2) and end.middle == pytest.approx((0.1 + 0.8) / 2)
    assert [(one.middle, one.count) for one in groups["every step is right"]] == [(pytest.approx(0.7), 1)] * 2
    (quarters,) = series.values_by_position([second], parts=4).values()  # more places than tokens
    assert [one.middle for one in quarters] == pytest.approx([0.4, 0.4, 0.4, 0.8])


def test_reliability_of_final_values_by_hand() -> None:
    def solution(value: float | None, right: bool | None) -> ScoredSolution:
        return ScoredSolution("a", "s", "p", -1, {}, [], right, value)

    known = [solution(2.0, True), solution(2.0, False), solution(-2.0, False)]
    line = series.reliability_of_finals([*known, solution(None, True), solution(2.0, None)], bins=2)
    assert line is not None and line.counts == [1, 2] and line.right == [0.0, 0.5]
    assert line.said == pytest.approx([1 / (1 + math.exp(2)), 1 / (1 + math.exp(-2))])
    assert series.reliability_of_finals([solution(None, None)]) is None


def test_a_line_that_is_still_being_written_is_no_part_of_a_curve(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    for torn in ("", "2", "2,0.2", "2,0.25,-", '2,"0.'):
        file.write_text(f"step,train/loss,train/lr\n0,0.5,1e-4\r\n1,0.4,\n{torn}")
        assert series.read_curves(file) == {"train/loss": ([0.0, 1.0], [0.5, 0.4]), "train/lr": ([0.0], [1e-4])}


def test_sigmoid_of_large_values_is_finite() -> None:
    draw = random.Random(0)
    for value in (-800.0, 800.0, *(draw.gauss(0, 5) for _ in range(20))):
        assert 0 <= series.probability(value) <= 1
        assert series.probability(value) + series.probability(-value) == pytest.approx(1)
