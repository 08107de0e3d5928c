from __future__ import annotations

import random
from itertools import islice

import pytest

from ipvrm_lightning.worlds.arithmetic.build import split_problems
from ipvrm_lightning.worlds.arithmetic.checker import first_error
from ipvrm_lightning.worlds.arithmetic.problems import NAMES, OPERATIONS, Difficulty, Noise, generate, solve
from ipvrm_lightning.worlds.arithmetic.settings import make_settings
from ipvrm_lightning.worlds.arithmetic.training import sft_problems

NOISE = Noise(dict.fromkeys(OPERATIONS, 0.3), copy=0.1, answer=0.1)


def draw(count: int, seed: int | str = 0, **settings: object) -> list:
    return list(islice(generate(Difficulty(**settings), seed), count))


def test_same_seed_gives_the_same_problems_and_another_seed_others() -> None:
    assert draw(50, seed=3) == draw(50, seed=3)
    keys = [{problem.key for problem in draw(50, seed=seed)} for seed in (3, 4)]
    assert not keys[0] & keys[1]


def test_problems_are_distinct_in_range_and_in_computation_order() -> None:
    problems = draw(300)
    assert len({problem.key for problem in problems}) == 300
    for problem in problems:
        assert 3 <= len(problem.definitions) <= 15
        assert all(10 <= value <= 99 for value in problem.values().values())
        assert sorted(problem.order) == list(range(len(problem.definitions)))
        for number, definition in enumerate(problem.definitions):
            assert definition.name == NAMES[number]
            for operand in (definition.left, definition.right):
                assert isinstance(operand, int) or operand in NAMES[:number]


def test_key_ignores_the_order_of_the_prompt() -> None:
    problem = draw(1)[0]
    turned = type(problem)(problem.definitions, problem.target, problem.order[::-1])
    assert turned.key == problem.key


def test_lengths_vary_prompts_are_shuffled_and_side_computations_are_there() -> None:
    problems = draw(400)
    lengths = {len(problem.definitions) for problem in problems}
    assert lengths == set(range(3, 16))
    assert sum(problem.order != tuple(sorted(problem.order)) for problem in problems) > 200
    unused = [len(problem.definitions) - len(problem.used()) for problem in problems]
    assert 0.1 < sum(unused) / sum(len(problem.definitions) for problem in problems) < 0.3


def test_without_side_share_every_line_is_used() -> None:
    assert all(len(problem.used()) == len(problem.definitions) for problem in draw(100, side_share=0.0))


def test_a_trace_without_noise_is_right_and_ends_with_the_answer() -> None:
    for problem in draw(100):
        lines = solve(problem)
        assert lines[-1].value == problem.answer
        assert first_error(problem, list(lines)) == -1


def test_noise_makes_errors_that_are_carried_on() -> None:
    problems = draw(200)
    generator = random.Random(0)
    errors = [first_error(problem, list(solve(problem, NOISE, generator))) for problem in problems]
    assert sum(error >= 0 for error in errors) > 150
    assert len(set(errors)) > 5
    again = random.Random(0)
    assert errors == [first_error(problem, list(solve(problem, NOISE, again))) for problem in problems]


def test_splits_and_fine_tuning_share_no_problem() -> None:
    settings = make_settings("small", 0, {"train_prompts": 200, "sft_problems": 2000})
    splits = split_problems(settings)
    keys = [problem.key for split in splits for problem in split]
    assert len(keys) == len(set(keys)) == 200 + settings.validation_prompts + settings.test_prompts
    # Short problems collide often enough for the exclusion to matter: hold some of the stream's own problems out.
    plain = sft_problems(settings, set())
    held_out = {problem.key for problem in plain[::3]}
    assert not held_out & {problem.key for problem in sft_problems(settings, held_out)}
    assert not set(keys) & {problem.key for problem in sft_problems(settings, set(keys))}


def test_difficulty_is_checked() -> None:
    with pytest.raises(ValueError, match="steps"):
        Difficulty(min_steps=5, max_steps=4)
    with pytest.raises(ValueError, match="unknown operations"):
        Difficulty(weights=(("pow", 1.0),))
