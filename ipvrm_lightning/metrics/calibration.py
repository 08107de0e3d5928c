"""`PrefixCalibration`: is sigmoid(value) of a prefix the probability of a right end, and from when on.

Memory stays bounded by the number of responses: of every token only histograms are kept, of every response its value
at the end of each stretch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ipvrm_lightning.functional.calibration import auroc, brier_score, expected_calibration_error
from ipvrm_lightning.functional.masking import check_outcomes
from ipvrm_lightning.metrics.records import CollectingMetric

if TYPE_CHECKING:
    from rich.table import Table


@dataclass
class ReliabilityBin:
    """Prefixes whose probability lies in [low, high): how many, their mean probability and share of right ends."""

    low: float
    high: float
    tokens: int
    confidence: float
    accuracy: float


@dataclass
class CalibrationResult:
    """Calibration of the prefixes of one stretch of the responses.

    Args:
        start: relative position where the stretch starts, excluded.
        stop: relative position where it ends, included.
        tokens: prefixes in it.
        ece: expected calibration error, 0 is perfect.
        brier: mean squared difference of probability and outcome.
        auroc: ranking of responses by the value at the end of the stretch; NaN where all end alike.
        bins: the reliability diagram.
    """

    start: float
    stop: float
    tokens: int
    ece: float
    brier: float
    auroc: float
    bins: list[ReliabilityBin]


@dataclass
class CalibrationReport:
    """Calibration of all prefixes, of stretches of relative position, and of whole responses.

    Args:
        responses: number of responses.
        right: those that end right.
        overall: all prefixes of all responses; every token counts once. Its `auroc` is that of the final value.
        positions: by relative position in the response.
        final_ece: expected calibration error of the final value.
        final_brier: Brier score of the final value.
        final_auroc: ranking of responses by the final value.
    """

    responses: int
    right: int
    overall: CalibrationResult
    positions: list[CalibrationResult]
    final_ece: float
    final_brier: float
    final_auroc: float

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dictionaries."""
        return asdict(self)

    def tables(self) -> list[Table]:
        """The report as rich tables."""
        from ipvrm_lightning.metrics.rollout_tables import calibration_tables

        return calibration_tables(self)


class PrefixCalibration(CollectingMetric):
    """ECE, Brier score, reliability bins and AUROC of prefix values, by relative position in the response.

    Args:
        positions: stretches of equal relative length a response is cut into.
        bins: bins of equal width over [0, 1] for ECE and the reliability diagram.
        kwargs: of torchmetrics' Metric.
    """

    sums: Tensor
    squares: Tensor

    def __init__(self, *, positions: int = 5, bins: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if positions < 1 or bins < 1:
            raise ValueError(f"expected at least one position and one bin, found {positions} and {bins}")
        self.positions = positions
        self.bins = bins
        # count, sum of probabilities, sum of outcomes of the prefixes in each cell
        self.add_state("sums", torch.zeros(positions, bins, 3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("squares", torch.zeros(positions, dtype=torch.float64), dist_reduce_fx="sum")
        self.collect("values", torch.float64)
        self.collect("outcomes", torch.float64)

    def update(self, values: Tensor, mask: Tensor, outcomes: Tensor) -> None:
        """Add responses.

        Args:
            values: prefix values as logits, what the objective's `prefix_logits` gives, [B, T].
            mask: the response tokens, a run from the left, at least one each, [B, T].
            outcomes: 1 ends right, 0 wrong, [B].

        Raises:
            ValueError: shapes that do not match, an empty response, a value that is not finite, or an outcome other
                than 0 and 1.
        """
        _check(values, mask, outcomes)
        lengths = mask.sum(1, keepdim=True)
        if not bool((mask == (torch.arange(mask.shape[1], device=mask.device) < lengths)).all()):
            raise ValueError("mask: expected one run of tokens from the left in each row")
        numbers = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        position = ((numbers * self.positions + lengths - 1) // lengths - 1)[mask]
        probability = values.detach().double().sigmoid()[mask]
        outcome = outcomes.double()[:, None].expand(mask.shape)[mask]
        bin_index = (probability * self.bins).long().clamp(max=self.bins - 1)
        cells = torch.stack((torch.ones_like(probability), probability, outcome), dim=1)
        # not in place: processes started by spawning share the memory of tensors that existed before
        place = (position * self.bins + bin_index).to(self.device)
        self.sums = self.sums.view(-1, 3).index_add(0, place, cells.to(self.device)).view_as(self.sums)
        squares = (probability - outcome).square().to(self.device)
        self.squares = self.squares.index_add(0, position.to(self.device), squares)
        ends = torch.arange(1, self.positions + 1, device=mask.device) * lengths // self.positions
        self.put("values", values.detach().double().gather(1, ends.clamp(min=1) - 1))
        self.put("outcomes", outcomes)

    def compute(self) -> CalibrationReport:
        """Calibration over the responses of all processes.

        Raises:
            ValueError: no responses.
        """
        outcomes = self.collected("outcomes")
        if not len(outcomes):
            raise ValueError("no responses to judge the calibration of")
        values = self.collected("values").reshape(-1, self.positions)
        sums, squares = self.sums.cpu(), self.squares.cpu()
        ranking = [auroc(column, outcomes) for column in values.T]
        probability = values[:, -1].sigmoid()
        return CalibrationReport(
            responses=len(outcomes),
            right=int(outcomes.sum()),
            overall=_result(0.0, 1.0, sums.sum(0), squares.sum(), ranking[-1]),
            positions=[
                _result(i / self.positions, (i + 1) / self.positions, sums[i], squares[i], ranking[i])
                for i in range(self.positions)
            ],
            final_ece=expected_calibration_error(probability, outcomes, self.bins),
            final_brier=brier_score(probability, outcomes),
            final_auroc=ranking[-1],
        )


def _check(values: Tensor, mask: Tensor, outcomes: Tensor) -> None:
    if values.dim() != 2 or values.shape != mask.shape or outcomes.shape != values.shape[:1]:
        raise ValueError(
            f"expected values and mask [B, T] and outcomes [B], found {tuple(values.shape)}, {tuple(mask.shape)} and "
            f"{tuple(outcomes.shape)}"
        )
    if not bool(mask.any(1).all()):
        raise ValueError(f"mask: row {int((~mask.any(1)).nonzero()[0])} has no response token")
    if not bool(values[mask].isfinite().all()):
        raise ValueError(f"values: expected finite numbers, found {values[mask & ~values.isfinite()][0].item()}")
    check_outcomes(outcomes)


def _result(start: float, stop: float, sums: Tensor, squares: Tensor, ranking: float) -> CalibrationResult:
    counts, probability, outcome = sums.unbind(1)
    total = counts.sum()
    bins = len(counts)
    return CalibrationResult(
        start=start,
        stop=stop,
        tokens=int(total),
        # share of a bin times |mean probability - share of right ends| in it
        ece=float((probability - outcome).abs().sum() / total),
        brier=float(squares / total),
        auroc=ranking,
        bins=[
            ReliabilityBin(index / bins, (index + 1) / bins, int(count), float(p / count), float(right / count))
            for index, (count, p, right) in enumerate(zip(counts, probability, outcome, strict=True))
        ],
    )
