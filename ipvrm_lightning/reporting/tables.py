"""Tables for the page: what a report prints in a terminal, as headings and cells."""

from __future__ import annotations

from dataclasses import dataclass

from rich.errors import MarkupError
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Cell:
    """One cell.

    Args:
        text: what it says.
        repeated: it stands for the row above, and is read aloud only.
    """

    text: str
    repeated: bool = False


@dataclass(frozen=True)
class PageTable:
    """A table of the page.

    Args:
        title: its caption.
        note: what stands below it.
        columns: headings.
        numeric: which columns stand to the right.
        sections: groups of rows of cells; the first cell of a row is its heading.
    """

    title: str
    note: str
    columns: list[str]
    numeric: list[bool]
    sections: list[list[list[Cell]]]


def page_table(table: Table) -> PageTable:
    """A rich table as the page shows it; a row without a name gets that of the row above, to be read aloud.

    Args:
        table: of a report.
    """
    columns = [[_plain(cell) for cell in column.cells] for column in table.columns]
    sections: list[list[list[Cell]]] = [[]]
    name = ""
    for row, texts in zip(table.rows, zip(*columns, strict=True), strict=True):
        first = Cell(texts[0]) if texts[0] or not sections[-1] else Cell(name, repeated=True)
        name = first.text
        sections[-1].append([first, *map(Cell, texts[1:])])
        if row.end_section:
            sections.append([])
    return PageTable(
        title=_plain(table.title),
        note=_plain(table.caption),
        columns=[_plain(column.header) for column in table.columns],
        numeric=[column.justify == "right" for column in table.columns],
        sections=[section for section in sections if section],
    )


def _plain(shown: object) -> str:
    if shown is None:
        return ""
    try:
        return Text.from_markup(str(shown)).plain
    except MarkupError:
        return str(shown)
