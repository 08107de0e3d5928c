"""Reward-model objectives as modules: the hyper-parameters of `ipvrm_lightning.functional`, injected by config.

Each objective says what it needs per response token (`score_source`), what a batch's loss is a mean over (`unit`), and
how its scores read as the logit of "this prefix ends right" (`prefix_logits`).

Letters: B sequences, T response positions, P pairs.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any, Literal

from torch import Tensor, nn

from ipvrm_lightning import functional
from ipvrm_lightning.types import TrajectoryBatch, Unit

ScoreSource = Literal["log_ratio", "value_head", "endogenous"]


class Objective(nn.Module):
    """Base of all objectives.

    Attributes:
        beta: scale of the scores: step scores and TD advantages are `beta` times them, whatever `prefix_logits` does.
        unit: what the loss is a mean over.
        score_source: `log_ratio` (model over reference), `value_head`, or `endogenous` (the model's own logits).
        discount: of `endogenous` scores, factor on the value of the next state.
        trainable: False where scores need no training.
        balanced: whether the batch's `outcome_weights` and `margins` (Eq. 15) enter the loss.
    """

    beta: float = 1.0
    unit: Unit = "sequences"
    score_source: ScoreSource = "log_ratio"
    discount: float = 0.95
    trainable: bool = True
    balanced: bool = False

    def __init__(self) -> None:
        super().__init__()

    @property
    def pairwise(self) -> bool:
        """Whether the loss needs pairs of a right and a wrong response."""
        return self.unit == "pairs"

    def describe(self) -> dict[str, Any]:
        """Class path and hyper-parameters: primitives only, kept in checkpoints; objectives as arguments likewise.

        Raises:
            ValueError: an argument that is not kept under its name, or that a checkpoint cannot hold; names it.
        """
        own, arguments = type(self).__name__, {}
        for name, parameter in inspect.signature(type(self)).parameters.items():
            if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
                raise ValueError(f"{own}: name every argument in place of {name}, for checkpoints to keep them")
            if not hasattr(self, name):
                raise ValueError(f"{own}: keep the argument {name} as self.{name}, for checkpoints to hold it")
            arguments[name] = _plain(getattr(self, name), f"{own}: the argument {name}")
        return {"class_path": f"{type(self).__module__}.{type(self).__qualname__}", "init_args": arguments}

    @abstractmethod
    def forward(self, scores: Tensor, mask: Tensor, batch: TrajectoryBatch) -> Tensor:
        """Mean loss of a batch over `unit`.

        Args:
            scores: per-token scores of the kind `score_source`, [B, T].
            mask: response tokens, [B, T].
            batch: outcomes or pairs.
        """

    @abstractmethod
    def prefix_logits(self, scores: Tensor, mask: Tensor) -> Tensor:
        """The logit whose sigmoid reads as the probability that the prefix ends right, [B, T]."""


class IPVRM(Objective):
    """Every prefix is trained to tell the outcome (arXiv:2604.13197, Eq. 9).

    Where a batch carries outcome weights and margins of its own (online balancing, Eq. 15), they take the place of ones
    and of `margin`.

    Args:
        beta: scale of the log-ratios.
        margin: how far beyond the boundary a prefix should lie, in logits.
        reduction: `sequence` averages within a response first (the paper); `token` pools all positions of the window
            (the reference trainer).
        prefix_weighting: `uniform`, `late` (Eq. 17) or `early` (Eq. 18).
    """

    balanced = True

    def __init__(
        self,
        *,
        beta: float = 10.0,
        margin: float = 5.0,
        reduction: Literal["sequence", "token"] = "sequence",
        prefix_weighting: Literal["uniform", "late", "early"] = "uniform",
    ) -> None:
        super().__init__()
        self.beta = _above_zero(beta)
        self.margin = margin
        self.reduction = reduction
        self.prefix_weighting = prefix_weighting
        self.unit = "sequences" if reduction == "sequence" else "tokens"

    def forward(self, scores: Tensor, mask: Tensor, batch: TrajectoryBatch) -> Tensor:
        """Mean loss, see `functional.ipvrm_loss`."""
        return functional.ipvrm_loss(
            scores,
            _outcomes(batch),
            mask,
            beta=self.beta,
            margin=self.margin if batch.margins is None else batch.margins,
            reduction=self.reduction,
            prefix_weighting=self.prefix_weighting,
            outcome_weights=batch.outcome_weights,
        )

    def prefix_logits(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Mean log-ratio so far times beta: the trained quantity, [B, T]."""
        return functional.normalized_values(scores, mask, beta=self.beta)


class ImplicitPRM(Objective):
    """The sum of a response's log-ratios is trained to tell the outcome (Yuan et al., arXiv:2412.01981).

    Args:
        beta: scale of the log-ratios.
    """

    def __init__(self, *, beta: float = 0.05) -> None:
        super().__init__()
        self.beta = _above_zero(beta)

    def forward(self, scores: Tensor, mask: Tensor, batch: TrajectoryBatch) -> Tensor:
        """Mean loss, see `functional.implicit_prm_loss`."""
        return functional.implicit_prm_loss(scores, _outcomes(batch), mask, beta=self.beta)

    def prefix_logits(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Sum of log-ratios so far times beta, [B, T]."""
        return functional.prefix_values(scores, mask, beta=self.beta)


class _Pairwise(Objective):
    unit: Unit = "pairs"
    margin: float
    pooling: Literal["sum", "mean"]

    def forward(self, scores: Tensor, mask: Tensor, batch: TrajectoryBatch) -> Tensor:
        """Mean loss, see `functional.pairwise_loss`."""
        if batch.pairs is None:
            raise ValueError(f"{type(self).__name__} needs pairs: set pairwise: true in the data module")
        chosen, rejected = batch.pairs.unbind(1)
        return functional.pairwise_loss(
            scores[chosen],
            mask[chosen],
            scores[rejected],
            mask[rejected],
            beta=self.beta,
            margin=self.margin,
            pooling=self.pooling,
        )


class DPORM(_Pairwise):
    """The right response's summed log-ratio above the wrong one's (Rafailov et al., arXiv:2305.18290).

    Args:
        beta: scale of the log-ratios.
        margin: subtracted from the difference, in logits.
    """

    pooling = "sum"

    def __init__(self, *, beta: float = 0.05, margin: float = 0.0) -> None:
        super().__init__()
        self.beta = _above_zero(beta)
        self.margin = margin

    def prefix_logits(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Sum of log-ratios so far times beta, [B, T]."""
        return functional.prefix_values(scores, mask, beta=self.beta)


class QRM(_Pairwise):
    """Token values from a linear head, the right response's mean above the wrong one's (Q-RM, Chen et al. 2025).

    Args:
        beta: scale of the values.
        margin: subtracted from the difference, in logits.
    """

    score_source: ScoreSource = "value_head"
    pooling = "mean"

    def __init__(self, *, beta: float = 0.2, margin: float = 2.0) -> None:
        super().__init__()
        self.beta = _above_zero(beta)
        self.margin = margin

    def prefix_logits(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Mean token value so far times beta, [B, T]."""
        return functional.normalized_values(scores, mask, beta=self.beta)


class EndoRM(Objective):
    """Rewards from the model's own logits, no training (Li et al., arXiv:2506.23235).

    Args:
        beta: scale of the rewards.
        discount: factor on the value of the next state in the inverse soft Bellman operator.
    """

    score_source: ScoreSource = "endogenous"
    trainable = False

    def __init__(self, *, beta: float = 1.0, discount: float = 0.95) -> None:
        super().__init__()
        self.beta = _above_zero(beta)
        self.discount = discount

    def forward(self, scores: Tensor, mask: Tensor, batch: TrajectoryBatch) -> Tensor:
        """EndoRM has no loss.

        Raises:
            ValueError: always.
        """
        raise ValueError("EndoRM is not trained: use `ipvrm test`, `validate` or `predict`")

    def prefix_logits(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Mean reward so far times beta, [B, T]."""
        return functional.normalized_values(scores, mask, beta=self.beta)


def _above_zero(beta: float) -> float:
    """At 0 nothing would be learned or read, below it a right prefix would have the smaller log-ratio."""
    if not beta > 0:
        raise ValueError(f"beta must be above 0, not {beta}")
    return beta


def build_objective(described: Mapping[str, Any]) -> Objective:
    """The objective that `Objective.describe` told of.

    Args:
        described: class path and arguments.

    Raises:
        ValueError: the class is no objective: others, called, may do anything.
    """
    kind = resolve_name(described["class_path"])
    if not (isinstance(kind, type) and issubclass(kind, Objective)):
        raise ValueError("it is no objective")
    return kind(**_built(described["init_args"]))


def _built(value: Any) -> Any:
    """An argument as `_plain` found it."""
    if isinstance(value, Mapping):
        return build_objective(value) if "class_path" in value else {name: _built(one) for name, one in value.items()}
    return [_built(one) for one in value] if isinstance(value, list) else value


def _plain(value: Any, what: str) -> Any:
    """An argument as a checkpoint holds it."""
    if isinstance(value, Objective):
        return value.describe()
    if isinstance(value, Mapping):
        return {name: _plain(one, what) for name, one in value.items()}
    if type(value) in (list, tuple, nn.ModuleList):
        return (tuple if isinstance(value, tuple) else list)(_plain(one, what) for one in value)
    if value is not None and type(value) not in (bool, int, float, str):
        kind = type(value).__name__
        raise ValueError(f"{what} is a {kind}, which checkpoints cannot hold: take numbers, text, lists or objectives")
    return value


def _outcomes(batch: TrajectoryBatch) -> Tensor:
    if batch.outcomes is None:
        raise ValueError("this objective needs outcomes, and the batch has none")
    return batch.outcomes
