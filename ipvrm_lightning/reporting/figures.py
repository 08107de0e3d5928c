"""The pictures of a report, one function each."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ipvrm_lightning.metrics.calibration import CalibrationReport, CalibrationResult
from ipvrm_lightning.metrics.step_f1_report import SubsetReport
from ipvrm_lightning.metrics.tables import decimal, percent
from ipvrm_lightning.reporting.plots import DASHES, GRID, INK, MARKERS, SERIES, Picture, axes, label, legend, to_svg
from ipvrm_lightning.reporting.series import Curve, ReliabilityLine, Spread, ThresholdCurve

_POINTS = 300
_CROWDED = 40


def _style(index: int) -> dict[str, Any]:
    return {"color": SERIES[index % len(SERIES)], "linestyle": DASHES[index % len(DASHES)]}


def threshold_picture(name: str, protocol: str, curves: Sequence[ThresholdCurve], average: SubsetReport) -> Picture:
    """F1 against the threshold; the chosen ones are marked.

    Args:
        name: unique on the page.
        protocol: of the step scores.
        curves: one per subset.
        average: of the subsets, for the floor.
    """
    low, high = _range_of_interest(curves)
    floor = average.longest_step["oracle"].f1
    with axes(height=3.1) as (figure, (axis,)):
        for index, curve in enumerate(curves):
            places = _thin(_within(curve.thresholds, low, high), curve.f1)
            x, y = [curve.thresholds[i] for i in places], [100 * curve.f1[i] for i in places]
            axis.plot(x, y, **_style(index), label=label(curve.subset))
            for origin, marker in (("oracle", "o"), ("cross_fitted", "x"), ("fixed", "s")):
                at, f1 = curve.chosen.get(origin, (math.nan, math.nan))
                if math.isfinite(f1) and math.isfinite(at):
                    colour = SERIES[index % len(SERIES)]
                    axis.plot([at], [100 * f1], marker, color=colour, markersize=8, markerfacecolor="none", zorder=5)
        if math.isfinite(floor):
            axis.axhline(100 * floor, color=INK, linewidth=1, linestyle=(0, (2, 2)), label="longest step (floor)")
        axis.set(xlabel=f"threshold on {label(protocol)}", ylabel="step F1, %", ylim=(0, None))
        axis.set_xlim(low, high if high > low else low + 1)
        legend(figure, axis)
        svg = to_svg(figure, name)
    words = "; ".join(f"{curve.subset}: {_choices(curve)}" for curve in curves)
    return Picture(
        name=name,
        title=protocol,
        words=f"Step F1 in percent by subset. {words}. Longest step, oracle threshold: {percent(floor)}.",
        note="",
        svg=svg,
    )


def _choices(curve: ThresholdCurve) -> str:
    return ", ".join(
        f"{origin.replace('_', '-')} {percent(f1)} at {decimal(at)}" for origin, (at, f1) in curve.chosen.items()
    )


def _range_of_interest(curves: Sequence[ThresholdCurve]) -> tuple[float, float]:
    """Thresholds that have a quarter of the best F1 or more, on any curve, and those that were chosen."""
    least = max(max(curve.f1) for curve in curves) / 4
    bounds = [at for curve in curves for at, f1 in zip(curve.thresholds, curve.f1, strict=True) if f1 >= least]
    bounds += [at for curve in curves for at, _ in curve.chosen.values() if math.isfinite(at)]
    margin = (max(bounds) - min(bounds)) / 20
    return min(bounds) - margin, max(bounds) + margin


def _within(thresholds: Sequence[float], low: float, high: float) -> list[int]:
    """Places between two thresholds, and one more to each side, so that lines reach the edge."""
    first, last = bisect.bisect_left(thresholds, low), bisect.bisect_right(thresholds, high)
    return list(range(max(0, first - 1), min(len(thresholds), last + 1)))


def _thin(places: list[int], values: Sequence[float]) -> list[int]:
    """At most a few hundred of the places, the best among them."""
    if len(places) <= _POINTS:
        return places
    every = len(places) / _POINTS
    return sorted({places[int(index * every)] for index in range(_POINTS)} | {max(places, key=lambda i: values[i])})


def lines_of_calibration(report: CalibrationReport) -> list[ReliabilityLine]:
    """All prefixes, and those of the first and the last stretch of the responses."""
    parts = {"all prefixes": report.overall}
    if len(report.positions) > 1:
        first, last = report.positions[0], report.positions[-1]
        parts[f"first {100 * first.stop:.0f} %"] = first
        parts[f"last {100 * (1 - last.start):.0f} %"] = last
    return [_line(name, part) for name, part in parts.items()]


def _line(name: str, part: CalibrationResult) -> ReliabilityLine:
    return ReliabilityLine(
        name,
        [cell.confidence for cell in part.bins],
        [cell.accuracy for cell in part.bins],
        [cell.tokens for cell in part.bins],
    )


def reliability_picture(name: str, title: str, lines: Sequence[ReliabilityLine]) -> Picture:
    """Probability said against share of right ends, and below how the probabilities are spread.

    Args:
        name: unique on the page.
        title: heading.
        lines: the first one's counts are shown.
    """
    counts = lines[0].counts
    total, bins = sum(counts), len(counts)
    with axes(height=3.7, rows=(3, 1)) as (figure, (axis, below)):
        axis.plot([0, 100], [0, 100], color=GRID, linewidth=1.4, label="says what is true")
        for index, line in enumerate(lines):
            filled = [i for i, count in enumerate(line.counts) if count]
            axis.plot(
                [100 * line.said[i] for i in filled],
                [100 * line.right[i] for i in filled],
                marker=MARKERS[index % len(MARKERS)], markersize=4, **_style(index), label=label(line.name, 34),
            )  # fmt: skip
        axis.set(ylabel="ended right, %", ylim=(0, 100), xlim=(0, 100))
        centres = [100 * (i + 0.5) / bins for i in range(bins)]
        below.bar(centres, [100 * count / total for count in counts], width=90 / bins, color=SERIES[0])
        below.set(xlabel="probability said, %", ylabel="share, %")
        legend(figure, axis, columns=1 if len(lines) == 1 else 2)
        svg = to_svg(figure, name)
    filled = [i for i, count in enumerate(counts) if count]
    words = ", ".join(f"said {percent(lines[0].said[i])}, right {percent(lines[0].right[i])}" for i in filled)
    return Picture(
        name=name,
        title=title,
        words=f"Percent, {lines[0].name}, {total} in all: {words}.",
        note="On the diagonal a value is the probability it says. Bars: how often each probability is said.",
        svg=svg,
    )


def _draw(axis: Any, places: Sequence[float], spreads: Sequence[Spread], *, color: str, **line: Any) -> None:
    """Medians as a line and quartiles as a band of its colour, in percent."""
    low, middle, high = ([100 * getattr(one, name) for one in spreads] for name in ("low", "middle", "high"))
    axis.plot(places, middle, color=color, **line)
    axis.fill_between(places, low, high, color=color, alpha=0.18, linewidth=0)


def position_picture(groups: Mapping[str, Sequence[Spread]]) -> Picture:
    """Median and quartiles of the value by relative position."""
    with axes() as (figure, (axis,)):
        for index, (name, spreads) in enumerate(groups.items()):
            places = [100 * one.place for one in spreads]
            _draw(axis, places, spreads, **_style(index), label=f"{name} ({spreads[0].count})")
        axis.set(xlabel="part of the solution read, %", ylabel="P(ends right), %", ylim=(0, 100), xlim=(0, 100))
        legend(figure, axis, columns=1)
        svg = to_svg(figure, "value-position")
    words = "; ".join(
        f"{name}: median {percent(spreads[0].middle)} at the start, {percent(spreads[-1].middle)} at the end"
        for name, spreads in groups.items()
    )
    return Picture(
        "value-position",
        "Value along the solution",
        f"Percent. {words}.",
        "Median over solutions of the sigmoid of the value; the band holds the middle half.",
        svg,
    )


def error_picture(spreads: Sequence[Spread]) -> Picture:
    """Median and quartiles of the value around the labelled first wrong step."""
    from matplotlib.ticker import MaxNLocator

    with axes() as (figure, (axis,)):
        axis.axvline(0, color=INK, linewidth=1, linestyle=(0, (2, 2)))
        _draw(axis, [one.place for one in spreads], spreads, color=SERIES[1], marker="o", markersize=4)
        axis.set(xlabel="steps from the labelled first wrong one", ylabel="P(ends right), %", ylim=(0, 100))
        axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        svg = to_svg(figure, "value-error")
    words = ", ".join(f"{one.place:+.0f}: {percent(one.middle)} of {one.count}" for one in spreads)
    return Picture(
        "value-error",
        "Value around the first wrong step",
        f"Median in percent after each step, and number of solutions that have it: {words}.",
        "0 is the step that is labelled wrong. Solutions differ in length, so not every place has the same solutions.",
        svg,
    )


def curve_picture(name: str, title: str, curves: Mapping[str, Curve], note: str = "") -> Picture:
    """Values over optimiser steps.

    Args:
        name: unique on the page.
        title: heading.
        curves: name to steps and values.
        note: how to read it.
    """
    from matplotlib.ticker import MaxNLocator

    with axes(height=2.4) as (figure, (axis,)):
        for index, (series, (steps, values)) in enumerate(curves.items()):
            marker: dict[str, Any] = {"marker": MARKERS[index % len(MARKERS)], "markersize": 3}
            if len(steps) >= _CROWDED:
                marker = {}
            axis.plot(steps, values, **_style(index), **marker, label=label(series, 40))
        axis.set(xlabel="optimiser step")
        axis.ticklabel_format(axis="y", style="plain", useOffset=False)
        axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        if len(curves) > 1:
            legend(figure, axis)
        svg = to_svg(figure, name)
    words = "; ".join(_in_words(series, curve) for series, curve in curves.items())
    return Picture(name, title, f"{words}.", note, svg)


def _in_words(name: str, curve: Curve) -> str:
    steps, values = curve
    known = [value for value in values if math.isfinite(value)] or [math.nan]
    return (
        f"{name}: {decimal(values[0])} at step {steps[0]:g}, {decimal(values[-1])} at step {steps[-1]:g}, "
        f"between {decimal(min(known))} and {decimal(max(known))}"
    )
