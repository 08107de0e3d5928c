"""Small runs on disk, written by the package's own writers."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ipvrm_lightning.callbacks.run_record import run_facts
from ipvrm_lightning.loggers import MetricsFile
from ipvrm_lightning.metrics import (
    BestOfN,
    JudgeSettings,
    PrefixCalibration,
    judge_solutions,
    plain_report,
    write_scores,
)
from ipvrm_lightning.metrics.token_file import TokenRecord, record_to_line, write_tokens
from ipvrm_lightning.types import ScoredSolution

SETTINGS = JudgeSettings(folds=3, resamples=20, random_seeds=3)
#: What would run if the page took texts for markup.
HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"><!-- {{ 7 * 7 }} \u2028 &amp; $x_"


def make_record(index: int, subset: str, draw: random.Random) -> TokenRecord:
    """A solution of two to five steps whose value falls in the step that is labelled wrong."""
    steps = draw.randint(2, 5)
    label = draw.randint(-1, steps - 1)
    tokens, step_ids, advantages = [], [], []
    for step in range(steps):
        for word in (f"Step {step + 1}:", " so", f" {draw.randint(1, 99)}", "\n\n"):
            tokens.append(word)
            step_ids.append(-1 if word.isspace() else step)
            advantages.append(draw.gauss(-2.0 if step == label else 0.3, 1.0))
    tokens[1] = HOSTILE if index == 0 else tokens[1]
    values = [sum(advantages[: place + 1]) / (place + 1) for place in range(len(advantages))]
    return TokenRecord(
        f"{subset}-{index}", subset, label, f"Problem {index} <b>?", tokens, step_ids, advantages, values
    )


def scored(record: TokenRecord, problem: str) -> ScoredSolution:
    """What the score file says of the same solution."""
    steps = max(record.step_ids) + 1
    pairs = list(zip(record.step_ids, record.td_advantages, strict=True))
    sums = [sum(value for at, value in pairs if at == step) for step in range(steps)]
    return ScoredSolution(
        record.id,
        record.subset,
        problem,
        record.label,
        {"step_sum": sums, "step_mean": [one / 3 for one in sums]},
        [20 + 7 * (step % 3) for step in range(steps)],
        record.label < 0,
        record.values[-1],
    )


def write_test_run(folder: Path, *, count: int = 40, subsets: Sequence[str] = ("alpha", "beta")) -> list[TokenRecord]:
    """`results.json`, `scores.jsonl`, `tokens.jsonl` as `ipvrm test` leaves them."""
    draw = random.Random(0)
    records = [make_record(index, subsets[index % len(subsets)], draw) for index in range(count)]
    solutions = [scored(record, f"problem {index // 3}") for index, record in enumerate(records)]
    calibration, best = PrefixCalibration(), BestOfN(sizes=(2,))
    outcomes = torch.tensor([float(index % 2) for index in range(20)])
    values = torch.randn(20, 8, generator=torch.Generator().manual_seed(0)) + outcomes[:, None]
    calibration.update(values, torch.ones(20, 8, dtype=torch.bool), outcomes)
    best.update({"final_value": values[:, -1]}, outcomes, [f"p{index // 2}" for index in range(20)])
    reports = {
        "step_f1": judge_solutions(solutions, SETTINGS),
        "best_of_n": best.compute(),
        "calibration": calibration.compute(),
    }
    write_scores(folder / "scores.jsonl", solutions)
    write_tokens(folder / "tokens.jsonl", [record_to_line(record) for record in records])
    plain: dict[str, Any] = {name: plain_report(report) for name, report in reports.items()}
    results = {"reports": plain, "run": {**run_facts(), "processes": 1, "seconds": 2.0}}
    (folder / "results.json").write_text(json.dumps(results))
    return records


def write_fit_run(folder: Path, *, candidates: bool = False) -> None:
    """`metrics.csv` and `run.json` as `ipvrm fit` leaves them."""
    logger = MetricsFile(str(folder.parent), version=folder.name)
    for step in range(10):
        logger.log_metrics({"train/loss": 5 - 0.3 * step, "train/lr": 1e-4}, step)
        if candidates:
            logger.log_metrics({"train/candidate_mass": 0.9 + 0.005 * step, "train/candidates": 0.25}, step)
    logger.log_metrics({"val/loss": 3.5, "val/auroc": 0.7}, 9)
    logger.save()
    (folder / "run.json").write_text(json.dumps(run_facts()))
