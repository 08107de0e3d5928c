from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from argparse import ArgumentError
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from ipvrm_lightning.metrics import (
    BestOfN,
    JudgeSettings,
    PrefixCalibration,
    PrefixTruth,
    Report,
    judge_solutions,
    print_report,
    write_scores,
)
from ipvrm_lightning.metrics.judge import main, parse_thresholds
from ipvrm_lightning.types import ScoredSolution

Make = Callable[..., list[ScoredSolution]]


def shown(report: Report, width: int = 120) -> str:
    text = io.StringIO()
    print_report(report, Console(file=text, width=width))
    return text.getvalue()


def test_every_number_is_whole_in_a_narrow_terminal(make_solutions: Make) -> None:
    names = ("alpha", "a benchmark of a long name")
    settings = JudgeSettings(fixed_threshold=-0.00123456, random_seeds=2)
    best = BestOfN(sizes=(1, 2))
    best.update({"final_value": torch.tensor([1.0, 0.0])}, torch.tensor([1, 0]), ["p", "p"])
    for report in (judge_solutions(make_solutions(60, subsets=names), settings), best.compute()):
        rows = [line.split("  ") for line in shown(report, 300).splitlines() if "Percent" not in line]
        numbers = [cell.strip() for row in rows for cell in row if re.fullmatch(r" *[-\[]?[0-9].*", cell)]
        assert len(numbers) > 5
        for width in (40, 60, 80):
            whole, narrow = (" ".join(shown(report, wide).split()) for wide in (300, width))
            assert "…" not in narrow
            assert [narrow.count(cell) for cell in numbers] == [whole.count(cell) for cell in numbers]
    assert max(map(len, shown(judge_solutions(make_solutions(60, subsets=names), settings), 80).splitlines())) <= 80


def test_every_step_f1_table_carries_its_floors_and_the_origin_of_thresholds(make_solutions: Make) -> None:
    report = judge_solutions(make_solutions(60, subsets=("alpha", "[b]")))
    tables = report.tables()
    # two subsets, the average, the summary
    assert len(tables) == 4
    for table in tables:
        text = io.StringIO()
        Console(file=text, width=120).print(table)
        assert "random scores (floor)" in text.getvalue()
        assert "longest step (floor)" in text.getvalue()
        assert "oracle" in text.getvalue() and "cross-fitted" in text.getvalue()
    text = shown(report)
    assert "[b]" in text
    assert "step[/b]" in shown(
        judge_solutions(
            [replace(one, step_scores={"step[/b]": one.step_scores["step_sum"]}) for one in make_solutions(9)]
        )
    )
    assert f"{100 * report.subsets['alpha'].protocols['step_sum']['oracle'].f1:.1f}" in text
    assert f"{100 * report.subsets['alpha'].longest_step['cross_fitted'].f1:.1f}" in text
    assert "nan" not in text


def test_the_other_reports_print_and_show_unknown_as_a_dash() -> None:
    best = BestOfN(sizes=(2, 4))
    best.update({"final_value": torch.tensor([1.0, 0.0])}, torch.tensor([1, 0]), ["p", "p"])
    text = shown(best.compute())
    assert "100.0" in text and "majority vote" in text and "50.0" in text and "nan" not in text
    calibration = PrefixCalibration()
    calibration.update(torch.zeros(2, 5), torch.ones(2, 5, dtype=torch.bool), torch.tensor([1.0, 1.0]))
    text = shown(calibration.compute())
    assert "20 to 40 %" in text and "0.25" in text and "nan" not in text
    truth = PrefixTruth()
    truth.update(torch.zeros(1, 2), torch.tensor([[0.5, 0.5]]))
    text = shown(truth.compute())
    assert "Spearman" in text and "nan" not in text


def test_the_command_prints_and_writes_json(
    tmp_path: Path, make_solutions: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_scores(tmp_path / "scores.jsonl", make_solutions(60))
    written = tmp_path / "report[v2].json"
    main([str(path.parent), "--threshold", "step_sum=0.25", "--json", str(written)])
    printed = capsys.readouterr().out
    assert "longest step (floor)" in printed and f"Report: {written}\n" in printed
    report = json.loads(written.read_text())
    protocols = report["subsets"]["alpha"]["protocols"]
    assert protocols["step_sum"]["fixed"]["threshold"] == 0.25
    assert "fixed" not in protocols["step_mean"]
    assert set(protocols["step_sum"]["oracle"]["f1_interval"]) == {"low", "high"}
    # the average has no threshold
    assert report["average"]["protocols"]["step_sum"]["oracle"]["threshold"] is None


def test_bad_input_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text("{}\n")
    for arguments, kind, message in (
        ([str(path)], ValueError, "scores.jsonl, line 1: id: missing"),
        ([str(tmp_path / "missing.jsonl")], FileNotFoundError, "missing.jsonl"),
        ([str(path), "--folds", "1"], ValueError, "folds: expected at least 2"),
        ([str(path), "--folds", "many"], ArgumentError, "argument --folds: invalid int value"),
        ([], ArgumentError, "required: scores"),
    ):
        with pytest.raises(kind, match=message):
            main(arguments)


def test_thresholds_as_typed() -> None:
    assert parse_thresholds([]) is None
    assert parse_thresholds(["-0.5"]) == -0.5
    assert parse_thresholds(["a=1", "b=2e-1"]) == {"a": 1.0, "b": 0.2}
    for texts in (["a=x"], ["1", "a=2"], ["1", "2"], ["nan"], ["a=inf"], ["a=1", "a=2"]):
        with pytest.raises(ValueError, match="--threshold"):
            parse_thresholds(texts)


@pytest.mark.parametrize("threshold", [float("nan"), {"step_sum": float("inf")}])
def test_a_threshold_is_a_finite_number(threshold: float | dict[str, float]) -> None:
    with pytest.raises(ValueError, match="fixed_threshold: expected finite numbers"):
        JudgeSettings(fixed_threshold=threshold)


def test_judging_a_file_needs_no_model_library() -> None:
    heavy = "transformers", "lightning", "torchmetrics", "datasets", "peft"
    code = f"import sys, ipvrm_lightning.metrics.judge; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
