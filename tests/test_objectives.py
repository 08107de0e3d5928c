from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ipvrm_lightning.models import RandomLanguageModel
from ipvrm_lightning.modules import IPVRMModule
from ipvrm_lightning.objectives import DPORM, IPVRM, QRM, EndoRM, ImplicitPRM, Objective, build_objective
from ipvrm_lightning.types import TrajectoryBatch

SCORES = torch.tensor([[0.2, 0.4, 0.0], [0.1, -0.3, 0.5]], dtype=torch.float64)
MASK = torch.tensor([[True, True, False], [True, True, True]])


def batch(**fields: torch.Tensor) -> TrajectoryBatch:
    return TrajectoryBatch(
        torch.zeros(2, 4, dtype=torch.long), torch.tensor([3, 4]), torch.ones(2).long(), torch.arange(2), **fields
    )


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


OUTCOMES = batch(outcomes=torch.tensor([1.0, 0.0]))
BALANCED = batch(
    outcomes=torch.tensor([1.0, 0.0]), outcome_weights=torch.tensor([0.5, 3.0]), margins=torch.tensor([0.0, 5.0])
)
PAIRS = batch(pairs=torch.tensor([[1, 0]]))

# by hand: sums are 0.6 and 0.3, running means 0.2, 0.3 and 0.1, -0.1, 0.1
CASES: list[tuple[Objective, TrajectoryBatch, float]] = [
    (ImplicitPRM(beta=2.0), OUTCOMES, (softplus(-1.2) + softplus(0.6)) / 2),
    (DPORM(beta=2.0, margin=0.5), PAIRS, softplus(-(0.6 - 1.2 - 0.5))),
    (QRM(beta=2.0, margin=0.5), PAIRS, softplus(-(0.2 - 0.6 - 0.5))),
    (
        IPVRM(beta=2.0, margin=1.0),
        OUTCOMES,
        ((softplus(0.6) + softplus(0.4)) / 2 + (softplus(1.2) + softplus(0.8) + softplus(1.2)) / 3) / 2,
    ),
    (
        IPVRM(beta=2.0, margin=1.0),
        BALANCED,
        (0.5 * (softplus(-0.4) + softplus(-0.6)) / 2 + 3 * (softplus(5.2) + softplus(4.8) + softplus(5.2)) / 3) / 2,
    ),
    (
        IPVRM(beta=2.0, margin=1.0, reduction="token"),
        OUTCOMES,
        (softplus(0.6) + softplus(0.4) + softplus(1.2) + softplus(0.8) + softplus(1.2)) / 5,
    ),
    (
        IPVRM(beta=2.0, margin=1.0, prefix_weighting="late"),
        OUTCOMES,
        ((softplus(0.6) + 2 * softplus(0.4)) / 3 + (softplus(1.2) + 2 * softplus(0.8) + 3 * softplus(1.2)) / 6) / 2,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: type(case[0]).__name__)
def test_loss_equals_the_number_worked_out_by_hand(case: tuple[Objective, TrajectoryBatch, float]) -> None:
    objective, rows, expected = case
    assert objective(SCORES, MASK, rows).item() == pytest.approx(expected, abs=1e-12)


def test_prefix_logits_are_what_each_objective_trains() -> None:
    means = torch.tensor([0.1, -0.1, 0.1], dtype=torch.float64)
    sums = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
    for objective, expected in (
        (IPVRM(beta=3.0), 3 * means),
        (QRM(beta=3.0), 3 * means),
        (EndoRM(beta=3.0), 3 * means),
        (ImplicitPRM(beta=3.0), 3 * sums),
        (DPORM(beta=3.0), 3 * sums),
    ):
        torch.testing.assert_close(objective.prefix_logits(SCORES, MASK)[1], expected, rtol=0, atol=1e-12)


def test_published_numbers_are_the_defaults() -> None:
    assert (IPVRM().beta, IPVRM().margin, IPVRM().reduction) == (10.0, 5.0, "sequence")
    assert (ImplicitPRM().beta, DPORM().beta, DPORM().margin) == (0.05, 0.05, 0.0)
    assert (QRM().beta, QRM().margin, EndoRM().beta, EndoRM().discount) == (0.2, 2.0, 1.0, 0.95)


@pytest.mark.parametrize("kind", [IPVRM, ImplicitPRM, DPORM, QRM, EndoRM])
def test_a_scale_that_would_teach_nothing_or_the_contrary_is_refused(kind: Any) -> None:
    for beta in (0.0, -0.05, float("nan")):
        with pytest.raises(ValueError, match="beta must be above 0, not"):
            kind(beta=beta)


def test_missing_labels_are_named() -> None:
    with pytest.raises(ValueError, match="needs outcomes"):
        IPVRM()(SCORES, MASK, PAIRS)
    with pytest.raises(ValueError, match="DPORM needs pairs: set pairwise: true"):
        DPORM()(SCORES, MASK, OUTCOMES)


def test_units() -> None:
    objectives = (IPVRM(), IPVRM(reduction="token"), ImplicitPRM(), DPORM(), QRM())
    assert [o.unit for o in objectives] == ["sequences", "tokens", "sequences", "pairs", "pairs"]
    assert [o.pairwise for o in objectives] == [False, False, False, True, True]
    assert [o.balanced for o in objectives] == [True, True, False, False, False]
    assert [o.trainable for o in (*objectives, EndoRM())] == [True] * 5 + [False]


def test_scores_of_an_objective_without_a_scale_are_read_as_they_are() -> None:
    class Unscaled(Objective):
        pass

    assert Unscaled().beta == 1.0 and Unscaled().describe()["init_args"] == {}


class Mixed(Objective):
    def __init__(self, *, parts: list[Objective], first: Objective, weights: tuple[float, ...] = (0.5, 0.5)) -> None:
        super().__init__()
        self.first, self.weights = first, weights
        self.parts = torch.nn.ModuleList(parts)


def test_objectives_as_arguments_are_described_and_made_again() -> None:
    mixed = Mixed(parts=[DPORM(beta=3.0)], first=IPVRM(margin=1.0))
    described = mixed.describe()
    arguments = {"parts": [DPORM(beta=3.0).describe()], "first": IPVRM(margin=1.0).describe(), "weights": (0.5, 0.5)}
    assert described == {"class_path": f"{__name__}.Mixed", "init_args": arguments}
    again = build_objective(described)
    assert again.first.describe() == arguments["first"] and again.parts[0].beta == 3.0


class ByName(Objective):
    def __init__(self, *, parts: dict[str, Any]) -> None:
        super().__init__()
        self.parts = parts


def test_objectives_in_a_mapping_are_described_and_made_again() -> None:
    described = ByName(parts={"first": QRM(beta=3.0), "weight": 0.5, "more": [1, None]}).describe()
    assert described["init_args"] == {"parts": {"first": QRM(beta=3.0).describe(), "weight": 0.5, "more": [1, None]}}
    again = build_objective(described).parts
    assert isinstance(again["first"], QRM) and again["first"].beta == 3.0
    assert {name: again[name] for name in ("weight", "more")} == {"weight": 0.5, "more": [1, None]}


@pytest.mark.parametrize("path", ["builtins.print", "builtins.dict", "torch.nn.Linear", "torch.pi"])
def test_nothing_but_an_objective_is_called(path: str) -> None:
    with pytest.raises(ValueError, match="it is no objective"):
        build_objective({"class_path": path, "init_args": {}})


class Renamed(IPVRM):
    def __init__(self, *, focus: float = 2.0) -> None:
        super().__init__(margin=focus)


class Open(IPVRM):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class Filed(IPVRM):
    def __init__(self, *, table: Path = Path("x")) -> None:
        super().__init__()
        self.table = table


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Renamed, r"Renamed: keep the argument focus as self\.focus"),
        (Open, "Open: name every argument in place of kwargs"),
        (Filed, "Filed: the argument table is a PosixPath, which checkpoints cannot hold"),
    ],
)
def test_an_objective_that_no_checkpoint_can_hold_is_refused(kind: type[Objective], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IPVRMModule(language_model=RandomLanguageModel(config={"model_type": "qwen3"}), objective=kind())
