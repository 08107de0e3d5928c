"""Building a world: problems, policy, rollouts and their verdicts, true values; once per fingerprint.

A world is written to a scratch folder and appears under its name by one rename, so that a killed build leaves nothing
that counts as finished. It is built in a process of its own, whose environment knows nothing of a distributed run or
of a trainer that may be waiting for it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ipvrm_lightning.permissions import follow_umask
from ipvrm_lightning.worlds.arithmetic.answers import (
    answer_problems,
    grouped_rows,
    is_well_formed,
    judged_row,
    true_value_rows,
    write_rows,
)
from ipvrm_lightning.worlds.arithmetic.formats import FORMATS
from ipvrm_lightning.worlds.arithmetic.problems import Problem, generate
from ipvrm_lightning.worlds.arithmetic.settings import SOURCE_VERSION, ArithmeticWorld, WorldSettings
from ipvrm_lightning.worlds.arithmetic.statistics import summarise
from ipvrm_lightning.worlds.arithmetic.tokenizer import build_tokenizer

BEST_OF = 8
_DISTRIBUTED = ("RANK", "WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "PL_GLOBAL_SEED")
_DISTRIBUTED_PREFIXES = ("LOCAL_", "MASTER_", "TORCHELASTIC_", "SLURM_", "PMI_", "OMPI_")


class Splits(NamedTuple):
    """Problems that fine-tuning never sees, no computation in two of them."""

    train: list[Problem]
    validation: list[Problem]
    test: list[Problem]


def split_problems(settings: WorldSettings) -> Splits:
    """Problems of reward training, validation and test."""
    stream = generate(settings.difficulty, f"{settings.seed}-held-out")
    test = list(islice(stream, settings.test_prompts))
    validation = list(islice(stream, settings.validation_prompts))
    return Splits(list(islice(stream, settings.train_prompts)), validation, test)


def ensure_built(world: ArithmeticWorld) -> Path:
    """The folder of a world; builds it in a clean process if it is not there.

    Raises:
        ValueError: the building process failed; its own messages were printed before.
    """
    if not world.is_built:
        command = [sys.executable, "-m", "ipvrm_lightning.worlds.arithmetic", "--size", world.size]
        command += ["--seed", str(world.seed), "--root", str(world.folder.parent.absolute())]
        command += ["--overrides", json.dumps(world.overrides or {})]
        status = subprocess.run(command, env=clean_environment(os.environ), check=False).returncode
        if status != 0:
            raise ValueError(f"building the arithmetic world {world.folder} failed with status {status}, see above")
    return world.folder


def clean_environment(environment: Any) -> dict[str, str]:
    """The environment without what tells a process that it is part of a distributed run."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _DISTRIBUTED and not name.startswith(_DISTRIBUTED_PREFIXES)
    }


def build(world: ArithmeticWorld) -> Path:
    """Build a world in this process, unless another has done so or does so now.

    Returns:
        Its folder.
    """
    from filelock import FileLock

    folder = world.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if world.is_built:
            return folder
        scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
        try:
            _write_world(world.settings, scratch)
            follow_umask(scratch)
            os.replace(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _write_world(settings: WorldSettings, folder: Path) -> None:
    from ipvrm_lightning.worlds.arithmetic.training import train_policy

    clock, times = time.perf_counter(), {}
    splits = split_problems(settings)
    _say(f"world {settings.size}, seed {settings.seed}: fine-tuning a policy from random weights")
    model = train_policy(settings, {problem.key for split in splits for problem in split}, folder)
    model.save_pretrained(folder / "policy")
    build_tokenizer().save_pretrained(folder / "policy")
    times["sft_seconds"] = time.perf_counter() - clock
    train = answer_problems(model, splits.train, settings.train_rollouts, settings, "train")
    validation = answer_problems(model, splits.validation, settings.train_rollouts, settings, "validation")
    best_of = answer_problems(model, splits.test[: settings.best_of_prompts], BEST_OF, settings, "best_of_8")
    rest = answer_problems(model, splits.test[settings.best_of_prompts :], 1, settings, "test")
    times["rollout_seconds"] = time.perf_counter() - clock - times["sft_seconds"]
    test = [answers[0] for answers in [*best_of, *rest]]
    judged = [(f"problem-{number}", answer) for number, answer in enumerate(test) if is_well_formed(answer)]
    for name, groups in (("train", train), ("validation", validation), ("best_of_8", best_of)):
        write_rows(folder / f"{name}.jsonl", grouped_rows(name, groups))
    for number, surface in enumerate(FORMATS):
        write_rows(folder / f"test_{surface.name}.jsonl", (judged_row(name, answer, number) for name, answer in judged))
    truth = true_value_rows(model, judged[: settings.truth_solutions], settings)
    write_rows(folder / "truth.jsonl", truth)
    times["total_seconds"] = time.perf_counter() - clock
    record: dict[str, Any] = {
        "fingerprint": settings.fingerprint,
        "source_version": SOURCE_VERSION,
        "settings": asdict(settings),
        "statistics": summarise(
            [(answer.problem, answer.verdict) for group in train for answer in group],
            truth=[value for row in truth for value in row["true_values"]],
            left_out=len(test) - len(judged),
        ),
        "times": {name: round(seconds, 1) for name, seconds in times.items()},
    }
    (folder / "world.json").write_text(json.dumps(record, indent=2) + "\n")
    _say(f"pass@1 {record['statistics']['pass_at_1']:.3f}, built in {times['total_seconds']:.0f} s")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
