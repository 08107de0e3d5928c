"""What a DistRL step reports of its responses, its candidates and its reward model."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean

import torch
from torch import Tensor

from ipvrm_lightning.data.dataset import TrajectoryDataset
from ipvrm_lightning.functional import pearson_correlation
from ipvrm_lightning.modules.experience import ScoredBatch
from ipvrm_lightning.modules.processes import Processes
from ipvrm_lightning.rollouts.groups import Collection

#: Values of a reward model that still is the policy: log-ratios of nothing but rounding.
_ROUNDING = 1e-4


@contextmanager
def timed(phase: str, metrics: dict[str, Tensor | float], device: torch.device) -> Iterator[None]:
    """Add the seconds of what is done inside to `metrics`, work that a GPU has been given included."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start = now()
    yield
    metrics[f"seconds/{phase}"] = now() - start


def collection_metrics(collection: Collection, step_separator: str) -> dict[str, float]:
    """Counts and means over all responses that were sampled.

    Args:
        collection: of a step.
        step_separator: what separates the steps of a response.
    """
    attempts = [attempt for group in collection.sampled for attempt in group.attempts]
    lengths = [len(attempt.input_ids) for attempt in attempts]
    steps = [sum(bool(part.strip()) for part in attempt.text.split(step_separator)) for attempt in attempts]
    return {
        "outcome": fmean(attempt.outcome for attempt in attempts),
        "sampled_prompts": float(len(collection.sampled)),
        "kept_prompts": float(len(collection.kept)),
        "mixed_share": fmean(group.mixed for group in collection.sampled),
        "sampled_tokens": float(sum(lengths)),
        "response_tokens": fmean(lengths),
        "response_steps": fmean(steps),
        "cut_off": fmean(not attempt.finished for attempt in attempts),
        "unverified": fmean(attempt.problem is not None for attempt in attempts),
    }


def score_metrics(scored: Sequence[ScoredBatch], processes: Processes) -> dict[str, Tensor]:
    """Entropy of the policy and what its candidates cover, means over positions of the responses that are learned from.

    `candidates` are those that count besides the sampled token, `candidate_mass` is the probability of the sampled
    token and of these together, at the temperature that sampled the responses.
    """
    tokens = entropy = others = mass = torch.zeros((), device=processes.device)
    for part in scored:
        counted = part.behavior.candidates.mask
        covered = counted.clone()
        covered[..., 0] = part.mask
        tokens = tokens + part.mask.sum()
        entropy = entropy + part.behavior.entropy.sum()
        others = others + counted[..., 1:].sum()
        mass = mass + part.behavior.log_probs.exp()[covered].sum()
    sums = processes.total(torch.stack([tokens, entropy, others, mass]))
    return {
        "entropy": sums[1] / sums[0],
        "candidates": sums[2] / sums[0],
        "candidate_mass": sums[3] / sums[0],
    }


class Values:
    """Values of a step's responses, put together from the processes.

    Args:
        size: responses of the step, R.
        device: of the run.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.sums = torch.zeros(2, size, device=device)

    def add(self, rows: Tensor, values: Tensor) -> None:
        """Take values [B] of responses [B]; one that comes twice, in two pairs, has the mean."""
        self.sums[:, rows] += torch.stack([values, torch.ones_like(values)]).to(self.sums.dtype)


def reward_metrics(values: Values, dataset: TrajectoryDataset, processes: Processes) -> dict[str, Tensor]:
    """How the reward model's value of whole responses goes with their outcomes.

    `score` is the mean value (a logit), `accuracy` the share of responses whose value is positive where they are right
    and negative where they are wrong, `correlation` that of value and outcome. A value of 0 tells nothing and counts
    half; where all values are alike the correlation is 0.

    Args:
        values: of the responses, before the reward model learned from them.
        dataset: the responses.
        processes: of the run.
    """
    sums, times = processes.total(values.sums)
    seen = times > 0
    value, outcome = sums[seen] / times[seen], torch.as_tensor(dataset.outcomes).to(sums)[seen]
    value = value.masked_fill(value.abs() < _ROUNDING, 0.0)
    correlation = pearson_correlation(value, outcome)
    told = ((value > 0) == (outcome > 0.5)).float().masked_fill(value == 0, 0.5)
    return {
        "reward/score": value.mean(),
        "reward/accuracy": told.mean(),
        "reward/correlation": 0.0 if math.isnan(correlation) else correlation,
    }
