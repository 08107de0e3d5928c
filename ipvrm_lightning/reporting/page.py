"""The page: what was read, in the order it is shown."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from ipvrm_lightning.functional.step_f1 import best_threshold
from ipvrm_lightning.metrics.calibration import CalibrationReport
from ipvrm_lightning.metrics.score_file import read_scores
from ipvrm_lightning.metrics.step_f1_report import StepF1Report
from ipvrm_lightning.metrics.tables import Report
from ipvrm_lightning.metrics.token_file import TokenRecord, read_tokens
from ipvrm_lightning.reporting import figures, series
from ipvrm_lightning.reporting.browser import browser_data, check_same_run
from ipvrm_lightning.reporting.inputs import InputFiles
from ipvrm_lightning.reporting.plots import Picture
from ipvrm_lightning.reporting.results import rebuild_results
from ipvrm_lightning.reporting.tables import PageTable, page_table
from ipvrm_lightning.reporting.training import Training, training_pictures
from ipvrm_lightning.types import ScoredSolution


@dataclass
class _Run:
    """Everything that was read of a run."""

    reports: dict[str, Report] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    solutions: list[ScoredSolution] = field(default_factory=list)
    records: list[TokenRecord] = field(default_factory=list)
    curves: dict[str, series.Curve] = field(default_factory=dict)

    @property
    def step_f1(self) -> StepF1Report | None:
        found = self.reports.get("step_f1")
        return found if isinstance(found, StepF1Report) else None


def render(files: InputFiles, *, max_solutions: int = 200) -> str:
    """The page as text of one HTML file that loads nothing.

    Args:
        files: of the run.
        max_solutions: solutions to show one by one, at most.

    Raises:
        OSError: a file that cannot be read.
        ValueError: a file that cannot be used; names it, and the line and field.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from jinja2.utils import htmlsafe_json_dumps

    run = _read(files)
    step_f1 = run.step_f1
    tables = {name: [page_table(table) for table in report.tables()] for name, report in run.reports.items()}
    data = None
    if run.solutions and step_f1 is not None and max_solutions:
        data = browser_data(run.solutions, run.records, step_f1.settings, max_solutions)
    script, style = (_asset(name) for name in ("report.js", "report.css"))
    environment = Environment(
        loader=PackageLoader("ipvrm_lightning", "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=_title(files),
        summary=_in_order(tables.pop("step_f1", [])),
        other_tables=tables,
        unknown=run.unknown,
        thresholds=_threshold_pictures(run),
        reliability=_reliability_pictures(run),
        values=_value_pictures(run.records),
        training=training_pictures(run.curves) if run.curves else Training([], [], None),
        data=data,
        # <, >, & and quotes are written as escapes: nothing in it can end the element that holds it
        data_text=htmlsafe_json_dumps(data, separators=(",", ":"), ensure_ascii=False),
        total=len(run.solutions),
        with_tokens=len(run.records),
        facts=_facts(run.facts),
        sources=[str(path) for path in files.present().values()],
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=style,
    )


def _read(files: InputFiles) -> _Run:
    run = _Run()
    if files.results is not None:
        results = rebuild_results(files.results)
        run.reports, run.unknown, run.facts = results.reports, results.unknown, results.run
    elif files.record is not None:
        run.facts = _record(files.record)
    if files.scores is not None:
        run.solutions = read_scores(files.scores)
        _check_results(run, files)
    if files.tokens is not None:
        run.records = read_tokens(files.tokens)
        check_same_run(run.solutions, run.records, str(files.tokens))
    if files.metrics is not None:
        run.curves = series.read_curves(files.metrics)
    return run


def _check_results(run: _Run, files: InputFiles) -> None:
    """Judge the solutions where no results were given; results that were given must be theirs."""
    from ipvrm_lightning.metrics.judge import recompute

    assert files.scores is not None
    if (report := run.step_f1) is None:
        run.reports = {"step_f1": recompute(files.scores), **run.reports}
        return
    counts = Counter(one.subset for one in run.solutions)
    protocols = set(report.average.protocols)
    if counts != {name: part.solutions for name, part in report.subsets.items()} or any(
        set(one.step_scores) != protocols for one in run.solutions
    ):
        raise ValueError(f"{files.scores}: other solutions or protocols than in {files.results}; give those of one run")
    for name, part in report.subsets.items():
        own = [one for one in run.solutions if one.subset == name]
        for protocol, by_origin in part.protocols.items():
            best = best_threshold([one.step_scores[protocol] for one in own], [one.label for one in own]).f1
            if not math.isclose(best, by_origin["oracle"].f1, abs_tol=1e-9) and math.isfinite(best):
                raise ValueError(
                    f"{files.scores}: other scores than in {files.results}: the best F1 of {protocol} on {name} is"
                    f" {best:.4f} and {by_origin['oracle'].f1:.4f}; give those of one run"
                )


def _record(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    return found if isinstance(found, dict) else {}


def _in_order(tables: list[PageTable]) -> list[PageTable]:
    """A terminal shows the summary last; here it comes first, then what is said of all subsets, then each subset."""
    return [*tables[:-3:-1], *tables[:-2]]


def _threshold_pictures(run: _Run) -> list[Picture]:
    report = run.step_f1
    if report is None or not run.solutions:
        return []
    pictures = []
    for number, protocol in enumerate(report.average.protocols):
        curves = series.threshold_curves(run.solutions, report, protocol)
        if known := [curve for curve in curves if math.isfinite(curve.f1[0])]:
            pictures.append(figures.threshold_picture(f"f1-{number}", protocol, known, report.average))
    return pictures


def _reliability_pictures(run: _Run) -> list[Picture]:
    pictures = []
    report = run.reports.get("calibration")
    if isinstance(report, CalibrationReport):
        lines = figures.lines_of_calibration(report)
        pictures.append(figures.reliability_picture("reliability-prefixes", "Values of prefixes of rollouts", lines))
    if (line := series.reliability_of_finals(run.solutions)) is not None:
        pictures.append(figures.reliability_picture("reliability-finals", "Final values of judged solutions", [line]))
    return pictures


def _value_pictures(records: list[TokenRecord]) -> list[Picture]:
    if not records:
        return []
    pictures = [figures.position_picture(series.values_by_position(records))]
    if around := series.values_around_error(records):
        pictures.append(figures.error_picture(around))
    return pictures


def _title(files: InputFiles) -> str:
    first = next(iter(files.present().values()))
    return first.resolve().parent.name or first.name


def _facts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is needed to repeat the run, as names and texts."""
    facts: list[tuple[str, str]] = []
    command = run.get("command")
    if isinstance(command, list):
        facts.append(("command", shlex.join(map(str, command))))
    for name in ("time", "seed", "platform", "processes"):
        if run.get(name) is not None:
            facts.append((name, str(run[name])))
    if isinstance(run.get("seconds"), (int, float)):
        facts.append(("duration", f"{run['seconds']:.0f} s"))
    versions = run.get("versions")
    if isinstance(versions, dict):
        facts.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)))
    return facts


def _asset(name: str) -> str:
    return package_files("ipvrm_lightning.reporting").joinpath(name).read_text(encoding="utf-8")
