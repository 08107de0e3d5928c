from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ipvrm_lightning import functional as F
from tests.functional.cases import padded, random_case


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


# Ratios 1, 0, -1 with beta 6 have V = 6, 6, 0 and V/t = 6, 3, 0; with margin 1 the losses of a right answer are
# softplus(1 - V/t); the second answer is wrong, one token long, V/t = -3, its loss softplus(1 - 3).
RATIOS = torch.tensor([[1.0, 0.0, -1.0], [-0.5, 7.0, 7.0]], dtype=torch.float64)
MASK = torch.tensor([[True, True, True], [True, False, False]])
OUTCOMES = torch.tensor([1, 0])
FIRST = [softplus(-5), softplus(-2), softplus(1)]
SECOND = softplus(-2)


@pytest.mark.parametrize(
    ("weighting", "weights"),
    [("uniform", [1 / 3, 1 / 3, 1 / 3]), ("late", [1 / 6, 2 / 6, 3 / 6]), ("early", [2 / 3, 1 / 3, 0.0])],
)
def test_prefix_weighting_by_hand(weighting: str, weights: list[float]) -> None:
    first = sum(weight * loss for weight, loss in zip(weights, FIRST, strict=True))
    settings = {"beta": 6.0, "margin": 1.0, "prefix_weighting": weighting}
    assert F.ipvrm_loss(RATIOS, OUTCOMES, MASK, **settings).item() == pytest.approx((first + SECOND) / 2)
    pooled = F.ipvrm_loss(RATIOS, OUTCOMES, MASK, reduction="token", **settings)
    assert pooled.item() == pytest.approx((3 * first + SECOND) / 4)
    assert F.prefix_weights(MASK, weighting)[0].tolist() == pytest.approx(weights)
    assert F.prefix_weights(MASK, weighting)[1].tolist() == [1, 0, 0]


def test_early_weights_of_two_tokens_lie_on_the_first() -> None:
    assert F.prefix_weights(torch.tensor([[True, True]]), "early").tolist() == [[1, 0]]


def test_margins_and_weights_per_sequence_by_hand() -> None:
    loss = F.ipvrm_loss(
        RATIOS,
        OUTCOMES,
        MASK,
        beta=6.0,
        margin=torch.tensor([0.0, 5.0]),
        outcome_weights=torch.tensor([0.5, 3.0]),
    )
    first = (softplus(-6) + softplus(-3) + softplus(0)) / 3
    assert loss.item() == pytest.approx((0.5 * first + 3 * softplus(2)) / 2)


def test_token_reduction_weights_each_position_with_its_sequence() -> None:
    loss = F.ipvrm_loss(
        RATIOS, OUTCOMES, MASK, beta=6.0, margin=1.0, reduction="token", outcome_weights=torch.tensor([2.0, 0.5])
    )
    assert loss.item() == pytest.approx((2 * sum(FIRST) + 0.5 * SECOND) / 4)


def test_implicit_prm_and_pairwise_by_hand() -> None:
    # Sums 0 and -0.5.
    loss = F.implicit_prm_loss(RATIOS, OUTCOMES, MASK, beta=2.0)
    assert loss.item() == pytest.approx((math.log(2) + softplus(-1)) / 2)
    sides = (RATIOS[:1], MASK[:1], RATIOS[1:, :2], MASK[1:, :2])
    assert F.pairwise_loss(*sides, beta=2.0).item() == pytest.approx(softplus(-1))
    late = (RATIOS[:1] + 2, MASK[:1], RATIOS[1:], MASK[1:])
    assert F.pairwise_loss(*late, beta=0.2, margin=2.0, pooling="mean").item() == pytest.approx(softplus(2 - 0.5))


def ipvrm(reduction: str, weighting: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def loss(ratios: Tensor, outcomes: Tensor, mask: Tensor) -> Tensor:
        return F.ipvrm_loss(
            ratios, outcomes, mask, beta=3.0, margin=0.7, reduction=reduction, prefix_weighting=weighting
        )

    return loss


def implicit(ratios: Tensor, outcomes: Tensor, mask: Tensor) -> Tensor:
    return F.implicit_prm_loss(ratios, outcomes, mask, beta=0.5)


def pairs(pooling: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def loss(ratios: Tensor, outcomes: Tensor, mask: Tensor) -> Tensor:
        better, worse = slice(0, None, 2), slice(1, None, 2)
        sides = (ratios[better], mask[better], ratios[worse], mask[worse])
        return F.pairwise_loss(*sides, beta=0.5, margin=0.3, pooling=pooling)

    return loss


LOSSES = {
    "sequence": ipvrm("sequence", "uniform"),
    "token": ipvrm("token", "uniform"),
    "late": ipvrm("sequence", "late"),
    "early": ipvrm("token", "early"),
    "implicit": implicit,
    "pairs_sum": pairs("sum"),
    "pairs_mean": pairs("mean"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    case = random_case(length=4)
    ratios = case.ratios.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, case.outcomes, case.mask), (ratios,))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("fill", [float("nan"), float("inf"), 1e4])
def test_padding_changes_neither_loss_nor_gradient(name: str, fill: float) -> None:
    case = random_case()
    plain = case.ratios.clone().requires_grad_()
    ratios, mask = padded(case.ratios, case.mask, fill=fill)
    ratios.requires_grad_()
    expected, found = LOSSES[name](plain, case.outcomes, case.mask), LOSSES[name](ratios, case.outcomes, mask)
    torch.testing.assert_close(found, expected)
    (wanted,), (got,) = torch.autograd.grad(expected, plain), torch.autograd.grad(found, ratios)
    torch.testing.assert_close(got[:, :7], wanted)
    assert not got[~mask].any()


@pytest.mark.parametrize("name", LOSSES)
def test_permuting_changes_nothing(name: str) -> None:
    case = random_case()
    # Pairs stay pairs: rows (0, 1), (2, 3), (4, 5) move together.
    order = torch.tensor([4, 5, 0, 1, 2, 3])
    expected = LOSSES[name](case.ratios, case.outcomes, case.mask)
    found = LOSSES[name](case.ratios[order], case.outcomes[order], case.mask[order])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_the_loss_of_a_batch_is_the_mean_of_those_of_its_parts(reduction: str) -> None:
    case = random_case()
    loss = ipvrm(reduction, "late")
    parts = []
    for rows in (slice(0, 2), slice(2, 3), slice(3, 6)):
        mask = case.mask[rows]
        share = len(mask) / 6 if reduction == "sequence" else mask.sum() / case.mask.sum()
        parts.append(loss(case.ratios[rows], case.outcomes[rows], mask) * share)
    torch.testing.assert_close(torch.stack(parts).sum(), loss(case.ratios, case.outcomes, case.mask))


def test_rows_without_a_token_do_not_count() -> None:
    case = random_case()
    ratios = torch.cat((case.ratios, torch.full((2, 7), float("nan"))))
    mask = torch.cat((case.mask, torch.zeros(2, 7).bool()))
    outcomes = torch.cat((case.outcomes, torch.zeros(2)))
    for name in ("sequence", "token", "late", "early", "implicit", "pairs_sum", "pairs_mean"):
        torch.testing.assert_close(
            LOSSES[name](ratios, outcomes, mask), LOSSES[name](case.ratios, case.outcomes, case.mask)
        )


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_a_token_has_no_loss(name: str) -> None:
    assert LOSSES[name](torch.full((2, 3), float("nan")), OUTCOMES, torch.zeros(2, 3).bool()).item() == 0


def test_a_batch_of_one_token_by_hand() -> None:
    for reduction in ("sequence", "token"):
        loss = ipvrm(reduction, "uniform")(RATIOS[:1, :1], OUTCOMES[:1], MASK[:1, :1])
        assert loss.item() == pytest.approx(softplus(0.7 - 3))


@pytest.mark.parametrize("empty", [0, 1])
def test_a_pair_counts_where_both_sides_have_a_token(empty: int) -> None:
    ratios = RATIOS + 1
    alone = F.pairwise_loss(ratios[:1], MASK[:1], ratios[1:], MASK[1:], beta=2.0)
    twice = [row.expand(2, -1) for row in ratios]
    masks = [row.expand(2, -1).clone() for row in MASK]
    masks[empty][1] = False
    torch.testing.assert_close(F.pairwise_loss(twice[0], masks[0], twice[1], masks[1], beta=2.0), alone)


def test_extreme_ratios_stay_finite() -> None:
    ratios = torch.tensor([[1e4, 1e4], [-1e4, -1e4]], requires_grad=True)
    loss = F.ipvrm_loss(ratios, torch.tensor([0, 1]), torch.ones(2, 2).bool(), beta=10.0, margin=5.0)
    (gradient,) = torch.autograd.grad(loss, ratios)
    assert loss.item() == pytest.approx(1e5, rel=1e-3)
    assert gradient.isfinite().all()


def test_what_is_refused() -> None:
    def loss(**changes: object) -> Tensor:
        settings = {"beta": 1.0, "margin": 1.0} | changes
        outcomes = settings.pop("outcomes", OUTCOMES)
        return F.ipvrm_loss(RATIOS, outcomes, MASK, **settings)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="reduction must be one of sequence, token, found 'sum'"):
        loss(reduction="sum")
    with pytest.raises(ValueError, match="prefix_weighting must be one of uniform, late, early, found 'middle'"):
        loss(prefix_weighting="middle")
    with pytest.raises(ValueError, match="outcomes must be 0 or 1"):
        loss(outcomes=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match=r"margin has shape \(3,\)"):
        loss(margin=torch.ones(3))
    with pytest.raises(ValueError, match="outcome_weights has shape"):
        loss(outcome_weights=torch.ones(1))
    with pytest.raises(ValueError, match="mask must be boolean"):
        F.implicit_prm_loss(RATIOS, OUTCOMES, MASK.long(), beta=1.0)
    with pytest.raises(ValueError, match="pooling must be one of sum, mean"):
        F.pairwise_loss(RATIOS, MASK, RATIOS, MASK, beta=1.0, pooling="max")
    with pytest.raises(ValueError, match="1 chosen for 2 rejected"):
        F.pairwise_loss(RATIOS[:1], MASK[:1], RATIOS, MASK, beta=1.0)
