"""Tables of the reports on rollouts: avg@k, best-of-n, calibration, and truth where it is known."""

from __future__ import annotations

import math
from collections.abc import Callable

from rich.markup import escape
from rich.table import Table

from ipvrm_lightning.metrics.average_at_k import AverageAtKReport, MacroResult, SourceResult
from ipvrm_lightning.metrics.best_of_n import BestOfNReport
from ipvrm_lightning.metrics.calibration import CalibrationReport, CalibrationResult
from ipvrm_lightning.metrics.prefix_truth import PrefixTruthReport
from ipvrm_lightning.metrics.tables import decimal, make_table, percent, share_text


def average_at_k_tables(report: AverageAtKReport) -> list[Table]:
    """pass@k, then avg@k with its interval: a row for each data source, one for all prompts, one for their mean."""
    tries = list(report.micro.pass_at)
    left_out = [(k, report.micro.prompts - report.micro.pass_at[k].prompts) for k in tries]
    passed = make_table(
        "pass@k: any of k responses is right",
        ["data source"],
        [f"k = {k}" for k in tries],
        "Percent of prompts. Prompts with fewer than k responses are left out: "
        + ", ".join(f"{count} at k = {k}" for k, count in left_out),
    )
    _fill(passed, report, lambda result: [percent(result.pass_at[k].share) for k in tries])
    average = make_table(
        f"avg@k: {report.micro.responses} responses to {report.micro.prompts} prompts",
        ["data source"],
        ["right", "prompts", "k", "cut off", "tokens"],
        "Percent of right responses with bootstrap intervals over prompts; percent cut off; mean length.",
    )
    _fill(average, report, _average_cells)
    return [passed, average]


def _fill(table: Table, report: AverageAtKReport, cells: Callable[[SourceResult | MacroResult], list[str]]) -> None:
    for name, result in report.sources.items():
        table.add_row(escape(name), *cells(result))
    table.add_section()
    table.add_row("all: mean over prompts (micro)", *cells(report.micro))
    table.add_row("mean over sources (macro)", *cells(report.macro))


def _average_cells(result: SourceResult | MacroResult) -> list[str]:
    right = share_text(result.average.share, result.average.interval)
    if isinstance(result, MacroResult):
        return [right, "", "", "", ""]
    low, high = result.min_responses, result.max_responses
    tokens = "-" if math.isnan(result.mean_length) else f"{result.mean_length:.0f}"
    k = str(low) if low == high else f"{low} to {high}"
    return [right, str(result.prompts), k, percent(result.cut_off), tokens]


def best_of_n_tables(report: BestOfNReport) -> list[Table]:
    """Accuracy by way of choosing and number of rollouts to choose from."""
    table = make_table(
        f"Best of n: {report.rollouts} rollouts of {report.prompts} prompts",
        ["chosen by"],
        [f"n = {n}" for n in report.prompts_at],
        "Percent of prompts answered right, with bootstrap intervals over prompts.\nPrompts with at least n rollouts: "
        + ", ".join(f"{count} at n = {n}" for n, count in report.prompts_at.items()),
    )
    for way, results in report.accuracy.items():
        table.add_row(escape(way), *(share_text(result.accuracy, result.interval) for result in results.values()))
    return [table]


def _calibration_row(name: str, result: CalibrationResult) -> list[str]:
    return [name, str(result.tokens), decimal(result.ece), decimal(result.brier), percent(result.auroc)]


def calibration_tables(report: CalibrationReport) -> list[Table]:
    """Calibration by relative position, and the reliability diagram of all prefixes."""
    calibration = make_table(
        f"Calibration of prefix values: {report.responses} responses, {report.right} of them right",
        ["part of the response"],
        ["prefixes", "ECE", "Brier", "AUROC %"],
        "sigmoid(value) against the outcome; AUROC ranks responses by the value at the end of the part.",
    )
    for result in report.positions:
        calibration.add_row(*_calibration_row(f"{100 * result.start:.0f} to {100 * result.stop:.0f} %", result))
    calibration.add_section()
    calibration.add_row(*_calibration_row("all prefixes", report.overall)[:-1], "-")
    calibration.add_row(
        "final value",
        str(report.responses),
        decimal(report.final_ece),
        decimal(report.final_brier),
        percent(report.final_auroc),
    )
    reliability = make_table(
        "Reliability of all prefix values",
        ["probability said"],
        ["prefixes", "mean said %", "ended right %"],
    )
    for cell in report.overall.bins:
        reliability.add_row(
            f"{100 * cell.low:.0f} to {100 * cell.high:.0f} %",
            str(cell.tokens),
            percent(cell.confidence),
            percent(cell.accuracy),
        )
    return [calibration, reliability]


def prefix_truth_tables(report: PrefixTruthReport) -> list[Table]:
    """Agreement with the truth."""
    table = make_table(
        f"Prefix values against the truth: {report.prefixes} prefixes whose probability of a right end is known",
        ["measure"],
        ["value"],
    )
    table.add_row("Pearson correlation", decimal(report.pearson))
    table.add_row("Spearman correlation", decimal(report.spearman))
    table.add_row(f"correlation within a solution (mean of {report.solutions})", decimal(report.within_solution))
    table.add_row(f"correlation within a problem (mean of {report.problems})", decimal(report.within_problem))
    table.add_row("Brier score", decimal(report.brier))
    table.add_section()
    table.add_row("best constant's Brier score (floor)", decimal(report.constant_brier))
    return [table]
