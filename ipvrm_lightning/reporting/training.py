"""Curves of a fit run: what is shown first, what can be unfolded, and what was measured only once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from ipvrm_lightning.metrics.tables import decimal
from ipvrm_lightning.reporting.figures import curve_picture
from ipvrm_lightning.reporting.plots import Picture
from ipvrm_lightning.reporting.series import Curve
from ipvrm_lightning.reporting.tables import Cell, PageTable

_FIRST = (
    "candidate_mass", "candidates", "loss", "outcome", "all/avg", "auroc", "prefix_accuracy", "reward/accuracy", "ece",
    "entropy", "approx_kl",
)  # fmt: skip

_TITLES = {
    "candidate_mass": "Share of probability mass that the candidates cover",
    "candidates": "Candidates per position",
    "outcome": "Share of right responses",
    "auroc": "AUROC of the final value",
    "prefix_accuracy": "Prefixes whose value agrees with the outcome",
    "ece": "Expected calibration error of the final value",
    "entropy": "Entropy of the policy on the responses it learns from, nats",
    "approx_kl": "KL divergence that a step's updates moved the policy by, nats per token",
    "reward/accuracy": "Accuracy of the reward model on outcomes",
    "lr": "Learning rate",
}

_NOTES = {
    "candidate_mass": "Mean, over the positions of the responses that are learned from, of the policy's probability of "
    "the sampled token and of the likely tokens that count beside it. What is missing to 1 gets no dense credit.",
    "candidates": "Mean number of tokens that count besides the sampled one, per position of the responses that are "
    "learned from.",
}


class Training(NamedTuple):
    """Pictures shown at once, pictures to unfold, and a table of single numbers, None where there are none."""

    first: list[Picture]
    rest: list[Picture]
    once: PageTable | None


def training_pictures(curves: Mapping[str, Curve]) -> Training:
    """One picture for each measure; training and validation share it.

    Args:
        curves: column of `metrics.csv` to steps and values.
    """
    groups: dict[str, dict[str, Curve]] = {}
    for name, curve in curves.items():
        groups.setdefault(re.sub(r"^(train|val|test)/", "", name), {})[name] = curve
    moving = {base: group for base, group in groups.items() if any(len(steps) > 1 for steps, _ in group.values())}
    pictures = {
        base: curve_picture(f"curve-{number}", _TITLES.get(base, base), group, _NOTES.get(base, ""))
        for number, (base, group) in enumerate(moving.items())
    }
    wanted = [base for start in _FIRST for base in pictures if base == start or base.startswith(f"{start}@")]
    single = [(name, curve) for base, group in groups.items() if base not in moving for name, curve in group.items()]
    return Training(
        first=[pictures[base] for base in wanted],
        rest=[picture for base, picture in pictures.items() if base not in wanted],
        once=_table_of(single) if single else None,
    )


def _table_of(single: list[tuple[str, Curve]]) -> PageTable:
    rows = [[Cell(name), Cell(f"{steps[0]:g}"), Cell(decimal(values[0]))] for name, (steps, values) in single]
    return PageTable("Measured once", "", ["measure", "step", "value"], [False, True, True], [rows])
