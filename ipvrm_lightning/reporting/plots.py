"""Pictures of a report: matplotlib draws them, and the page gives them its colours.

Series are drawn in stand-in colours that are replaced by the page's own, so that one picture serves light and dark.
Text stays text. Every series also has its own dash or marker: none is told by colour alone.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from ipvrm_lightning.failures import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID = "#00000a", "#00000b"
SERIES = ("#000001", "#000002", "#000003", "#000004", "#000005", "#000006")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)), (0, (8, 3)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = "osD^vP"

_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "font.family": "sans-serif",
    "text.color": INK,
    "text.parse_math": False,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 2.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "ipvrm",
}


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Args:
        name: unique on the page.
        title: its heading.
        words: what it shows, for who cannot see it.
        note: how to read it.
        svg: the drawing.
    """

    name: str
    title: str
    words: str
    note: str
    svg: Markup


def label(text: str, longest: int = 28) -> str:
    """A name from data as a legend shows it; matplotlib leaves out what begins with an underscore."""
    short = one_line(text, longest) or "(no name)"
    return f" {short}" if short.startswith("_") else short


@contextmanager
def axes(width: float = 4.4, height: float = 2.9, rows: Sequence[float] = (1,)) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure in the page's style, with axes one below the other.

    Args:
        width: inches.
        height: inches.
        rows: relative heights of the axes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(width, height), layout="constrained")
        grid = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=list(rows))
        yield figure, list(grid[:, 0])


def to_svg(figure: Figure, name: str) -> Markup:
    """The drawing as an element of the page; to be called inside `axes`.

    Args:
        figure: from `axes`.
        name: unique on the page; goes before every id of the drawing.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    # what it says to all elements would hold for the whole page
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', svg)
    for number, colour in enumerate(SERIES, 1):
        svg = svg.replace(colour, f"var(--series-{number})")
    svg = svg.replace(INK, "var(--ink)").replace(GRID, "var(--grid)")
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true" focusable="false">', svg, count=1)
    return Markup(svg)


def legend(figure: Figure, axis: Axes, columns: int = 2) -> None:
    """Names of the series above the drawing, where there are any."""
    handles, labels = axis.get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside upper left", ncols=columns)
