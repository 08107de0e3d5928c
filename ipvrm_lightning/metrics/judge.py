"""Recompute every step-F1 number from a score file, without a model: `ipvrm judge scores.jsonl`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ipvrm_lightning.failures import OneLineParser
from ipvrm_lightning.metrics.score_file import read_scores
from ipvrm_lightning.metrics.step_f1_judge import judge_solutions
from ipvrm_lightning.metrics.step_f1_report import JudgeSettings, StepF1Report
from ipvrm_lightning.metrics.tables import print_report, report_to_json
from ipvrm_lightning.whole_files import write_atomically


def recompute(path: str | Path, settings: JudgeSettings | None = None) -> StepF1Report:
    """Judge the solutions of a score file.

    Args:
        path: JSONL as `ipvrm test` writes it.
        settings: how; the defaults of `JudgeSettings` if None.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a bad line, ids that occur twice, or nothing to judge.
    """
    solutions = read_scores(path)
    try:
        return judge_solutions(solutions, settings)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse_thresholds(texts: Sequence[str]) -> float | dict[str, float] | None:
    """Thresholds as typed: one number for all protocols, or PROTOCOL=NUMBER each.

    Raises:
        ValueError: not a finite number, a number for all beside others, or two for one protocol.
    """
    if not texts:
        return None
    pairs = [text.rpartition("=") for text in texts]
    try:
        numbers = {protocol: float(number) for protocol, _, number in pairs}
    except ValueError:
        raise ValueError(f"--threshold: expected NUMBER or PROTOCOL=NUMBER, found {' '.join(texts)}") from None
    if not all(map(math.isfinite, numbers.values())):
        raise ValueError(f"--threshold: expected finite numbers, found {' '.join(texts)}")
    if "" in numbers and len(texts) > 1:
        raise ValueError(f"--threshold: expected one NUMBER or several PROTOCOL=NUMBER, found {' '.join(texts)}")
    if len(numbers) < len(texts):
        raise ValueError(f"--threshold: expected one for each protocol, found {' '.join(texts)}")
    return numbers.get("", numbers)


def build_parser() -> argparse.ArgumentParser:
    """The options of `ipvrm judge`; mistakes are raised."""
    defaults = {field.name: field.default for field in fields(JudgeSettings)}
    parser = OneLineParser(prog="ipvrm judge", description=__doc__)
    parser.add_argument("scores", help="score file (JSONL) as `ipvrm test` writes it, or the folder of its run")
    parser.add_argument(
        "--threshold",
        action="append",
        default=[],
        metavar="[PROTOCOL=]NUMBER",
        help="judge at this threshold too; for one protocol, or for all; may be repeated",
    )
    parser.add_argument("--json", metavar="FILE", help="write the report here as well")
    for name, kind, text in (
        ("folds", int, "folds of problems for the cross-fitted threshold"),
        ("resamples", int, "bootstrap resamples of problems for the intervals"),
        ("confidence", float, "probability the intervals should cover"),
        ("random-seeds", int, "draws of random scores for the random floor"),
        ("seed", int, "of folds, resamples and random scores"),
    ):
        default = defaults[name.replace("-", "_")]
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{text} (default: {default})")
    return parser


def main(argv: Sequence[str]) -> None:
    """Run `ipvrm judge`.

    Args:
        argv: what follows `ipvrm judge` on the command line.

    Raises:
        ArgumentError: an option that does not exist or cannot be read.
        ValueError: settings or a score file that cannot be used; `cli.main` tells it in one line.
        OSError: a file that cannot be read or written.
    """
    arguments = build_parser().parse_args(argv)
    settings = JudgeSettings(
        folds=arguments.folds,
        resamples=arguments.resamples,
        confidence=arguments.confidence,
        random_seeds=arguments.random_seeds,
        seed=arguments.seed,
        fixed_threshold=parse_thresholds(arguments.threshold),
    )
    scores = Path(arguments.scores)
    report = recompute(scores / "scores.jsonl" if scores.is_dir() else scores, settings)
    print_report(report)
    if arguments.json:
        path = write_atomically(arguments.json, report_to_json(report))
        print(f"Report: {path}")
