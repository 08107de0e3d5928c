"""A scored solution as a table for a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ipvrm_lightning.failures import one_line
from ipvrm_lightning.scoring.results import SolutionScore, StepScore

_LONGEST = 200


def score_table(score: SolutionScore) -> Table:
    """One row per step: its value, what it adds, its score by the protocol and the verdict.

    Args:
        score: of a solution.
    """
    verdict = "no verdict: give --threshold, or export with --results"
    if score.threshold is not None:
        origin = f"{score.protocol} below {score.threshold:.4g}"
        verdict = f"no step has {origin}"
        if score.first_error is not None and score.first_error >= 0:
            verdict = f"step {score.first_error + 1} is the first with {origin}"
    table = Table(
        title=Text(one_line(score.id or "solution")),
        caption=Text(
            f"whole solution: value {score.final_value:.3f}, P(right) {score.final_probability:.3f}; {verdict}"
        ),
        box=box.SIMPLE_HEAD,
        expand=True,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("step", justify="right")
    table.add_column("text", ratio=1, overflow="fold")
    columns = ["value", "P(right)", "TD advantage", *([] if score.protocol == "step_sum" else [score.protocol])]
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for step in score.steps:
        numbers = [step.value, step.probability, step.td_advantage, step.scores[score.protocol]][: len(columns)]
        table.add_row(
            str(step.index + 1),
            Text(one_line(step.text, _LONGEST)),
            *(Text(f"{number:.3f}", style=_style(number, name)) for number, name in zip(numbers, columns, strict=True)),
            _verdict(step, score),
        )
    return table


def table_console() -> Console:
    """Standard output, at least 100 columns wide where it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=max(100, console.width))


def _style(number: float, name: str) -> str:
    middle = 0.5 if name == "P(right)" else 0.0
    return "green" if number >= middle else "red"


def _verdict(step: StepScore, score: SolutionScore) -> Text:
    if score.first_error is None:
        return Text("-")
    if step.is_first_error:
        return Text("first error", style="bold red")
    return Text("after it", style="dim") if -1 < score.first_error < step.index else Text("passed", style="green")
