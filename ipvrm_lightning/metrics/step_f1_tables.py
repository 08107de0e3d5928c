"""Step F1 as tables. Each carries its two floors and says where each threshold comes from."""

from __future__ import annotations

from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table

from ipvrm_lightning.metrics.step_f1_report import JudgeSettings, StepF1Report, SubsetReport, ThresholdedResult
from ipvrm_lightning.metrics.tables import decimal, interval_text, make_table, percent

RANDOM_FLOOR = "random scores (floor)"
LONGEST_FLOOR = "longest step (floor)"
_ORIGIN_NAMES = {"oracle": "oracle", "cross_fitted": "cross-fitted", "fixed": "fixed"}


def _origin_rows(table: Table, name: str, results: Mapping[str, ThresholdedResult]) -> None:
    for index, (origin, result) in enumerate(results.items()):
        table.add_row(
            escape(name) if index == 0 else "",
            _ORIGIN_NAMES[origin],
            percent(result.f1),
            interval_text(result.f1_interval),
            percent(result.correct_accuracy),
            percent(result.error_accuracy),
            percent(result.right_answer_accuracy),
            decimal(result.threshold),
        )


def _subset_table(name: str, report: SubsetReport, settings: JudgeSettings) -> Table:
    table = make_table(
        f"Step F1 on {escape(name)}: {report.solutions} solutions of {report.problems} problems, "
        f"{report.with_error} with a wrong step",
        ["scorer", "threshold"],
        ["F1", f"{100 * settings.confidence:g} %\ninterval", "correct", "error", "right\nanswer", "value"],
        f"Percent. {report.right_answer_with_error} solutions have a right answer though a step is wrong.",
    )
    for protocol, results in report.protocols.items():
        _origin_rows(table, protocol, results)
    table.add_section()
    floor = report.random
    table.add_row(RANDOM_FLOOR, "oracle", percent(floor.oracle_mean), f"± {percent(floor.oracle_std)}")
    table.add_row("", "cross-fitted", percent(floor.cross_fitted_mean), f"± {percent(floor.cross_fitted_std)}")
    _origin_rows(table, LONGEST_FLOOR, report.longest_step)
    return table


def _summary_table(report: StepF1Report) -> Table:
    columns = {**report.subsets, "average": report.average} if len(report.subsets) > 1 else report.subsets
    table = make_table(
        "Step F1 by threshold",
        ["scorer", "threshold"],
        [escape(name) for name in columns],
        "Percent. The threshold is best on the same solutions (oracle, as papers report), chosen on other problems "
        "(cross-fitted, what a user gets) or given (fixed). A scorer has shown something where it beats both floors.",
    )

    def add(name: str, by_column: list[Mapping[str, ThresholdedResult]]) -> None:
        for index, origin in enumerate(by_column[0]):
            cells = [percent(results[origin].f1) for results in by_column]
            table.add_row(escape(name) if index == 0 else "", _ORIGIN_NAMES[origin], *cells)

    for protocol in report.average.protocols:
        add(protocol, [column.protocols[protocol] for column in columns.values()])
    table.add_section()
    floors = [column.random for column in columns.values()]
    table.add_row(RANDOM_FLOOR, "oracle", *[percent(floor.oracle_mean) for floor in floors])
    table.add_row("", "cross-fitted", *[percent(floor.cross_fitted_mean) for floor in floors])
    add(LONGEST_FLOOR, [column.longest_step for column in columns.values()])
    return table


def step_f1_tables(report: StepF1Report) -> list[Table]:
    """One table per subset, one of the average where there are several, and last a summary."""
    parts = {**report.subsets, "the average of subsets": report.average}
    if len(report.subsets) == 1:
        parts = report.subsets
    return [*(_subset_table(name, part, report.settings) for name, part in parts.items()), _summary_table(report)]
