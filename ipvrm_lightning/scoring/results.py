"""What is asked of a scorer and what it answers: small frozen dataclasses, plain numbers and text only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

RankBy = Literal["final_value", "min_step", "mean_step"]


@dataclass(frozen=True)
class ScoreRequest:
    """One solution to score.

    Args:
        problem: text, or chat messages with `role` and `content`.
        steps: texts of the solution's steps, in order, none blank.
        id: comes back with the answer.
    """

    problem: str | list[dict[str, str]]
    steps: Sequence[str]
    id: str | None = None


@dataclass(frozen=True)
class TokenScore:
    """One token of a solution.

    Args:
        text: characters of the solution that begin with this token; empty where one character takes several tokens.
        step: index of the step it lies in, -1 for the end of the turn.
        td_advantage: beta times its log-ratio: what it adds to the summed value of its prefix.
        value: logit that a solution which begins with the tokens up to this one ends right.
    """

    text: str
    step: int
    td_advantage: float
    value: float


@dataclass(frozen=True)
class StepScore:
    """One step of a solution.

    Args:
        index: its number, from 0.
        text: as in the request.
        value: logit that a solution which begins with the steps up to this one ends right.
        probability: sigmoid of `value`.
        td_advantage: sum of the TD advantages of its tokens: what the step adds to the summed value of its prefix,
            negative where it takes away.
        scores: by protocol (`step_sum`, `prefix_sum`, `prefix_mean`, `step_mean`), higher is better.
        is_first_error: whether it is the first whose score is below the threshold.
    """

    index: int
    text: str
    value: float
    probability: float
    td_advantage: float
    scores: dict[str, float]
    is_first_error: bool = False


@dataclass(frozen=True)
class SolutionScore:
    """A scored solution.

    Args:
        id: of the request.
        steps: one for each of the request's.
        first_error: index of the first step whose score is below the threshold, -1 for none, None where there is no
            threshold.
        final_value: logit that the solution ends right, read at its last token.
        final_probability: sigmoid of `final_value`.
        protocol: the score that is compared with the threshold.
        threshold: None where neither model nor caller gives one.
        tokens: per token, where asked for, the end of the turn included.
    """

    id: str | None
    steps: tuple[StepScore, ...]
    first_error: int | None
    final_value: float
    final_probability: float
    protocol: str
    threshold: float | None
    tokens: tuple[TokenScore, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists, numbers and text, as JSON holds them; `tokens` only where they were asked for."""
        plain = asdict(self)
        tokens = plain.pop("tokens")
        return {**plain, "steps": list(plain["steps"])} | ({} if tokens is None else {"tokens": list(tokens)})


@dataclass(frozen=True)
class RankedCandidate:
    """One of several solutions of a problem.

    Args:
        index: position among the candidates as given.
        value: what they are ranked by, higher is better.
        score: the candidate's whole score.
    """

    index: int
    value: float
    score: SolutionScore

    def to_dict(self) -> dict[str, Any]:
        """As `SolutionScore.to_dict`."""
        return {"index": self.index, "value": self.value, "score": self.score.to_dict()}
