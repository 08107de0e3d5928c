"""What all reports share: being shown as rich tables and written as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Protocol

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from ipvrm_lightning.metrics.resampling import Interval

_NARROWEST_TEXT = 8


class Report(Protocol):
    """What a metric of this package computes."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dictionaries."""

    def tables(self) -> list[Table]:
        """The report as tables to print, the most important one last."""


class Numbers:
    """A report of numbers by name, for what no metric of this package knows.

    Args:
        title: of its table.
        values: numbers by name.
    """

    def __init__(self, title: str, values: Mapping[str, float]) -> None:
        self.title, self.values = title, dict(values)

    def to_dict(self) -> dict[str, Any]:
        """The numbers."""
        return self.values

    def tables(self) -> list[Table]:
        """One table of two columns."""
        table = make_table(self.title, ["name"], ["value"])
        for name, value in self.values.items():
            table.add_row(name, decimal(value))
        return [table]


def as_report(name: str, found: Any) -> Report | None:
    """What a module has put into its `test_report`, as a report.

    Args:
        name: it has there.
        found: a report, a number, or a mapping of names to numbers.

    Returns:
        None where it is none of these.
    """
    if hasattr(found, "to_dict") and hasattr(found, "tables"):
        report: Report = found
        return report
    values = found if isinstance(found, Mapping) else {name: found}
    plain = {str(key): _scalar(value) for key, value in values.items()}
    numbers = {key: value for key, value in plain.items() if isinstance(value, (int, float))}
    return Numbers(name, numbers) if len(numbers) == len(plain) else None


def _scalar(value: Any) -> Any:
    """A tensor or an array of one element as its number."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def percent(share: float) -> str:
    """A share as percent with one decimal, "-" where it is unknown."""
    return "-" if math.isnan(share) else f"{100 * share:.1f}"


def decimal(value: float) -> str:
    """A number with four significant digits, "-" where it is unknown."""
    return "-" if math.isnan(value) else f"{value:.4g}"


def interval_text(interval: Interval) -> str:
    """An interval of shares in percent."""
    return "-" if math.isnan(interval.low) else f"[{percent(interval.low)}, {percent(interval.high)}]"


def share_text(share: float, interval: Interval) -> str:
    """A share in percent, with its interval where that is known."""
    return percent(share) if math.isnan(interval.low) else f"{percent(share)} {interval_text(interval)}"


def make_table(title: str, text_columns: list[str], number_columns: list[str], caption: str | None = None) -> Table:
    """An empty table: text to the left, numbers to the right. Where it is too wide, text is folded and no number is."""
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    for column in text_columns:
        table.add_column(column, overflow="fold")
    for column in number_columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the tables of a report.

    Args:
        report: of any metric of this package.
        console: where to; standard output if None, wide enough for the tables where it is no terminal.
    """
    console = console or output_console()
    for table in report.tables():
        _fit(table, console)
        console.print(table, crop=False)


def _fit(table: Table, console: Console) -> None:
    """In a narrow terminal: less room between columns, text folded, and numbers whole, if need be beyond the edge."""
    anything = console.options.update(max_width=10_000)
    if Measurement.get(console, anything, table).maximum <= console.width:
        return
    table.pad_edge, table.collapse_padding = False, True
    least = 0
    for column in table.columns:
        widest = max(Measurement.get(console, anything, cell).maximum for cell in (column.header, *column.cells))
        least += 2 + (widest if column.no_wrap else min(widest, _NARROWEST_TEXT))
    if least > console.width:  # a terminal goes on in its next line, so that nothing is lost
        table.width = least


def output_console() -> Console:
    """Standard output; a file or pipe gets lines of 100 characters, so that hardly a row is broken."""
    console = Console()
    return console if console.is_terminal else Console(width=100)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _without_nan(one) for key, one in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _without_nan(value._asdict())
    if isinstance(value, (list, tuple)):
        return [_without_nan(one) for one in value]
    return value


def plain_report(report: Report) -> dict[str, Any]:
    """A report as what JSON knows: unknown numbers are null, intervals have `low` and `high`."""
    return {str(key): _without_nan(value) for key, value in report.to_dict().items()}


def report_to_json(report: Report) -> str:
    """A report as indented JSON with a line break at its end."""
    return json.dumps(plain_report(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
