"""What the server is asked, with its limits, and what it answers: the source of `/openapi.json`.

Shapes and sizes are checked here, texts where `ipvrm score` checks them: `ipvrm_lightning.scoring.requests`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from typing_extensions import Self

from ipvrm_lightning.data.schema import DataError
from ipvrm_lightning.scoring import RankedCandidate, ScoreRequest, SolutionScore
from ipvrm_lightning.scoring.requests import as_steps, split_solution
from ipvrm_lightning.scoring.results import RankBy

MAX_STEPS = 1000
MAX_MESSAGES = 100
#: Solutions, or candidates, of one request.
MAX_SOLUTIONS = 128


def _form(value: Any) -> str:
    return "(list)" if isinstance(value, list) else "(text)"


def _few_steps(text: str) -> str:
    if (count := len(split_solution(text))) > MAX_STEPS:
        raise ValueError(f"text should have at most {MAX_STEPS} steps, found {count}")
    return text


Steps = Annotated[list[str], Field(min_length=1, max_length=MAX_STEPS)]
Messages = Annotated[list[dict[str, str]], Field(min_length=1, max_length=MAX_MESSAGES)]
# told apart before they are checked, so that an error is about what was meant; tags are no part of a field's name
Text = Annotated[str, Tag("(text)")]
SolutionText = Annotated[str, AfterValidator(_few_steps)]
Problem = Annotated[
    Text | Annotated[Messages, Tag("(list)")], Discriminator(_form), Field(description="text, or chat messages")
]
Candidate = Annotated[Annotated[SolutionText, Tag("(text)")] | Annotated[Steps, Tag("(list)")], Discriminator(_form)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Solution(_Strict):
    """A problem with `steps`, or with a `solution` whose steps are parted by blank lines."""

    problem: Problem
    steps: Steps | None = Field(default=None, description="texts in order, none blank")
    solution: SolutionText | None = Field(default=None, description="in place of steps")
    id: str | None = Field(default=None, max_length=200, description="comes back with the answer")

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.steps is None) == (self.solution is None):
            raise ValueError("give either steps or solution")
        return self


class ScoreBody(_Strict):
    """Solutions to score: all are answered, or none."""

    solutions: list[Solution] = Field(min_length=1, max_length=MAX_SOLUTIONS)
    tokens: bool = Field(default=False, description="values and TD advantages of every token, too")

    def requests(self, step_template: str) -> list[ScoreRequest]:
        """As the scorer takes them, texts parted into steps for its layout."""
        given = [(one, as_steps(one.solution or one.steps or [], step_template)) for one in self.solutions]
        return [ScoreRequest(one.problem, steps, one.id) for one, steps in given]

    def place(self, error: DataError, position: int) -> DataError:
        """The error of a solution, with the field as it stands in this body."""
        return error.at(field=f"solutions[{position}].{error.field}")


class RankBody(_Strict):
    """Solutions of one problem to put in order, each a list of steps or a text with blank lines between."""

    problem: Problem
    candidates: list[Candidate] = Field(min_length=1, max_length=MAX_SOLUTIONS)
    by: RankBy = Field(
        default="final_value", description="value of the whole solution, lowest step score, or mean of them"
    )

    def requests(self, step_template: str) -> list[ScoreRequest]:
        """As the scorer takes them, texts parted into steps for its layout."""
        return [ScoreRequest(self.problem, as_steps(one, step_template)) for one in self.candidates]

    def place(self, error: DataError, position: int) -> DataError:
        """The error of a candidate, with the field as it stands in this body."""
        if error.field.startswith("problem"):
            return error.at()
        return error.at(field=f"candidates[{position}]{error.field.removeprefix('steps')}")


class Scores(BaseModel):
    """In the order of the solutions."""

    scores: list[SolutionScore]


class Ranking(BaseModel):
    """The best first."""

    ranking: list[RankedCandidate]


class Limits(BaseModel):
    """What one request, and all of them together, may take."""

    timeout: float = Field(
        default=60.0, gt=0, allow_inf_nan=False, description="seconds in which a request is answered, or refused"
    )
    max_waiting: int = Field(default=256, ge=MAX_SOLUTIONS, description="solutions accepted and not yet answered")
    max_body: int = Field(default=2**20, gt=0, description="bytes of a request")


class Status(Limits):
    """What is served, and what has been done since the start."""

    version: str = Field(description="of ipvrm_lightning")
    model: str = Field(description="as given on the command line")
    protocol: str = Field(description="of the step scores that are compared with the threshold")
    threshold: float | None
    max_length: int | None = Field(description="tokens of problem and solution")
    waiting: int = Field(description="solutions accepted and not yet answered")
    scored: int = Field(description="solutions")
    batches: int = Field(description="runs of the model that they took")


class Problems(BaseModel):
    """Why a request was not answered."""

    error: str = Field(description="one line")
    field: str | None = Field(description="that is at fault, such as solutions[2].steps[0]")


def mistake(error: Mapping[str, Any]) -> tuple[str, str]:
    """What one of pydantic's errors says, and of which field.

    Args:
        error: from `errors()` of a validation error.
    """
    if error["type"] == "json_invalid":
        return f"not JSON, {error['ctx']['error']} at character {error['loc'][-1]}", ""
    parts = [part for part in error["loc"] if part not in ("body", "(text)", "(list)")]
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")
    return error["msg"].removeprefix("Value error, "), field
