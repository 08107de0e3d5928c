from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ipvrm_lightning.cli import main
from ipvrm_lightning.metrics import read_scores, write_scores
from ipvrm_lightning.reporting.inputs import find_inputs

TEST, FIT = "20260101-110000-test", "20260101-100000-fit"


def test_a_test_run_brings_the_curves_of_the_checkpoint_it_loaded(runs: Path, tmp_path: Path) -> None:
    found = find_inputs([runs / TEST])
    assert found.metrics == runs / FIT / "metrics.csv"
    assert found.scores == runs / TEST / "scores.jsonl" and found.tokens == runs / TEST / "tokens.jsonl"
    assert find_inputs([runs]) == found
    assert find_inputs([runs / FIT]).present().keys() == {"metrics", "record"}
    files = [runs / TEST / name for name in ("tokens.jsonl", "scores.jsonl", "results.json")]
    assert find_inputs(files).tokens == files[0]
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    (tmp_path / TEST / "config.yaml").write_text(f"ckpt_path: gone/{FIT}/checkpoints/val/auroc=0.900.ckpt\n")
    assert find_inputs([tmp_path / TEST]).metrics == tmp_path / FIT / "metrics.csv"
    newer = Path(shutil.copytree(tmp_path / TEST, tmp_path / "20260102-110000-test"))
    assert find_inputs([tmp_path]).results == newer / "results.json"
    (newer / "metrics.csv").write_text("step,test/f1\n0,0.5\n")  # its own, of which a step is no step of training
    assert find_inputs([newer]).metrics == tmp_path / FIT / "metrics.csv"


def _change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def _change_scores(path: Path) -> None:
    """The same solutions and labels, scored by a model that finds every wrong step."""
    found = [
        replace(
            one,
            step_scores={
                name: [-float(step == one.label) for step in range(len(of))] for name, of in one.step_scores.items()
            },
        )
        for one in read_scores(path)
    ]
    write_scores(path, found)


def _drop_line(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def _set(path: Path, value: object, *keys: str) -> None:
    """Put a value into one of the reports."""
    results = json.loads(path.read_text())
    inner = results["reports"]
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(results))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no JSON": (lambda f: (f / "results.json").write_text("{"), "results.json: not JSON"),
    "no reports": (lambda f: (f / "results.json").write_text("[]"), "results.json: reports: missing"),
    "a missing field": (
        lambda f: _change(f / "results.json", '"with_error"', '"with_eror"'),
        "results.json: reports.step_f1.subsets.alpha: with_error: missing",
    ),
    "a wrong kind": (
        lambda f: _change(f / "results.json", '"folds": 3', '"folds": "three"'),
        "reports.step_f1.settings.folds: expected a whole number, found 'three'",
    ),
    "text for a list": (
        lambda f: _set(f / "results.json", "x", "calibration", "overall", "bins"),
        "reports.calibration.overall.bins: expected a list, found 'x'",
    ),
    "a list for a record": (
        lambda f: _set(f / "results.json", ["folds"], "step_f1", "settings"),
        "reports.step_f1.settings: expected an object, found ['folds']",
    ),
    "a number out of range": (
        lambda f: _change(f / "results.json", '"folds": 3', '"folds": 1'),
        "reports.step_f1.settings: folds: expected at least 2, found 1",
    ),
    "a bad score": (
        lambda f: _change(f / "scores.jsonl", '"label": ', '"label": 9'),
        "scores.jsonl, line 1: label: expected -1 or",
    ),
    "scores of another run": (lambda f: _drop_line(f / "scores.jsonl"), "scores.jsonl: other solutions or protocols"),
    "scores of another checkpoint": (
        lambda f: _change_scores(f / "scores.jsonl"),
        "scores.jsonl: other scores than in",
    ),
    "a bad token": (
        lambda f: _change(f / "tokens.jsonl", '"values":[', '"values":[null,'),
        "tokens.jsonl, line 1: values: expected a list of int or float",
    ),
    "bytes that are no text": (
        lambda f: (f / "tokens.jsonl").write_bytes(b"\xff\n"),
        "tokens.jsonl, line 1: not UTF-8",
    ),
    "tokens of another run": (
        lambda f: _change(f / "tokens.jsonl", '"id":"alpha-0"', '"id":"other"'),
        "tokens.jsonl: solution 'other' of 'alpha': not in the score file",
    ),
    "tokens of another label": (
        lambda f: _change(f / "tokens.jsonl", '"label":2', '"label":1'),
        "tokens.jsonl: solution 'alpha-0' of 'alpha': label: 1, but 2 in the score file",
    ),
    "tokens of other steps": (
        lambda f: _change(f / "tokens.jsonl", '"step_ids":[0,0', '"step_ids":[0,9'),
        "tokens.jsonl: solution 'alpha-0' of 'alpha': step_ids: 9 of ",
    ),
    "tokens without scores": (lambda f: (f / "scores.jsonl").unlink(), "tokens.jsonl: needs the scores.jsonl"),
    "a curve without steps": (
        lambda f: (f.parent / FIT / "metrics.csv").write_text("epoch,train/loss\n0,1\n"),
        "metrics.csv: step: missing column",
    ),
    "a curve with a cell too many": (
        lambda f: (f.parent / FIT / "metrics.csv").write_text("step,train/loss\n0,1\n1,2,3\n"),
        "metrics.csv, row 3: more cells than columns",
    ),
    "a curve with words": (
        lambda f: (f.parent / FIT / "metrics.csv").write_text("step,train/loss\n0,1\n1,low\n"),
        "metrics.csv, row 3: train/loss: expected a number, found 'low'",
    ),
}


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["report", *arguments])
    assert ended.value.code in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_in_one_line(name: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    damage, message = DAMAGE[name]
    damage(tmp_path / "runs" / TEST)
    assert message in refused([str(tmp_path / "runs"), "--out", str(tmp_path / "out.html")], capsys)
    assert not (tmp_path / "out.html").exists()


def test_paths_that_cannot_be_used_are_named(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "run.json").write_text("{}")  # of a run that has left nothing else
    (tmp_path / "notes.txt").touch()
    for arguments, message in (
        ([str(tmp_path / "nowhere")], "nowhere: no such file or folder"),
        ([str(tmp_path / "empty")], "empty: nothing to report on; a run's folder holds results.json"),
        ([str(tmp_path / "notes.txt")], "notes.txt: expected the folder of a run, or a file that ends in"),
        ([str(runs / TEST), str(runs / TEST / "results.json")], "is given already"),
        ([str(runs), "--out", str(tmp_path)], "is a folder"),
        ([str(runs), "--max-solutions", "-1"], "--max-solutions"),
        ([], "RUN_OR_FILE"),
    ):
        assert message in refused(arguments, capsys)


def test_reports_of_a_later_version_are_named_and_left_out(runs: Path, tmp_path: Path) -> None:
    results = json.loads((runs / TEST / "results.json").read_text())
    results["reports"]["telepathy"] = {}
    (tmp_path / "results.json").write_text(json.dumps(results))
    main(["report", str(tmp_path)])
    assert "does not know them: telepathy" in (tmp_path / "report.html").read_text()
