"""`PrefixTruth`: how well prefix values follow the true probability of a right end, where it is known by sampling."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ipvrm_lightning.functional.calibration import brier_score, pearson_correlation, spearman_correlation
from ipvrm_lightning.metrics.records import CollectingMetric

if TYPE_CHECKING:
    from rich.table import Table


@dataclass
class PrefixTruthReport:
    """Agreement of sigmoid(value) and truth; NaN where undefined.

    Args:
        prefixes: number of prefixes whose truth is known.
        pearson: linear correlation of probability and truth.
        spearman: rank correlation.
        brier: mean squared difference of probability and truth.
        constant_brier: the same for the best constant, which is the variance of the truth: a value that knows nothing.
        within_solution: mean over solutions of the linear correlation within one.
        solutions: solutions it is a mean over: three or more known prefixes, neither side constant.
        within_problem: mean over problems of the linear correlation within one.
        problems: problems it is a mean over.
    """

    prefixes: int
    pearson: float
    spearman: float
    brier: float
    constant_brier: float
    within_solution: float
    solutions: int
    within_problem: float
    problems: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self)

    def tables(self) -> list[Table]:
        """The report as rich tables."""
        from ipvrm_lightning.metrics.rollout_tables import prefix_truth_tables

        return prefix_truth_tables(self)


class PrefixTruth(CollectingMetric):
    """Correlation and Brier score of prefix values against known truth.

    Args:
        kwargs: of torchmetrics' Metric.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.collect("values", torch.float64)
        self.collect("truths", torch.float64)
        self.collect("solutions", torch.int64)
        self.collect("problems", torch.int64)

    def update(
        self,
        values: Tensor,
        true_values: Tensor,
        *,
        solution_ids: Tensor | None = None,
        group_ids: Tensor | None = None,
    ) -> None:
        """Add prefixes.

        Args:
            values: prefix values as logits, what the objective's `prefix_logits` gives, [B, T].
            true_values: probability of a right end, NaN where unknown (padding too), [B, T].
            solution_ids: number of each row's solution in the data set, the same in all processes, long, [B].
            group_ids: number of each row's problem, long, [B].

        Raises:
            ValueError: shapes that do not match, a value that is not finite where the truth is known, or a truth
                outside [0, 1].
        """
        if values.dim() != 2 or values.shape != true_values.shape:
            raise ValueError(
                f"expected values and true_values [B, T], found {tuple(values.shape)} and {tuple(true_values.shape)}"
            )
        known = ~true_values.isnan()
        truths, chosen = true_values[known], values[known]
        if not bool(((truths >= 0) & (truths <= 1)).all()):
            raise ValueError(
                f"true_values: expected probabilities, found {truths[(truths < 0) | (truths > 1)][0].item()}"
            )
        if not bool(chosen.isfinite().all()):
            raise ValueError(f"values: expected finite numbers, found {chosen[~chosen.isfinite()][0].item()}")
        self.put("values", chosen)
        self.put("truths", truths)
        for name, ids in (("solutions", solution_ids), ("problems", group_ids)):
            column = ids if ids is not None else torch.full(values.shape[:1], -1, device=values.device)
            self.put(name, column[:, None].expand(values.shape)[known])

    def compute(self) -> PrefixTruthReport:
        """Agreement over the prefixes of all processes.

        Raises:
            ValueError: no prefix with known truth.
        """
        columns = [self.collected(name) for name in ("values", "truths", "solutions", "problems")]
        if not len(columns[0]):
            raise ValueError("no prefix with a known true value")
        # sums of floats depend on their order: fix it
        for key in range(len(columns)):
            order = columns[key].argsort(stable=True)
            columns = [column[order] for column in columns]
        values, truths, solutions, problems = columns
        probability = values.sigmoid()
        within_solution, solution_count = _mean_correlation(probability, truths, solutions)
        within_problem, problem_count = _mean_correlation(probability, truths, problems)
        return PrefixTruthReport(
            prefixes=len(values),
            pearson=pearson_correlation(probability, truths),
            spearman=spearman_correlation(probability, truths),
            brier=brier_score(probability, truths),
            constant_brier=float(truths.var(unbiased=False)),
            within_solution=within_solution,
            solutions=solution_count,
            within_problem=within_problem,
            problems=problem_count,
        )


def _mean_correlation(first: Tensor, second: Tensor, groups: Tensor) -> tuple[float, int]:
    """Mean over groups (negative ones left out) of the correlation within, and the number of groups that have one."""
    order = groups.argsort(stable=True)
    sizes = groups[order].unique_consecutive(return_counts=True)
    found = []
    parts = zip(first[order].split(sizes[1].tolist()), second[order].split(sizes[1].tolist()), strict=True)
    for group, (x, y) in zip(sizes[0].tolist(), parts, strict=True):
        if group >= 0 and len(x) >= 3:
            found.append(pearson_correlation(x, y))
    known = [value for value in found if not math.isnan(value)]
    return (math.fsum(known) / len(known) if known else math.nan), len(known)
