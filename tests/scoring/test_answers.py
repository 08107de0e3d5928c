"""From a solution's numbers to what a caller is told, without a model."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from rich.console import Console

from ipvrm_lightning.scoring.answers import answer, ranked
from ipvrm_lightning.scoring.encoding import EncodedSolution
from ipvrm_lightning.scoring.results import ScoreRequest, SolutionScore
from ipvrm_lightning.scoring.tables import score_table
from ipvrm_lightning.types import Example

#: Two steps, of a token and of two, and the end of the turn.
SOLUTION = EncodedSolution(
    ScoreRequest("?", ["a;", "b c"], "x"),
    Example([1, 2, 3, 4, 5], 1, group="", step_ids=[0, 1, 1, -1]),
    text="a;b c<e>",
    first_characters=[0, 2, 3, 5],
)
LOGITS = torch.tensor([0.5, -1.0, 2.0, 30.0])
SCORES = {"step_sum": [1.5, -0.25], "prefix_mean": [0.2, 0.7]}


def answered(logits: torch.Tensor = LOGITS, **options: Any) -> SolutionScore:
    return answer(
        SOLUTION, logits, SCORES, **{"protocol": "prefix_mean", "threshold": None, "advantages": None, **options}
    )


def test_a_step_is_read_at_its_last_token_and_the_solution_at_its_own() -> None:
    found = answered()
    assert (found.id, found.tokens, found.first_error, found.protocol) == ("x", None, None, "prefix_mean")
    assert [(s.index, s.text, s.value, s.td_advantage) for s in found.steps] == [
        (0, "a;", 0.5, 1.5),
        (1, "b c", 2.0, -0.25),
    ]
    assert [step.scores for step in found.steps] == [
        {"step_sum": 1.5, "prefix_mean": 0.2},
        {"step_sum": -0.25, "prefix_mean": 0.7},
    ]
    assert [step.probability for step in found.steps] == pytest.approx([1 / (1 + math.exp(-x)) for x in (0.5, 2.0)])
    assert found.final_value == 30.0 and 1 - found.final_probability == pytest.approx(math.exp(-30), abs=1e-15)
    assert not any(step.is_first_error for step in found.steps)


@pytest.mark.parametrize(
    ("protocol", "threshold", "first"),
    [("prefix_mean", 0.5, 0), ("prefix_mean", 0.2, -1), ("step_sum", 0.0, 1), ("step_sum", 2.0, 0)],
)
def test_the_first_error_is_the_first_step_below_the_threshold(protocol: str, threshold: float, first: int) -> None:
    found = answered(protocol=protocol, threshold=threshold)
    assert (found.first_error, found.threshold) == (first, threshold)
    assert [step.is_first_error for step in found.steps] == [number == first for number in range(2)]


def test_tokens_are_the_text_in_pieces() -> None:
    found = answered(advantages=[0.1, 0.2, 0.3, 0.4]).tokens
    assert found is not None
    assert [(t.text, t.step, t.td_advantage, t.value) for t in found] == [
        ("a;", 0, 0.1, 0.5),
        ("b", 1, 0.2, -1.0),
        (" c", 1, 0.3, 2.0),
        ("<e>", -1, 0.4, 30.0),
    ]


@pytest.mark.parametrize(
    ("protocol", "threshold", "verdicts", "caption"),
    [
        ("prefix_mean", 0.5, ["first error", "after it"], "step 1 is the first with prefix_mean below 0.5"),
        ("step_sum", 0.0, ["passed", "first error"], "step 2 is the first with step_sum below 0"),
        ("step_sum", -1.0, ["passed", "passed"], "no step has step_sum below -1"),
        ("prefix_mean", None, ["-", "-"], "no verdict: give --threshold, or export with --results"),
    ],
)
def test_a_table_has_the_numbers_and_the_verdict_of_each_step(
    protocol: str, threshold: float | None, verdicts: list[str], caption: str
) -> None:
    console = Console(width=140, file=io.StringIO())
    console.print(score_table(answered(protocol=protocol, threshold=threshold)))
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    own = protocol != "step_sum"
    title, heads, _, *shown, below = filter(None, lines)
    assert title == "x" and heads == f"step text value P(right) TD advantage{f' {protocol}' * own} verdict"
    rows = [f"1 a; 0.500 0.622 1.500{' 0.200' * own}", f"2 b c 2.000 0.881 -0.250{' 0.700' * own}"]
    assert shown == [f"{row} {verdict}" for row, verdict in zip(rows, verdicts, strict=True)]
    assert below == f"whole solution: value 30.000, P(right) 1.000; {caption}"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_no_numbers_are_refused_by_name(value: float) -> None:
    with pytest.raises(ValueError, match="values of solution 'x' are not finite"):
        answered(torch.tensor([0.5, value, 2.0, 1.0]))


def test_candidates_are_ranked_by_what_is_asked_for_and_ties_by_their_place() -> None:
    def candidate(final: float, *steps: float) -> SolutionScore:
        solution = EncodedSolution(
            ScoreRequest("?", ["s"] * len(steps)),
            Example([0] * (len(steps) + 2), 1, group="", step_ids=[*range(len(steps)), -1]),
            text="",
            first_characters=[],
        )
        logits = torch.tensor([0.0] * len(steps) + [final])
        scores = {"step_sum": [0.0] * len(steps), "prefix_mean": list(steps)}
        return answer(solution, logits, scores, protocol="prefix_mean", threshold=None, advantages=None)

    scores = [candidate(1.0, 3.0, 0.0), candidate(2.0, 1.0), candidate(2.0, 1.5, 1.25, 0.5)]
    orders = {by: [(c.index, c.value) for c in ranked(scores, by)] for by in ("final_value", "min_step", "mean_step")}  # type: ignore[arg-type]
    assert orders == {
        "final_value": [(1, 2.0), (2, 2.0), (0, 1.0)],
        "min_step": [(1, 1.0), (2, 0.5), (0, 0.0)],
        "mean_step": [(0, 1.5), (2, pytest.approx(3.25 / 3)), (1, 1.0)],
    }
    assert [c.score for c in ranked(scores, "final_value")] == [scores[1], scores[2], scores[0]]
