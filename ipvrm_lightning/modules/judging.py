"""`Judge`: hands each test batch to the metrics it can feed, and reduces them to reports."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ipvrm_lightning import functional
from ipvrm_lightning.data.dataset import TrajectoryDataset
from ipvrm_lightning.metrics import BestOfN, PrefixCalibration, PrefixTruth, StepF1
from ipvrm_lightning.metrics.best_of_n import rollout_scores
from ipvrm_lightning.models.token_scores import steps_by_protocol
from ipvrm_lightning.types import ScoredSolution, TrajectoryBatch

#: More than a data set has, so that no two sets share a number.
_ROWS = 2**40


class Judge(nn.Module):
    """Metrics of a test run.

    Solutions with a known first wrong step feed the step F1, prefixes with a known value the prefix truth, and rollouts
    with outcomes best-of-n and calibration.

    Args:
        threshold: fixed threshold of the step F1, beside the oracle and the cross-fitted one.
    """

    def __init__(self, *, threshold: float | None = None) -> None:
        super().__init__()
        self.step_f1 = StepF1(fixed_threshold=threshold)
        self.best_of_n = BestOfN()
        self.calibration = PrefixCalibration()
        self.prefix_truth = PrefixTruth()
        self.fed: set[str] = set()

    def update(
        self,
        scores: Tensor,
        logits: Tensor,
        mask: Tensor,
        batch: TrajectoryBatch,
        metadata: list[dict[str, Any]],
        *,
        beta: float,
        test_set: int = 0,
    ) -> None:
        """Add a batch.

        Args:
            scores: per-token scores, [B, T].
            logits: logit that the prefix ends right, [B, T].
            mask: response tokens, [B, T].
            batch: what is known of each row.
            metadata: of each row.
            beta: scale of the scores.
            test_set: number of the data set that the batch is of: rows and problems are numbered anew in each.

        Raises:
            ValueError: the batch carries nothing to judge by.
        """
        finals = logits.gather(1, (batch.response_lengths - 1)[:, None]).squeeze(1)
        if batch.step_labels is not None:
            steps = steps_by_protocol(scores, batch, beta)
            self.fed.add("step_f1")
            self.step_f1.update(_solutions(steps, finals, batch.step_labels, metadata))
        elif batch.true_values is not None:
            self.fed.add("prefix_truth")
            groups, first = batch.group_ids, test_set * _ROWS
            ids = {"solution_ids": batch.index + first, "group_ids": None if groups is None else groups + first}
            self.prefix_truth.update(logits, batch.true_values, **ids)
        elif batch.outcomes is not None:
            self.fed |= {"best_of_n", "calibration"}
            self.calibration.update(logits, mask, batch.outcomes)
            self._update_best_of_n(scores, finals, batch, metadata, beta)
        else:
            raise ValueError("test data needs step labels, outcomes or true values; this batch has none")

    def compute(self, fed: set[str]) -> dict[str, Any]:
        """Reports over all processes.

        Args:
            fed: names of the metrics that any process has fed, the same on every process: computing waits for all.
        """
        return {name: metric.compute() for name, metric in self.metrics().items() if name in fed}

    def metrics(self) -> dict[str, Any]:
        """All metrics by name."""
        return dict(self.named_children())

    @property
    def solutions(self) -> list[ScoredSolution]:
        """Solutions this process has scored."""
        return self.step_f1.solutions()

    def reset(self) -> None:
        """Forget everything."""
        self.fed.clear()
        for metric in self.metrics().values():
            metric.reset()

    def _update_best_of_n(
        self, scores: Tensor, finals: Tensor, batch: TrajectoryBatch, metadata: list[dict[str, Any]], beta: float
    ) -> None:
        if batch.step_ids is None:
            ways = {"final_value": finals.double()}
        else:
            steps = functional.step_scores(scores.cpu(), batch.step_ids.cpu(), protocol="step_sum", beta=beta)
            ways = rollout_scores(finals, [row.tolist() for row in steps])
        answers = [record.get("answer") for record in metadata]
        assert batch.outcomes is not None
        self.best_of_n.update(ways, batch.outcomes, [record["prompt"] for record in metadata], answers)


def check_metadata(dataset: TrajectoryDataset) -> None:
    """Refuse a test set that lacks what its reports tell examples apart by, before a model is loaded.

    Args:
        dataset: to be judged.

    Raises:
        ValueError: names the example and the keys of its metadata.
    """
    needed: tuple[str, ...] = ()
    if dataset.step_labels is not None:
        needed = ("id", "subset", "problem", "step_lengths")
    elif dataset.outcomes is not None and dataset.response_field(0, "true_values") is None:
        needed = ("prompt",)
    for row in range(len(dataset)):
        missing = [key for key in needed if key not in dataset.metadata(row)]
        if missing:
            raise ValueError(f"test example {row}: its metadata has no {', '.join(missing)}, which testing needs")


def _solutions(
    steps: dict[str, list[list[float]]], finals: Tensor, labels: Tensor, metadata: list[dict[str, Any]]
) -> list[ScoredSolution]:
    return [
        ScoredSolution(
            id=record["id"],
            subset=record["subset"],
            problem=record["problem"],
            label=label,
            step_scores={protocol: scores[row] for protocol, scores in steps.items()},
            step_lengths=record["step_lengths"],
            final_answer_correct=record.get("final_answer_correct"),
            final_value=final,
            shared_problem=record.get("shared_problem"),
        )
        for row, (record, label, final) in enumerate(zip(metadata, labels.tolist(), finals.tolist(), strict=True))
    ]
