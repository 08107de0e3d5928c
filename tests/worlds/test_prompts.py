from __future__ import annotations

from ipvrm_lightning.rollouts.verifiers import Submission
from ipvrm_lightning.worlds.arithmetic import ArithmeticPromptData, ArithmeticVerifier, ArithmeticWorld
from ipvrm_lightning.worlds.arithmetic.build import split_problems
from ipvrm_lightning.worlds.arithmetic.formats import FORMATS, render_solution
from ipvrm_lightning.worlds.arithmetic.problems import Answer, Step, operands
from ipvrm_lightning.worlds.arithmetic.settings import make_settings
from ipvrm_lightning.worlds.arithmetic.tokenizer import build_tokenizer

from ..conftest import MICRO


def data(**options: object) -> ArithmeticPromptData:
    made = ArithmeticPromptData(seed=7, overrides=MICRO, **options)  # type: ignore[arg-type]
    made.with_tokenizer(build_tokenizer())
    made.setup()
    return made


def test_prompts_are_the_worlds_problems_and_no_test_problem_is_trained_on() -> None:
    made = data()
    splits = split_problems(make_settings("small", 7, MICRO))
    assert len(made.train_prompts) == 24 and len(made.val_prompts) == 8 and len(made.test_prompts) == 16
    assert [p.ground_truth for p in made.test_prompts] == [str(problem.answer) for problem in splits.test]
    texts = [{str(p.prompt) for p in part} for part in (made.train_prompts, made.val_prompts, made.test_prompts)]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    assert all(build_tokenizer().decode(p.input_ids) == p.prompt for p in made.train_prompts)
    assert len({p.id for part in (made.train_prompts, made.val_prompts, made.test_prompts) for p in part}) == 48
    assert len(data(max_validation_prompts=3).val_prompts) == 3


def test_prompts_are_those_that_the_worlds_rollouts_answer(micro_world: ArithmeticWorld) -> None:
    import json

    rows = [json.loads(line) for line in (micro_world.folder / "train.jsonl").read_text().splitlines()]
    assert {row["prompt"] for row in rows} <= {str(prompt.prompt) for prompt in data().train_prompts}


def test_verdicts_are_those_of_the_checker() -> None:
    (problem, *_) = split_problems(make_settings("small", 7, MICRO)).test
    values = problem.values()
    lines = [Step(d.name, d.operator, *operands(d, values), values[d.name]) for d in problem.definitions]
    right = [*lines, Answer(problem.target, problem.answer)]
    wrong = [*lines, Answer(problem.target, problem.answer + 1)]
    texts = {
        render_solution(right, FORMATS[0]): True,
        render_solution(wrong, FORMATS[0]): False,
        render_solution(lines, FORMATS[0]): False,  # type: ignore[arg-type]
        render_solution(right, FORMATS[1]): False,
        render_solution(right, FORMATS[0]) + "\n": False,
        str(problem.answer): False,
    }
    submissions = [Submission("", text, str(problem.answer)) for text in texts]
    verdicts = ArithmeticVerifier().verify(submissions)
    assert [verdict.correct for verdict in verdicts] == list(texts.values())
    assert [verdict.answer for verdict in verdicts[:3]] == [str(problem.answer), str(problem.answer + 1), None]
