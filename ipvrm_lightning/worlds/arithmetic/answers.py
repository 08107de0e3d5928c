"""Responses of a world's policy, their verdicts, and the records they are written as."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ipvrm_lightning.rollouts.sampler import SampledResponse, sample_responses
from ipvrm_lightning.worlds.arithmetic.checker import Verdict, check
from ipvrm_lightning.worlds.arithmetic.formats import FORMATS, render_solution
from ipvrm_lightning.worlds.arithmetic.problems import Line, Problem
from ipvrm_lightning.worlds.arithmetic.settings import WorldSettings
from ipvrm_lightning.worlds.arithmetic.tokenizer import build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Answered(NamedTuple):
    """A problem, a sampled response and its verdict."""

    problem: Problem
    rollout: SampledResponse
    response: str
    verdict: Verdict


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSONL."""
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def answer_problems(
    model: PreTrainedModel, problems: Sequence[Problem], count: int, settings: WorldSettings, purpose: str
) -> list[list[Answered]]:
    """Sample and check responses in format 0. A response of no token, which no verifier would be shown, is left out."""
    tokenizer = build_tokenizer()
    prompts = [tokenizer(FORMATS[0].render_prompt(problem)).input_ids for problem in problems]
    rollouts = _sample(model, prompts, count, settings, purpose)
    answered = []
    for problem, group in zip(problems, rollouts, strict=True):
        texts = [str(tokenizer.decode(rollout.input_ids[: -1 if rollout.finished else None])) for rollout in group]
        answered.append(
            [
                Answered(problem, rollout, text, check(problem, text, FORMATS[0]))
                for rollout, text in zip(group, texts, strict=True)
                if text.strip()
            ]
        )
    return [group for group in answered if group]


def _sample(
    model: PreTrainedModel, prompts: list[list[int]], count: int, settings: WorldSettings, purpose: str
) -> list[list[SampledResponse]]:
    from tqdm import tqdm

    tokenizer = build_tokenizer()
    with tqdm(total=count * len(prompts), desc=f"sampling {purpose}", unit="response", mininterval=2) as progress:
        return sample_responses(
            model,
            prompts,
            num_return_sequences=count,
            max_new_tokens=settings.max_new_tokens,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            seed=zlib.crc32(f"{settings.seed}-{purpose}".encode()),
            on_progress=progress.update,
        )


def is_well_formed(answer: Answered) -> bool:
    """Whether every line can be said in the other formats."""
    return answer.rollout.finished and None not in answer.verdict.lines


def grouped_rows(name: str, groups: Iterable[list[Answered]]) -> Iterable[dict[str, Any]]:
    """Records `prompt`, `responses`, `scores`, `answers`, one per problem."""
    for number, group in enumerate(groups):
        answers = [answer.verdict.answer for answer in group]
        yield {
            "id": f"{name}-{number}",
            "subset": name,
            "prompt": FORMATS[0].render_prompt(group[0].problem),
            "responses": [answer.response for answer in group],
            "scores": [int(answer.rollout.finished and answer.verdict.correct) for answer in group],
            "answers": [None if answer is None else str(answer) for answer in answers],
        }


def judged_row(name: str, answer: Answered, number: int) -> dict[str, Any]:
    """A record in ProcessBench's form, in the format of this number."""
    surface = FORMATS[number]
    lines: list[Line] = [line for line in answer.verdict.lines if line is not None]
    return {
        "id": f"{surface.name}-{name}",
        "problem": surface.render_prompt(answer.problem),
        "steps": render_solution(lines, surface).split("\n"),
        "label": answer.verdict.first_error,
        "final_answer_correct": answer.verdict.correct,
    }


def true_value_rows(
    model: PreTrainedModel, judged: Sequence[tuple[str, Answered]], settings: WorldSettings
) -> list[dict[str, Any]]:
    """The share of right answers among continuations of every prefix that ends with a step, the last one left out.

    After the last step nothing is left to sample: its value is the outcome.
    """
    tokenizer = build_tokenizer()
    line_break = tokenizer.convert_tokens_to_ids("\n")
    prompts, places = [], []
    for number, (_, answer) in enumerate(judged):
        prompt = tokenizer(FORMATS[0].render_prompt(answer.problem)).input_ids
        for position, token in enumerate(answer.rollout.input_ids):
            if token == line_break:
                prompts.append([*prompt, *answer.rollout.input_ids[: position + 1]])
                places.append((number, str(tokenizer.decode(answer.rollout.input_ids[: position + 1]))))
    values: list[list[float | None]] = [[] for _ in judged]
    sampled = _sample(model, prompts, settings.truth_continuations, settings, "true values") if prompts else []
    for (number, prefix), rollouts in zip(places, sampled, strict=True):
        problem = judged[number][1].problem
        texts = [prefix + str(tokenizer.decode(r.input_ids[:-1])) for r in rollouts if r.finished]
        values[number].append(sum(check(problem, text, FORMATS[0]).correct for text in texts) / len(rollouts))
    rows = []
    for (name, answer), row in zip(judged, values, strict=True):
        rows.append({**judged_row(name, answer, 0), "id": f"truth-{name}", "true_values": [*row, None]})
    return rows
