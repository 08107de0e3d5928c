from __future__ import annotations

import math

import pytest
import torch

from ipvrm_lightning import functional as F
from ipvrm_lightning.functional.policy_losses import PolicyLoss
from tests.functional.cases import padded


def inputs(seed: int = 0, rows: int = 5, length: int = 4, candidates: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, length, candidates)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    old = -normal(*shape).abs() - 0.1
    mask = torch.arange(length) < torch.tensor([length, 1, 2, 3, length][:rows]).unsqueeze(-1)
    return {
        "log_probs": old + 0.3 * normal(*shape),
        "old_log_probs": old,
        "advantages": normal(rows, length),
        "candidate_advantages": normal(*shape),
        "mask": mask,
        "candidate_mask": F.candidate_mask(old, mask, min_probability=0.3),
    }


def one(ratio: float, advantage: float, **settings: float | None) -> PolicyLoss:
    """A single token and, besides it, a single counted candidate with the same ratio and advantage."""
    old = torch.tensor([[[-1.0, -2.0]]], dtype=torch.float64)
    tokens = torch.full((1, 1), advantage, dtype=torch.float64)
    return F.distrl_loss(
        old + math.log(ratio),
        old,
        tokens,
        torch.full((1, 1, 2), advantage, dtype=torch.float64),
        torch.tensor([[True]]),
        torch.tensor([[[False, True]]]),
        **settings,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "token", "candidate"),
    [
        (1.1, 2.0, -2.2, -2.2),  # inside both ranges
        (1.25, 2.0, -2.5, -2.4),  # above the candidates' 1.2, below the tokens' 1.28
        (1.5, 2.0, -2.56, -2.4),  # above both
        (0.5, 2.0, -1.0, -1.0),  # a good token made less likely is never clipped
        (0.5, -2.0, 1.6, 1.6),  # a bad one is, at 0.8
        (2.0, -2.0, 4.0, 4.0),  # a bad one made likelier is not, up to
        (5.0, -2.0, 6.0, 6.0),  # the dual clip at 3
    ],
)
def test_surrogate_by_hand(ratio: float, advantage: float, token: float, candidate: float) -> None:
    loss = one(ratio, advantage)
    assert loss.token.item() == pytest.approx(token)
    assert loss.candidate.item() == pytest.approx(candidate)
    assert loss.total.item() == pytest.approx(token + 0.1 * candidate)
    assert loss.candidate_weight.item() == pytest.approx(math.exp(-2))
    assert loss.token_count.item() == 1


def test_clip_fractions_and_dual_clip_switched_off() -> None:
    assert one(1.25, 2.0).token_clip_fraction.item() == 0
    assert one(1.25, 2.0).candidate_clip_fraction.item() == 1
    assert one(5.0, -2.0, dual_clip=None).token.item() == pytest.approx(10)
    assert one(1.5, 2.0, distribution_coef=0.0).total.item() == pytest.approx(-2.56)


def test_the_widest_and_the_narrowest_clips() -> None:
    closed = {"clip_low": 0.0, "clip_high": 0.0, "candidate_clip": 0.0}
    assert one(1.1, 2.0, **closed).total.item() == pytest.approx(-2 * 1.1)
    assert one(0.9, -2.0, **closed).total.item() == pytest.approx(2 * 1.1)
    # A bad token that has become nearly impossible still has its own ratio.
    assert one(0.01, -2.0, clip_low=1.0, candidate_clip=1.0).total.item() == pytest.approx(0.02 * 1.1)
    assert one(5.0, -2.0, dual_clip=1.5).token.item() == pytest.approx(3)


def test_candidates_are_weighted_with_their_behaviour_probability() -> None:
    old = torch.log(torch.tensor([[[0.5, 0.2, 0.1]]], dtype=torch.float64))
    loss = F.distrl_loss(
        old,
        old,
        torch.zeros(1, 1),
        torch.tensor([[[1.0, 4.0, 100.0]]]),
        torch.tensor([[True]]),
        torch.tensor([[[True, True, False]]]),
    )
    assert loss.candidate.item() == pytest.approx(-(0.5 * 1 + 0.2 * 4) / 0.7)


def test_a_policy_equal_to_its_behaviour_has_ratio_one() -> None:
    given = inputs()
    given["log_probs"] = given["old_log_probs"].clone().requires_grad_()
    loss = F.distrl_loss(**given)
    for name in ("token_clip_fraction", "candidate_clip_fraction"):
        assert getattr(loss, name).item() == 0
    assert loss.token.item() == pytest.approx(-given["advantages"][given["mask"]].mean().item(), abs=1e-15)
    # With ratio 1 the gradient of the token part is that of plain policy gradient: -A / tokens.
    (gradient,) = torch.autograd.grad(loss.token, given["log_probs"])
    expected = torch.where(given["mask"], -given["advantages"], 0.0) / given["mask"].sum()
    torch.testing.assert_close(gradient[..., 0], expected)
    assert not gradient[..., 1:].any()


def test_gradients_agree_with_finite_differences() -> None:
    given = inputs()
    log_probs = given.pop("log_probs").requires_grad_()
    assert torch.autograd.gradcheck(lambda x: F.distrl_loss(x, **given).total, (log_probs,))


def test_only_the_policy_gets_a_gradient() -> None:
    given = inputs()
    for name in ("log_probs", "old_log_probs", "advantages", "candidate_advantages"):
        given[name] = given[name].clone().requires_grad_()
    loss = F.distrl_loss(**given)
    loss.total.backward()
    assert given["log_probs"].grad is not None
    assert all(given[name].grad is None for name in ("old_log_probs", "advantages", "candidate_advantages"))
    assert not any(value.requires_grad for value in loss[3:])


@pytest.mark.parametrize("fill", [float("nan"), float("inf"), float("-inf")])
def test_padding_and_permuting_change_nothing(fill: float) -> None:
    given = inputs()
    plain = given["log_probs"].clone().requires_grad_()
    expected = F.distrl_loss(**(given | {"log_probs": plain}))
    order = torch.tensor([3, 0, 4, 2, 1])
    names = ("log_probs", "old_log_probs", "advantages", "candidate_advantages")
    wide = {name: padded(given[name], given["mask"], fill=fill)[0][order] for name in names}
    wide["mask"] = padded(given["advantages"], given["mask"])[1][order]
    wide["candidate_mask"] = torch.nn.functional.pad(given["candidate_mask"], (0, 0, 0, 3))[order]
    wide["log_probs"].requires_grad_()
    found = F.distrl_loss(**wide)
    for name, value in expected._asdict().items():
        torch.testing.assert_close(getattr(found, name), value, msg=name)
    (wanted,) = torch.autograd.grad(expected.total, plain)
    (got,) = torch.autograd.grad(found.total, wide["log_probs"])
    torch.testing.assert_close(got[:, :4], wanted[order])
    assert not got[:, 4:].any()


def test_two_halves_weighted_by_their_divisors_make_the_whole() -> None:
    given = inputs()
    whole = F.distrl_loss(**given)
    parts = [F.distrl_loss(**{k: v[rows] for k, v in given.items()}) for rows in (slice(0, 2), slice(2, 5))]
    tokens = sum(part.token * part.token_count for part in parts) / sum(part.token_count for part in parts)
    weight = sum(part.candidate_weight for part in parts)
    candidates = sum(part.candidate * part.candidate_weight for part in parts) / weight
    torch.testing.assert_close(tokens, whole.token)
    torch.testing.assert_close(candidates, whole.candidate)


def test_without_counted_candidates_their_part_is_zero() -> None:
    given = inputs()
    given["candidate_mask"] = torch.zeros_like(given["candidate_mask"])
    given["log_probs"].requires_grad_()
    loss = F.distrl_loss(**given)
    assert loss.candidate.item() == 0
    loss.total.backward()
    assert given["log_probs"].grad is not None
    assert given["log_probs"].grad.isfinite().all()


@pytest.mark.parametrize("advantage", [2.0, -2.0])
@pytest.mark.parametrize("shift", [200.0, -200.0])
def test_a_policy_gone_far_gives_no_nan(advantage: float, shift: float) -> None:
    log_probs = torch.full((1, 1, 2), shift, requires_grad=True)
    loss = F.distrl_loss(
        log_probs,
        torch.full((1, 1, 2), -1.0),
        torch.full((1, 1), advantage),
        torch.full((1, 1, 2), advantage),
        torch.tensor([[True]]),
        torch.tensor([[[True, True]]]),
    )
    (gradient,) = torch.autograd.grad(loss.total, log_probs)
    assert loss.total.isfinite()
    assert gradient.isfinite().all()


def test_what_is_refused() -> None:
    given = inputs()
    with pytest.raises(ValueError, match=r"log_probs must be \[B, T, K\]"):
        F.distrl_loss(**(given | {"log_probs": given["advantages"]}))
    with pytest.raises(ValueError, match="old_log_probs has shape"):
        F.distrl_loss(**(given | {"old_log_probs": given["old_log_probs"][..., :1]}))
    with pytest.raises(ValueError, match="candidate_mask must be boolean"):
        F.distrl_loss(**(given | {"candidate_mask": given["candidate_mask"].float()}))
    for mask in (given["mask"].float(), given["mask"][:, :1]):
        with pytest.raises(ValueError, match=r"^mask "):
            F.distrl_loss(**(given | {"mask": mask}))
    first = {name: given[name][:, :1] for name in ("advantages", "mask")}
    for changed in (first, {"advantages": first["advantages"]}):
        with pytest.raises(ValueError, match="mask has shape"):
            F.distrl_loss(**(given | changed))
    with pytest.raises(ValueError, match="candidate_mask has shape"):
        F.candidate_kl(given["log_probs"], given["old_log_probs"], given["candidate_mask"][..., :1])
    with pytest.raises(ValueError, match="dual_clip must be above 1"):
        F.distrl_loss(**given, dual_clip=1.0)
    with pytest.raises(ValueError, match="clip_low"):
        F.distrl_loss(**given, clip_low=1.5)
    with pytest.raises(ValueError, match="clip_high"):
        F.distrl_loss(**given, clip_high=-0.1)


def test_low_variance_kl_is_unbiased_and_never_negative() -> None:
    generator = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    estimates = F.low_variance_kl(policy, reference)
    assert (estimates >= 0).all()
    divergence = (policy.exp() * (policy - reference)).sum()
    torch.testing.assert_close((policy.exp() * estimates).sum(), divergence)
    assert F.low_variance_kl(policy, policy).abs().max() == 0


def test_low_variance_kl_of_impossible_tokens_is_finite_and_moves_only_the_policy() -> None:
    policy = torch.tensor([-200.0, -1.0, 0.0], requires_grad=True)
    reference = torch.tensor([0.0, -1.5, -200.0], requires_grad=True)
    estimates = F.low_variance_kl(policy, reference)
    gradient, other = torch.autograd.grad(estimates.sum(), (policy, reference), allow_unused=True)
    assert estimates.isfinite().all() and gradient.isfinite().all()
    assert other is None


def test_candidate_kl_over_the_whole_vocabulary_is_the_divergence_with_its_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64).log_softmax(-1)
    everything = torch.ones(2, 3, 5, dtype=torch.bool)
    policy = logits.log_softmax(-1)
    divergence = (policy.exp() * (policy - reference)).sum(-1)
    found = F.candidate_kl(policy, reference, everything)
    torch.testing.assert_close(found, divergence)
    (expected,) = torch.autograd.grad(divergence.sum(), logits, retain_graph=True)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    torch.testing.assert_close(gradient, expected)


def test_candidate_kl_ignores_what_does_not_count() -> None:
    log_probs = torch.full((1, 2, 3), float("nan"))
    log_probs[0, 0, 0] = -1.0
    counted = torch.zeros(1, 2, 3, dtype=torch.bool)
    counted[0, 0, 0] = True
    reference = torch.where(counted, -2.0, float("nan"))
    expected = math.exp(-1.0) * (math.exp(-1.0) - 1 + 1.0)
    torch.testing.assert_close(F.candidate_kl(log_probs, reference, counted), torch.tensor([[expected, 0.0]]))
