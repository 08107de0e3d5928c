"""Small test runs on disk: the package's own metrics on random scores, and configs as `ipvrm` keeps them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from ipvrm_lightning.metrics import (
    AverageAtK,
    BestOfN,
    JudgeSettings,
    PrefixCalibration,
    PrefixTruth,
    judge_solutions,
    plain_report,
)
from ipvrm_lightning.types import ScoredSolution

SETTINGS = JudgeSettings(folds=3, resamples=20, random_seeds=3)
IPVRM = {"class_path": "ipvrm_lightning.objectives.IPVRM", "init_args": {"beta": 10.0, "margin": 5.0}}
DPORM = {"class_path": "ipvrm_lightning.objectives.DPORM", "init_args": {"beta": 0.05}}
IMPLICIT = {"class_path": "ipvrm_lightning.objectives.ImplicitPRM", "init_args": {"beta": 0.05}}


def solutions_of(
    noise: int, *, data: int = 0, count: int = 40, subsets: Sequence[str] = ("alpha", "beta")
) -> list[ScoredSolution]:
    """Scored solutions: `data` makes the solutions, `noise` what a model says of their steps."""
    draw, say = random.Random(data), random.Random(noise)
    solutions = []
    for index in range(count):
        steps = draw.randint(2, 5)
        label = draw.randint(-1, steps - 1)
        scores = [say.gauss(-1.0 if step == label else 0.5, 1.0) for step in range(steps)]
        lengths = [draw.randint(5, 50) for _ in range(steps)]
        subset = subsets[index % len(subsets)]
        by_protocol = {"step_sum": scores, "step_mean": [2 * one**3 for one in reversed(scores)]}
        solutions.append(
            ScoredSolution(f"{index}", subset, f"problem {index // 3}", label, by_protocol, lengths, label < 0, 0.0)
        )
    return solutions


def reward_reports(noise: int, *, data: int = 0, sizes: Any = (2, 4), **of_solutions: Any) -> dict[str, Any]:
    """What a reward model's test run holds: `data` makes solutions and rollouts, `noise` what a model says of them."""
    solutions = solutions_of(noise, data=data, **of_solutions)
    draw, say = random.Random(data), random.Random(noise)
    outcomes = torch.tensor([float(draw.random() < 0.5) for _ in range(24)])
    values = torch.tensor([[say.gauss(float(one) - 0.5, 1.0) for _ in range(4)] for one in outcomes])
    best, calibration = BestOfN(sizes=sizes, resamples=20), PrefixCalibration()
    best.update({"final_value": values[:, -1]}, outcomes, [f"p{index // 4}" for index in range(24)])
    calibration.update(values, torch.ones(24, 4, dtype=torch.bool), outcomes)
    truth, rows = PrefixTruth(), torch.arange(24)
    truths = torch.tensor([[draw.random() for _ in range(4)] for _ in rows])
    truth.update(values, truths, solution_ids=rows, group_ids=rows // 4)
    return {
        "step_f1": plain_report(judge_solutions(solutions, SETTINGS)),
        "best_of_n": plain_report(best.compute()),
        "calibration": plain_report(calibration.compute()),
        "prefix_truth": plain_report(truth.compute()),
    }


def responses_of(noise: int, *, prompts: int = 10, k: int = 4) -> list[dict[str, Any]]:
    """What a policy answered to prompts of two sources, k times each: lines of `responses.jsonl`."""
    say = random.Random(noise)
    return [
        {
            "id": f"p{number}",
            "data_source": "gsm8k" if number < prompts // 2 else "math",
            "scores": [int(say.random() < 0.4) for _ in range(k)],
        }
        for number in range(prompts)
    ]


def policy_reports(noise: int, **of_responses: Any) -> dict[str, Any]:
    """What a policy's test run holds."""
    metric = AverageAtK(resamples=20)
    for one in responses_of(noise, **of_responses):
        count = len(one["scores"])
        metric.update(torch.tensor(one["scores"]), [one["id"]] * count, [one["data_source"]] * count)
    return {"average_at_k": plain_report(metric.compute())}


def config(model: dict[str, Any], *, seed: int = 0, data: dict[str, Any] | None = None, **top: Any) -> dict[str, Any]:
    """A run's config; `model` holds arguments of the module."""
    kind = "IPVRMModule" if "objective" in model else "DistRLModule"
    return {
        "seed_everything": 0,
        "trainer": {"default_root_dir": f"outputs/{seed}", "max_epochs": 1, "devices": 1 + seed, "callbacks": [{}]},
        "model": {"class_path": f"ipvrm_lightning.modules.{kind}", "init_args": model},
        "data": {
            "class_path": "ipvrm_lightning.data.TrajectoryDataModule",
            "init_args": {"seed": seed, **(data or {})},
        },
        "ckpt_path": None,
        **top,
    }


def reward_model(objective: dict[str, Any] = IPVRM, lr: float = 1e-3) -> dict[str, Any]:
    """Arguments of a module that trains a reward model."""
    return {
        "objective": objective,
        "reference": {"class_path": "ipvrm_lightning.models.CachedReference", "init_args": {"cache_dir": f"{lr}"}},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": lr, "betas": [0.9, 0.999]}},
    }


def write_run(root: Path, name: str, trained: dict[str, Any], reports: dict[str, Any], **tested: Any) -> Path:
    """A fit's config and the results of its test run, whose own config is that of another objective and data.

    Returns:
        The `results.json`.
    """
    fit, test = root / f"{name}-fit", root / f"{name}-test"
    fit.mkdir(parents=True)
    test.mkdir()
    (fit / "config.yaml").write_text(yaml.safe_dump(trained))
    own = {**config({}), "ckpt_path": str(fit / "checkpoints" / "last.ckpt"), **tested}
    (test / "config.yaml").write_text(yaml.safe_dump(own))
    (test / "results.json").write_text(json.dumps({"reports": reports, "run": {}}))
    return test / "results.json"
