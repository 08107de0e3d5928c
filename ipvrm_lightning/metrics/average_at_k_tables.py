"""Tables of the report on a policy's accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable

from rich.markup import escape
from rich.table import Table

from ipvrm_lightning.metrics.average_at_k_report import AverageAtKReport, MacroResult, SourceResult
from ipvrm_lightning.metrics.tables import make_table, percent, share_text


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
