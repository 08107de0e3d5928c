"""Three surface formats of the same problems and solutions, rendered and parsed exactly.

A name is written with its value wherever it is used: `d = b14 * 3 = d42`. Format 0 is the one policies answer in and
reward models train on; 1 and 2 say the same in other words, another layout and another order of the sides of an
equation. All three are read back without loss: `parse_line(render_line(x)) == x`, and what does not render back to
itself is malformed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from ipvrm_lightning.worlds.arithmetic.problems import NAMES, Answer, Line, Problem, Step, Term

_NUMBER = r"(0|[1-9][0-9]{0,8})"
_NAME = f"([{NAMES}])"
_TERM = f"([{NAMES}]?(?:0|[1-9][0-9]{{0,8}}))"


@dataclass(frozen=True)
class SurfaceFormat:
    """Templates of one format.

    Args:
        name: of the format, also the subset in test tables.
        words: operation to its word.
        opening: what a prompt begins with.
        definition: with `{name}`, `{left}`, `{word}`, `{right}`.
        separator: between definitions.
        question: what a prompt ends with, with `{target}`.
        step: with `{name}`, `{left}`, `{word}`, `{right}`, `{result}`.
        answer: with `{name}` and `{value}`.
    """

    name: str
    words: dict[str, str]
    opening: str
    definition: str
    separator: str
    question: str
    step: str
    answer: str

    @cached_property
    def _step_pattern(self) -> re.Pattern[str]:
        groups = {"left": _TERM, "right": _TERM, "result": _NUMBER, "name": _NAME}
        groups["word"] = "(" + "|".join(map(re.escape, self.words.values())) + ")"
        return re.compile(_fill(self.step, groups))

    @cached_property
    def _answer_pattern(self) -> re.Pattern[str]:
        return re.compile(_fill(self.answer, {"name": _NAME, "value": _NUMBER}))

    @cached_property
    def _operations(self) -> dict[str, str]:
        return {word: operation for operation, word in self.words.items()}

    def render_prompt(self, problem: Problem) -> str:
        """The text that asks; ends with a line break."""
        parts = []
        for index in problem.order:
            name, operation, left, right = problem.definitions[index]
            parts.append(self.definition.format(name=name, word=self.words[operation], left=left, right=right))
        return self.opening + self.separator.join(parts) + self.question.format(target=problem.target)

    def render_line(self, line: Line) -> str:
        """One line of a solution, without a line break."""
        if isinstance(line, Answer):
            return self.answer.format(name=line.name, value=line.value)
        name, operation, left, right, result = line
        return self.step.format(name=name, word=self.words[operation], left=left, right=right, result=result)

    def parse_line(self, text: str) -> Line | None:
        """The line a text states, None where it is malformed."""
        if found := self._answer_pattern.fullmatch(text):
            return Answer(found["name"], int(found["value"]))
        if found := self._step_pattern.fullmatch(text):
            return Step(
                found["name"],
                self._operations[found["word"]],
                _term(found["left"]),
                _term(found["right"]),
                int(found["result"]),
            )
        return None

    def pieces(self) -> set[str]:
        """Every stretch of text between the varying parts of the templates, operator words with their surroundings."""
        found = {self.opening, self.separator}
        for template in (self.definition, self.step):
            for word in self.words.values():
                found |= set(re.split(r"\{\w+\}", template.replace("{word}", word)))
        for template in (self.question, self.answer):
            found |= set(re.split(r"\{\w+\}", template))
        return found - {""}


def _term(text: str) -> Term:
    return Term(text[0], int(text[1:])) if text[0] in NAMES else Term(None, int(text))


def _fill(template: str, groups: dict[str, str]) -> str:
    pattern = ""
    for position, part in enumerate(re.split(r"\{(\w+)\}", template)):
        if position % 2 == 0:
            pattern += re.escape(part)
        else:
            pattern += f"(?P={part})" if f"(?P<{part}>" in pattern else f"(?P<{part}>{groups[part][1:-1]})"
    return pattern


FORMATS: tuple[SurfaceFormat, ...] = (
    SurfaceFormat(
        name="format0",
        words={"add": "+", "gap": "gap", "mul": "*", "min": "min", "max": "max", "mod": "mod"},
        opening="given ",
        definition="{name} = {left} {word} {right}",
        separator=" ; ",
        question=" ; find {target} :\n",
        step="{name} = {left} {word} {right} = {name}{result}",
        answer="answer {name}{value}",
    ),
    SurfaceFormat(
        name="format1",
        words={
            "add": "plus",
            "gap": "apart from",
            "mul": "times",
            "min": "capped at",
            "max": "at least",
            "mod": "modulo",
        },
        opening="now ",
        definition="let {name} be {left} {word} {right}",
        separator=" , ",
        question=" , what is {target} ?\n",
        step="so {name} is {left} {word} {right} giving {name}{result}",
        answer="it is {name}{value}",
    ),
    SurfaceFormat(
        name="format2",
        words={"add": "sum", "gap": "distance", "mul": "product", "min": "lower", "max": "upper", "mod": "remainder"},
        opening="[ ",
        definition="{name} : {word} of {left} and {right}",
        separator=" | ",
        question=" ] result ? {target}\n",
        step="{name} : {word} of {left} and {right} -> {name}{result}",
        answer="result : {name}{value}",
    ),
)


def render_solution(lines: list[Line], surface: SurfaceFormat) -> str:
    """A whole response: one line per step."""
    return "\n".join(surface.render_line(line) for line in lines)


def split_steps(response: str) -> list[str]:
    """Steps of a response as text: its lines."""
    return response.split("\n")


def parse(response: str, surface: SurfaceFormat) -> list[Line | None]:
    """The lines of a response, None for a malformed one."""
    return [surface.parse_line(text) for text in split_steps(response)]
