"""A comparison as tables for a terminal, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ipvrm_lightning.comparing.comparison import Cell, Comparison, Group
from ipvrm_lightning.comparing.measures import TITLES, Column, Measured
from ipvrm_lightning.comparing.settings import short_names
from ipvrm_lightning.config_keys import plain_name

_ORIGINS = {
    "cross_fitted": "cross-fitted (chosen on other problems: what a user gets)",
    "oracle": "oracle (best on the same solutions, as papers report)",
}
_UNKNOWN = Measured(math.nan)


def print_tables(comparison: Comparison) -> None:
    """Print what the numbers mean, and a table for each kind of report."""
    console = Console()
    shown = _tables(comparison)
    # names break into lines where the terminal is narrow, numbers never do
    narrowest = max(console.measure(table, options=console.options.update(width=10_000)).minimum for table in shown)
    console.width = max(narrowest, console.width if console.is_terminal else 100)
    for line in _header(comparison):
        console.print(line, markup=False, highlight=False)
    for table in shown:
        console.print()
        console.print(table)


def _header(comparison: Comparison) -> Iterator[str]:
    """Lines that say how the numbers of the tables came about."""
    columns = _columns(comparison)
    sizes = [len(group.runs) for group in comparison.groups]
    if any(column.table == "step_f1" for column in columns):
        protocol, origin = comparison.choice
        yield f"Step F1 by protocol {protocol}; threshold {_ORIGINS[origin]}."
    others = {"ECE" if column.name == "ECE" else "correlations" for column in columns if not column.is_share}
    unit = f"Percent, but for {' and '.join(sorted(others))}" if others else "Percent"
    several, single = "mean ± sample standard deviation over the runs of a row", "value and bootstrap interval"
    if max(sizes) == 1:
        yield f"{unit}: {single} of one run."
    else:
        yield f"{unit}: {several}{f'; {single} where it is one run' if min(sizes) == 1 else ''}."
    if comparison.pooled:
        yield f"Runs of one row differ in {', '.join(comparison.pooled)}."
    if comparison.confounded:
        yield f"Rows differ in {', '.join(comparison.confounded)}, too."
    if comparison.baseline is not None:
        yield (
            "Differences: in points, with 95 % bootstrap intervals over problems or prompts, both rows on the same ones"
            + (", and over the runs of a row." if max(sizes) > 1 else "; another training is not in them.")
        )


def _tables(comparison: Comparison) -> list[Table]:
    """A table for each kind of report: a row for each group, then the floors; and those of differences."""
    baseline, groups = comparison.baseline, comparison.groups
    shown = [
        _table(TITLES[name], columns, comparison, groups, _value_cells, comparison.floors)
        for name, columns in _by_table(_columns(comparison))
    ]
    if baseline is not None:
        others = [group for group in groups if group is not baseline]
        names = short_names(comparison.by)
        of = zip(comparison.by, baseline.values, strict=True)
        less = escape(", ".join(f"{names[key]} = {_value_text(key, value)}" for key, value in of))
        shown += [
            _table(f"{TITLES[name]}: difference from {less}", columns, comparison, others, _difference_cells, {})
            for name, columns in _by_table(list(others[0].differences))
        ]
    return shown


def _by_table(columns: Sequence[Column]) -> Iterator[tuple[str, list[Column]]]:
    for name in TITLES:
        if found := [column for column in columns if column.table == name]:
            yield name, found


def _table(
    title: str,
    columns: Sequence[Column],
    comparison: Comparison,
    groups: Sequence[Group],
    cells_of: Callable[[Group, Sequence[Column]], list[str]],
    floors: Mapping[str, Mapping[Column, float]],
) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for heading in short_names(comparison.by).values():
        table.add_column(escape(heading), overflow="fold")
    for heading in ("runs", *(column.name for column in columns)):
        table.add_column(escape(heading), justify="right", no_wrap=True)
    for group in groups:
        settings = [escape(_value_text(key, value)) for key, value in zip(comparison.by, group.values, strict=True)]
        table.add_row(*settings, str(len(group.runs)), *cells_of(group, columns))
    table.add_section()
    for row, found in floors.items():
        numbers = [_number_text(found[one], is_share=one.is_share) if one in found else "" for one in columns]
        if any(numbers):
            table.add_row(row, *[""] * len(comparison.by), *numbers)
    for column in table.columns[len(comparison.by) :]:
        column.min_width = max(len(line) for text in (column.header, *column.cells) for line in str(text).split("\n"))
    return table


def _value_cells(group: Group, columns: Sequence[Column]) -> list[str]:
    return [_cell_text(group.cells[column], is_share=column.is_share) for column in columns]


def _difference_cells(group: Group, columns: Sequence[Column]) -> list[str]:
    return [_difference_text(group.differences[column]) for column in columns]


def _difference_text(found: Measured) -> str:
    """Percentage points with their interval below."""
    value, low, high = (f"{100 * number:+.1f}" for number in found)
    return "-" if math.isnan(found.value) else f"{value}\n[{low}, {high}]"


def _cell_text(cell: Cell, *, is_share: bool) -> str:
    """A mean with its spread, or a single run's number with its interval below it."""
    mean = _number_text(cell.mean, is_share=is_share)
    if not math.isnan(cell.spread):
        return f"{mean} ± {_number_text(cell.spread, is_share=is_share)}"
    if not math.isnan(cell.low):
        return f"{mean}\n[{_number_text(cell.low, is_share=is_share)}, {_number_text(cell.high, is_share=is_share)}]"
    return mean


def _number_text(value: float, *, is_share: bool) -> str:
    """Percent with one decimal, other numbers with three; "-" where unknown."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}" if is_share else f"{value:.3f}"


def _value_text(key: str, value: Any) -> str:
    """A setting's value as the config has it: a class by its last name, "-" for none."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.10g}"
    text = "-" if value is None else str(value)
    return text.rpartition(".")[2] if key.endswith("class_path") else text


def to_json(comparison: Comparison) -> str:
    """The comparison as indented JSON; shares between 0 and 1, null where unknown."""
    baseline = comparison.baseline
    plain = {
        "protocol": comparison.choice.protocol,
        "threshold": comparison.choice.threshold,
        "spread": "sample standard deviation over runs",
        "runs_differ_in": comparison.pooled,
        "groups_differ_in_too": comparison.confounded,
        "notes": comparison.notes,
        "against": None if baseline is None else dict(zip(comparison.by, baseline.values, strict=True)),
        "groups": [
            {
                "settings": dict(zip(comparison.by, group.values, strict=True)),
                "runs": [str(run.path) for run in group.runs],
                "measures": _plain(group.cells),
                **({"differences": _plain(group.differences)} if group.differences else {}),
            }
            for group in comparison.groups
        ],
        "floors": {
            row: {column.key: _known(value) for column, value in numbers.items()}
            for row, numbers in comparison.floors.items()
            if numbers
        },
    }
    return json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(numbers: Mapping[Column, Cell | Measured]) -> dict[str, dict[str, float | None]]:
    return {
        column.key: {name: _known(value) for name, value in found._asdict().items()}
        for column, found in numbers.items()
    }


def to_csv(comparison: Comparison) -> str:
    """The comparison as one wide table, floors last; shares between 0 and 1, empty where unknown."""
    columns = _columns(comparison)
    less = list(dict.fromkeys(column for group in comparison.groups for column in group.differences))
    settings = [plain_name(key) for key in comparison.by]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    numbers = [f"{column.key}{end}" for column in columns for end in ("", " spread", " low", " high")]
    numbers += [f"{column.key} difference{end}" for column in less for end in ("", " low", " high")]
    writer.writerow(["floor", *settings, "runs", "protocol", "threshold", *numbers])
    for group in comparison.groups:
        cells = [_known(value) for column in columns for value in group.cells[column]]
        cells += [_known(value) for column in less for value in group.differences.get(column, _UNKNOWN)]
        writer.writerow([None, *group.values, len(group.runs), *comparison.choice, *cells])
    for row, found in comparison.floors.items():
        if found:
            cells = [value for one in columns for value in (_known(found.get(one, math.nan)), None, None, None)]
            cells += [None] * 3 * len(less)
            writer.writerow([row, *[None] * len(settings), None, *comparison.choice, *cells])
    return out.getvalue()


def _columns(comparison: Comparison) -> list[Column]:
    return list(comparison.groups[0].cells)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
