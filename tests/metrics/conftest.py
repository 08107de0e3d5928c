from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from ipvrm_lightning.types import ScoredSolution

PROTOCOLS = ("step_sum", "prefix_sum", "prefix_mean", "step_mean")


def random_solutions(
    count: int, *, seed: int = 0, subsets: tuple[str, ...] = ("alpha", "beta")
) -> list[ScoredSolution]:
    """Solutions whose wrong step scores a little lower; two or three solutions per problem."""
    draw = random.Random(seed)
    solutions = []
    for index in range(count):
        steps = draw.randint(1, 7)
        label = draw.randint(-1, steps - 1)
        scores = {
            protocol: [draw.gauss(-1.5 if step == label else 0.0, 1.0) for step in range(steps)]
            for protocol in PROTOCOLS
        }
        solutions.append(
            ScoredSolution(
                id=f"solution \u2028 {index}",
                subset=subsets[index % len(subsets)],
                problem=f"problem {index // 5}",
                label=label,
                step_scores=scores,
                step_lengths=[draw.randint(5, 200) for _ in range(steps)],
                final_answer_correct=draw.random() < 0.3 if label >= 0 else True,
                final_value=draw.gauss(0, 1),
            )
        )
    return solutions


@pytest.fixture(scope="session")
def make_solutions() -> Callable[..., list[ScoredSolution]]:
    return random_solutions
