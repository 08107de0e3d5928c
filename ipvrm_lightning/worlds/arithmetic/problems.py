"""Problems: chains of named integer computations, and the traces that solve them.

A problem defines names in computation order (`a`, `b`, ...); its prompt lists the definitions shuffled. Every line of a
solution computes one name, in computation order, side computations that the answer does not use among them. Everything
stays in the non-negative integers, whatever wrong value came before: `gap` is the absolute difference.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

NAMES = "abcdefghijklmnopqrst"

#: Operator to function on non-negative integers; the right operand of `mod` is never 0.
OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "gap": lambda left, right: abs(left - right),
    "mul": operator.mul,
    "min": min,
    "max": max,
    "mod": operator.mod,
}

Operand = int | str


class Definition(NamedTuple):
    """`name` is `left` `operator` `right`; operands are numbers or earlier names."""

    name: str
    operator: str
    left: Operand
    right: Operand


class Term(NamedTuple):
    """An operand as a line writes it: a number, and the name it is the value of (None for a number of the prompt)."""

    name: str | None
    value: int

    def __str__(self) -> str:
        return f"{self.name or ''}{self.value}"


class Step(NamedTuple):
    """One line of a solution: what it names, the terms it computes with, the result it states."""

    name: str
    operator: str
    left: Term
    right: Term
    result: int


class Answer(NamedTuple):
    """The last line of a solution: the name asked for and its value."""

    name: str
    value: int


Line = Step | Answer


@dataclass(frozen=True)
class Problem:
    """Definitions, which of them is asked for, and how the prompt orders them.

    Args:
        definitions: in computation order, named `a`, `b`, ...
        target: the name whose value is the answer.
        order: indices of `definitions` in the order of the prompt.
    """

    definitions: tuple[Definition, ...]
    target: str
    order: tuple[int, ...]

    @property
    def key(self) -> str:
        """The same for the same computation, whatever the order of the prompt."""
        return " ".join(f"{d.name}={d.operator}({d.left},{d.right})" for d in self.definitions) + f" {self.target}"

    def values(self) -> dict[str, int]:
        """True value of every name."""
        known: dict[str, int] = {}
        for definition in self.definitions:
            known[definition.name] = compute(definition, known)
        return known

    @property
    def answer(self) -> int:
        """True value of the target."""
        return self.values()[self.target]

    def used(self) -> set[str]:
        """Names that the target depends on, itself among them."""
        needed = {self.target}
        for definition in reversed(self.definitions):
            if definition.name in needed:
                needed |= {operand for operand in definition[2:] if isinstance(operand, str)}
        return needed


def compute(definition: Definition, known: dict[str, int]) -> int:
    """The value of a definition, given those of earlier names."""
    left, right = (known[item] if isinstance(item, str) else item for item in definition[2:])
    return OPERATIONS[definition.operator](left, right)


def operands(definition: Definition, known: dict[str, int]) -> tuple[Term, Term]:
    """The terms a definition computes with, given the values of earlier names.

    Raises:
        KeyError: an operand's value is not known.
    """
    left, right = (
        Term(item, known[item]) if isinstance(item, str) else Term(None, item)
        for item in (definition.left, definition.right)
    )
    return left, right


@dataclass(frozen=True)
class Difficulty:
    """How hard problems are.

    Args:
        min_steps: fewest definitions.
        max_steps: most definitions, at most 20.
        min_value: smallest true value of any name.
        max_value: largest true value of any name.
        max_literal: largest number in a prompt that is added or taken away.
        decay: a problem of one definition more is drawn so many times as often.
        side_share: chance that a definition (never the last) is a side computation.
        pair_share: chance that the second operand is an earlier name, not a number.
        weights: how often each operation is drawn.
    """

    min_steps: int = 3
    max_steps: int = 15
    min_value: int = 10
    max_value: int = 99
    max_literal: int = 9
    decay: float = 0.88
    side_share: float = 0.2
    pair_share: float = 0.15
    weights: tuple[tuple[str, float], ...] = (
        ("add", 3.0),
        ("gap", 3.0),
        ("mul", 1.0),
        ("min", 0.7),
        ("max", 0.7),
    )

    def __post_init__(self) -> None:
        if not 1 <= self.min_steps <= self.max_steps <= len(NAMES):
            raise ValueError(f"steps must satisfy 1 <= {self.min_steps} <= {self.max_steps} <= {len(NAMES)}")
        if unknown := {name for name, _ in self.weights} - set(OPERATIONS):
            raise ValueError(f"unknown operations {sorted(unknown)}; there are {', '.join(OPERATIONS)}")


def generate(difficulty: Difficulty, seed: int | str) -> Iterator[Problem]:
    """Problems without end, no computation twice, the same for the same seed.

    Args:
        difficulty: how hard.
        seed: of the generator.
    """
    generator = random.Random(f"problems-{seed}")
    seen: set[str] = set()
    while True:
        problem = _draw_problem(difficulty, generator)
        if problem.key not in seen:
            seen.add(problem.key)
            yield problem


def _draw_problem(difficulty: Difficulty, generator: random.Random) -> Problem:
    counts = range(difficulty.min_steps, difficulty.max_steps + 1)
    count = generator.choices(counts, [difficulty.decay**number for number in counts])[0]
    # The chain runs from the first main line to the last, so that every main line matters to the target.
    side = [generator.random() < difficulty.side_share for _ in range(count)]
    if all(side):
        side[generator.randrange(count)] = False
    definitions: list[Definition] = []
    known: dict[str, int] = {}
    chain: list[str] = []
    for name, is_side in zip(NAMES, side, strict=False):
        definition = _draw_definition(name, chain, known, is_side, difficulty, generator)
        known[name] = compute(definition, known)
        definitions.append(definition)
        if not is_side:
            chain.append(name)
    order = list(range(count))
    generator.shuffle(order)
    return Problem(tuple(definitions), chain[-1], tuple(order))


def _draw_definition(
    name: str, chain: list[str], known: dict[str, int], is_side: bool, difficulty: Difficulty, generator: random.Random
) -> Definition:
    names, weights = zip(*difficulty.weights, strict=True)
    while True:
        chosen = generator.choices(names, weights)[0]
        definition = Definition(name, chosen, *_draw_operands(chosen, chain, known, is_side, difficulty, generator))
        if difficulty.min_value <= compute(definition, known) <= difficulty.max_value:
            return definition


def _draw_operands(
    chosen: str,
    chain: list[str],
    known: dict[str, int],
    is_side: bool,
    difficulty: Difficulty,
    generator: random.Random,
) -> tuple[Operand, Operand]:
    first: Operand = chain[-1] if chain else generator.randint(difficulty.min_value, difficulty.max_value)
    if is_side and known:
        first = generator.choice(list(known))
    if chosen in ("mul", "mod"):
        small = generator.randint(2, 4 if chosen == "mul" else 9)
        return first, small
    comparing = chosen in ("min", "max")
    low, high = (difficulty.min_value, difficulty.max_value) if comparing else (1, difficulty.max_literal)
    second: Operand = generator.randint(low, high)
    pool = list(known) if is_side else chain[:-1]
    if pool and generator.random() < difficulty.pair_share:
        second = generator.choice(pool)
    return first, second


class Noise(NamedTuple):
    """How often a line of a noisy trace is wrong.

    Args:
        rates: operation to chance that its result is wrong.
        copy: chance that a line uses the value of another name than it should.
        answer: chance that the last line states a value of another name.
    """

    rates: dict[str, float]
    copy: float
    answer: float


def solve(problem: Problem, noise: Noise | None = None, generator: random.Random | None = None) -> list[Line]:
    """The trace of a problem; with noise, some lines are wrong and what follows from them is carried on.

    Args:
        problem: what to solve.
        noise: how often lines are wrong; None for a right trace.
        generator: draws the errors; needed with noise.
    """
    stated: dict[str, int] = {}
    lines: list[Line] = []
    for definition in problem.definitions:
        left, right = operands(definition, stated)
        if noise is not None and generator is not None:
            left, right = (_maybe_other(term, stated, noise.copy, generator) for term in (left, right))
        if definition.operator == "mod" and right.value == 0:
            right = right._replace(value=1)  # an error made it 0; the trace has to go on, and its line is wrong
        result = OPERATIONS[definition.operator](left.value, right.value)
        if noise is not None and generator is not None and generator.random() < noise.rates[definition.operator]:
            result = _slip(definition.operator, left.value, right.value, result, generator)
        stated[definition.name] = result
        lines.append(Step(definition.name, definition.operator, left, right, result))
    final = Term(problem.target, stated[problem.target])
    if noise is not None and generator is not None:
        final = _maybe_other(final, stated, noise.answer, generator)
    return [*lines, Answer(problem.target, final.value)]


def _maybe_other(term: Term, stated: dict[str, int], chance: float, generator: random.Random) -> Term:
    if term.name is None or generator.random() >= chance:
        return term
    return term._replace(value=generator.choice(list(stated.values())))


def _slip(chosen: str, left: int, right: int, result: int, generator: random.Random) -> int:
    """A wrong result of the kind people write: one off, a carry lost or invented, the other operand."""
    if chosen in ("min", "max"):
        return left + right - result
    near = [result + 1, result - 1]
    if chosen != "mod":
        near += [result + 10, result - 10]
    return generator.choice([value for value in near if value >= 0])
