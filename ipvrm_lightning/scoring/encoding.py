"""Requests as token ids with the step of every token, exactly as a test run has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ipvrm_lightning.data.chat import Encoded, encode, render
from ipvrm_lightning.data.schema import DataError
from ipvrm_lightning.data.steps import assign_steps, join_steps
from ipvrm_lightning.data.templates import Rendered
from ipvrm_lightning.models.exported import Layout
from ipvrm_lightning.scoring.requests import check_request
from ipvrm_lightning.scoring.results import ScoreRequest
from ipvrm_lightning.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Gives an error the place of the request at a position.
Place = Callable[[DataError, int], DataError]


@dataclass(frozen=True)
class EncodedSolution:
    """A request as tokens.

    Args:
        request: that it is of.
        example: token ids, where the solution starts, and the step of each of its tokens.
        text: the solution with the end of its turn.
        first_characters: per token of the solution, its first character in `text`.
    """

    request: ScoreRequest
    example: Example
    text: str
    first_characters: list[int]

    def token_texts(self) -> list[str]:
        """Characters from each token's first to the next one's; together they are the text."""
        starts = [max(0, first) for first in self.first_characters]
        return [self.text[a:b] for a, b in zip(starts, [*starts[1:], len(self.text)], strict=True)]


class SolutionEncoder:
    """Lays solutions out and tokenises them.

    Args:
        tokenizer: a fast one.
        layout: how a problem and steps become text.
        max_length: tokens of problem and solution, at most; longer ones are refused, for a cut one has lost steps.
        foreign_ids: tokens that the reference does not have; None where its vocabulary is not known.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        layout: Layout,
        *,
        max_length: int | None = None,
        foreign_ids: frozenset[int] | None = frozenset(),
    ) -> None:
        self.tokenizer, self.layout = tokenizer, layout
        self.max_length, self.foreign_ids = max_length, foreign_ids

    def encode(
        self, requests: Sequence[ScoreRequest], place: Place | None = None, *, first: int = 0
    ) -> list[EncodedSolution]:
        """Tokens of requests.

        Args:
            requests: solutions.
            place: says where a request stands; by its id or number where none is given.
            first: number of the first of them.

        Raises:
            DataError: a request that cannot be scored as it is; says which and why.
        """
        place = place or (lambda error, position: _named(error, requests[position], first + position))
        checked, rendered = [], []
        for position, request in enumerate(requests):
            try:
                checked.append(check_request(request.problem, request.steps, request.id))
                rendered.append(self._render(checked[-1]))
            except DataError as error:
                raise place(error, position) from None
        found = []
        texts = encode(self.tokenizer, [text for text, _ in rendered])
        for position, ((text, starts), encoded) in enumerate(zip(rendered, texts, strict=True)):
            try:
                found.append(self._solution(checked[position], text, starts, encoded))
            except DataError as error:
                raise place(error, position) from None
        return found

    def check_lengths(self, solutions: Sequence[EncodedSolution]) -> None:
        """Refuse solutions that are longer than `max_length` now allows.

        Raises:
            DataError: says which.
        """
        for position, solution in enumerate(solutions):
            try:
                self._check_length(len(solution.example.input_ids))
            except DataError as error:
                raise _named(error, solution.request, position) from None

    def _check_length(self, length: int) -> None:
        if self.max_length is not None and length > self.max_length:
            problem = f"longer than the {self.max_length} tokens that can be read, and never cut: steps would be lost"
            raise DataError(problem, field="steps", found=length)

    def _render(self, request: ScoreRequest) -> tuple[Rendered, list[int]]:
        layout = asdict(self.layout)
        joining = {name: layout.pop(name) for name in ("step_template", "separator")}
        response, starts = join_steps(request.steps, **joining)
        return render(self.tokenizer, request.problem, response, **layout), starts

    def _solution(
        self, request: ScoreRequest, text: Rendered, starts: list[int], encoded: Encoded | DataError
    ) -> EncodedSolution:
        if isinstance(encoded, DataError):
            raise encoded
        self._check_length(len(encoded.input_ids))
        if foreign := (self.foreign_ids or frozenset()).intersection(encoded.input_ids):
            token = self.tokenizer.convert_ids_to_tokens(min(foreign))
            raise DataError("holds a token that the reference does not have", field="steps", found=token)
        steps = assign_steps(encoded, starts, len(text.response))
        return EncodedSolution(
            request=request,
            example=Example(encoded.input_ids, encoded.response_start, group="", step_ids=steps),
            text=text.response + text.ending,
            first_characters=encoded.first_characters,
        )


def _named(error: DataError, request: ScoreRequest, position: int) -> DataError:
    name = f"solution {position}" if request.id is None else f"solution {request.id!r}"
    return error.at(name)
