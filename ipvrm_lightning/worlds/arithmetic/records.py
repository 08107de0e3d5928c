"""A world's files as tokenised examples."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipvrm_lightning.data import TrajectoryDataset, encode_example, encode_steps
from ipvrm_lightning.data.reading import LeftOut
from ipvrm_lightning.data.rollouts import read_rollouts, tokenize_rollouts
from ipvrm_lightning.data.schema import group_of
from ipvrm_lightning.types import Example
from ipvrm_lightning.worlds.arithmetic.formats import FORMATS, split_steps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: How problems and steps become text; exports say so of models that were trained on worlds.
LAYOUT: dict[str, Any] = {"step_template": "{step}", "separator": "\n", "prompt_format": "plain"}
#: Test sets in the order of the test loaders.
TEST_NAMES = (*(surface.name for surface in FORMATS), "best_of_8", "truth")


def read_trajectories(folder: Path, name: str, tokenizer: PreTrainedTokenizerBase) -> TrajectoryDataset:
    """Rollouts with outcomes, `train` or `validation`.

    Args:
        folder: of the world.
        name: of the file, without its ending.
        tokenizer: of the world.
    """
    rollouts = read_rollouts(folder / f"{name}.jsonl", LeftOut())
    return tokenize_rollouts(rollouts, tokenizer, LeftOut(), max_length=100_000, prompt_format="plain")


def read_test_set(folder: Path, name: str, tokenizer: PreTrainedTokenizerBase) -> TrajectoryDataset:
    """One of `TEST_NAMES`.

    Args:
        folder: of the world.
        name: solutions of a format with their first wrong step, rollouts to choose from, or prefixes of known value.
        tokenizer: of the world.
    """
    rows = [json.loads(line) for line in (folder / _file_name(name)).read_text().splitlines()]
    read = {"best_of_8": _rollouts, "truth": _prefixes}.get(name, _solutions)
    return TrajectoryDataset(example for row in rows for example in read(row, name, tokenizer))


def _file_name(name: str) -> str:
    return f"{name}.jsonl" if name in ("best_of_8", "truth") else f"test_{name}.jsonl"


def _metadata(row: dict[str, Any], name: str, problem: str, steps: list[str]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "subset": name,
        "problem": group_of(problem),
        "step_lengths": [len(step) for step in steps],
        "steps": steps,
    }


def _solutions(row: dict[str, Any], name: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[Example]:
    example = _stepwise(row, name, tokenizer, step_label=row["label"])
    # the same problem stands in each format, in other words: what follows the format's name in its id says which
    example.metadata["shared_problem"] = row["id"].removeprefix(f"{name}-")
    yield example


def _prefixes(row: dict[str, Any], name: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[Example]:
    example = _stepwise(row, name, tokenizer, step_label=None)
    steps = example.step_ids or []
    values = [float("nan")] * len(steps)
    for step, value in enumerate(row["true_values"]):
        if value is not None:
            values[len(steps) - 1 - steps[::-1].index(step)] = value
    yield Example(**{**vars(example), "true_values": values})


def _stepwise(row: dict[str, Any], name: str, tokenizer: PreTrainedTokenizerBase, *, step_label: int | None) -> Example:
    ids, start, step_ids = encode_steps(tokenizer, row["problem"], row["steps"], **LAYOUT)
    correct = row["final_answer_correct"]
    return Example(
        input_ids=ids,
        response_start=start,
        group=group_of(row["problem"]),
        outcome=int(correct),
        step_ids=step_ids,
        step_label=step_label,
        metadata={**_metadata(row, name, row["problem"], row["steps"]), "final_answer_correct": correct},
    )


def _rollouts(row: dict[str, Any], name: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[Example]:
    for number, (response, score, answer) in enumerate(
        zip(row["responses"], row["scores"], row["answers"], strict=True)
    ):
        steps = split_steps(response)
        if all(steps):
            ids, start, step_ids = encode_steps(tokenizer, row["prompt"], steps, **LAYOUT)
        else:  # an empty line is no step: the response counts as one
            steps = [response]
            ids, start = encode_example(tokenizer, row["prompt"], response, prompt_format="plain")
            step_ids = [*[0] * (len(ids) - start - 1), -1]
        yield Example(
            input_ids=ids,
            response_start=start,
            group=group_of(row["prompt"]),
            outcome=score,
            step_ids=step_ids,
            metadata={
                **_metadata(row, name, row["prompt"], steps),
                "id": f"{row['id']}-{number}",
                "answer": answer,
                "prompt": group_of(row["prompt"]),
                "final_answer_correct": bool(score),
            },
        )
