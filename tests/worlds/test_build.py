from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path

import pytest
import torch

from ipvrm_lightning.worlds.arithmetic import ArithmeticWorld
from ipvrm_lightning.worlds.arithmetic import __main__ as command
from ipvrm_lightning.worlds.arithmetic import build as building
from ipvrm_lightning.worlds.arithmetic.checker import check
from ipvrm_lightning.worlds.arithmetic.formats import FORMATS
from ipvrm_lightning.worlds.arithmetic.problems import Problem

FILES = {"world.json", "policy", "train.jsonl", "validation.jsonl", "best_of_8.jsonl", "truth.jsonl"}
FILES |= {f"test_format{number}.jsonl" for number in range(3)}


def rows(world: ArithmeticWorld, name: str) -> list[dict]:
    return [json.loads(line) for line in (world.folder / f"{name}.jsonl").read_text().splitlines()]


def by_prompt(world: ArithmeticWorld, number: int = 0) -> dict[str, Problem]:
    splits = building.split_problems(world.settings)
    return {FORMATS[number].render_prompt(problem): problem for split in splits for problem in split}


def test_everything_is_there_and_nothing_is_left_behind(micro_world: ArithmeticWorld) -> None:
    assert {path.name for path in micro_world.folder.iterdir()} == FILES
    leftovers = [path.name for path in micro_world.folder.parent.iterdir() if path.name.startswith(".building")]
    assert not leftovers
    record = json.loads((micro_world.folder / "world.json").read_text())
    assert record["fingerprint"] == micro_world.settings.fingerprint
    assert record["statistics"]["responses"] == 24 * 4


@pytest.mark.parametrize(("name", "prompts", "count"), [("train", 24, 4), ("validation", 8, 4), ("best_of_8", 6, 8)])
def test_scores_of_rollouts_are_those_of_the_checker(micro_world, name: str, prompts: int, count: int) -> None:
    problems = by_prompt(micro_world)
    records = rows(micro_world, name)
    assert len(records) == prompts
    outcomes = []
    for row in records:
        assert len(row["responses"]) == len(row["scores"]) == len(row["answers"]) == count
        for response, score, answer in zip(row["responses"], row["scores"], row["answers"], strict=True):
            verdict = check(problems[row["prompt"]], response, FORMATS[0])
            assert score == int(verdict.correct)
            assert answer == (None if verdict.answer is None else str(verdict.answer))
            outcomes.append(score)
    assert 0 < sum(outcomes) < len(outcomes)


@pytest.mark.parametrize("number", range(3))
def test_labels_of_test_solutions_are_those_of_the_checker(micro_world, number: int) -> None:
    problems = by_prompt(micro_world, number)
    records = rows(micro_world, f"test_format{number}")
    assert records
    for row in records:
        verdict = check(problems[row["problem"]], "\n".join(row["steps"]), FORMATS[number])
        assert row["label"] == verdict.first_error
        assert row["final_answer_correct"] is verdict.correct
    first = rows(micro_world, "test_format0")
    assert [row["label"] for row in records] == [row["label"] for row in first]
    assert [row["id"].split("-", 1)[1] for row in records] == [row["id"].split("-", 1)[1] for row in first]


def test_no_test_prompt_is_trained_on(micro_world: ArithmeticWorld) -> None:
    problems = by_prompt(micro_world)
    keys = {name: {problems[row["prompt"]].key for row in rows(micro_world, name)} for name in ("train", "validation")}
    keys["test"] = {problems[row["problem"]].key for row in rows(micro_world, "test_format0")}
    assert not keys["train"] & keys["validation"]
    assert not (keys["train"] | keys["validation"]) & keys["test"]


def test_true_values_are_shares_of_the_continuations(micro_world: ArithmeticWorld) -> None:
    test = {row["problem"]: row for row in rows(micro_world, "test_format0")}
    for row in rows(micro_world, "truth"):
        assert row["steps"] == test[row["problem"]]["steps"]
        *values, last = row["true_values"]
        assert last is None
        assert len(values) == len(row["steps"]) - 1
        assert all(math.isclose(value * 6, round(value * 6)) and 0 <= value <= 1 for value in values)


def test_a_built_world_is_not_built_again(micro_world, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("built twice")

    monkeypatch.setattr(building, "_write_world", refuse)
    monkeypatch.setattr(building.subprocess, "run", refuse)
    assert building.ensure_built(micro_world) == micro_world.folder
    assert building.build(micro_world) == micro_world.folder


def test_a_build_that_stops_leaves_nothing_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(settings: object, folder: Path) -> None:
        (folder / "train.jsonl").write_text("half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "_write_world", stop)
    world = ArithmeticWorld("small", 0, str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        building.build(world)
    assert not world.is_built
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_the_number_of_cores_does_not_choose_the_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr(building, "build", lambda world: threads.append(torch.get_num_threads()))
    monkeypatch.setattr("sys.argv", ["arithmetic", "--root", str(tmp_path)])
    log = logging.getLogger("lightning.pytorch")
    before = torch.get_num_threads(), log.level
    torch.set_num_threads(2)
    try:
        command.main()
    finally:
        torch.set_num_threads(before[0])
        log.setLevel(before[1])
    assert threads == [1]


def test_a_failed_build_is_one_line(tmp_path: Path) -> None:
    world = ArithmeticWorld("small", 0, str(tmp_path), {"sft_problems": 0})
    with pytest.raises(ValueError, match="failed with status 1"):
        building.ensure_built(world)
    assert not world.is_built


def test_the_building_process_knows_no_distributed_run() -> None:
    found = building.clean_environment(
        {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "x", "TORCHELASTIC_RUN_ID": "y", "HOME": "/"}
    )
    assert found == {"HOME": "/"}
    assert building.clean_environment(os.environ)["PATH"] == os.environ["PATH"]
