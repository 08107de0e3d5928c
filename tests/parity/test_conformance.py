"""The package against an independent implementation: inputs, outputs and gradients kept as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ipvrm_lightning import functional as F

CASES = range(3)
EXACT = {"rtol": 0.0, "atol": 1e-6}


@pytest.fixture(scope="module")
def files(shared_dir: Path) -> list[Path]:
    found = sorted((shared_dir / "conformance").glob("case_*.json"))
    assert len(found) == len(CASES)
    return found


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, files: list[Path]) -> dict[str, Any]:
    return json.loads(files[request.param].read_text())


def real(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def boolean(values: Any) -> Tensor:
    return torch.tensor(values).bool()


def assert_loss(loss: Tensor, variable: Tensor, expected: float, gradient: Any) -> None:
    (found,) = torch.autograd.grad(loss, variable)
    torch.testing.assert_close(loss.detach(), real(expected), **EXACT)
    torch.testing.assert_close(found, real(gradient), **EXACT)


def test_objectives(case: dict[str, Any]) -> None:
    part = case["objectives"]
    mask, outcomes = boolean(part["mask"]), real(part["labels"])
    half = len(outcomes) // 2
    seen = []
    for entry in part["cases"]:
        ratios = real(part["log_ratio"]).requires_grad_()
        beta, margin, name = entry["beta"], entry["margin"], entry["objective"]
        if name == "ipvrm":
            loss = F.ipvrm_loss(ratios, outcomes, mask, beta=beta, margin=margin, reduction="token")
        elif name == "implicit_prm":
            loss = F.implicit_prm_loss(ratios, outcomes, mask, beta=beta)
        else:
            pooling = {"bt_sum": "sum", "bt_mean": "mean"}[name]
            sides = (ratios[:half], mask[:half], ratios[half:], mask[half:])
            loss = F.pairwise_loss(*sides, beta=beta, margin=margin, pooling=pooling)
        assert_loss(loss, ratios, entry["loss"], entry["grad"])
        seen.append(name)
    assert seen == ["ipvrm"] * 3 + ["implicit_prm"] * 2 + ["bt_sum"] * 2 + ["bt_mean"]


def test_values_through_the_metrics_of_ipvrm(case: dict[str, Any]) -> None:
    part = case["objectives"]
    mask, right = boolean(part["mask"]), boolean(part["labels"]).unsqueeze(-1)
    entries = [entry for entry in part["cases"] if entry["objective"] == "ipvrm"]
    assert len(entries) == 3
    for entry in entries:
        values = F.normalized_values(real(part["log_ratio"]), mask, beta=entry["beta"])
        final = values[F.last_positions(mask)]
        found = {
            "prefix_accuracy": F.masked_mean(((values > 0) == right).double(), mask),
            "positive_score": final[right.squeeze(-1)].mean(),
            "negative_score": final[~right.squeeze(-1)].mean(),
        }
        assert set(found) == set(entry["metrics"])
        for name, value in found.items():
            torch.testing.assert_close(value, real(entry["metrics"][name]), **EXACT)


def test_online_balancing(case: dict[str, Any]) -> None:
    part = case["online"]
    mask, outcomes, groups = boolean(part["mask"]), real(part["outcomes"]), torch.tensor(part["group"])
    assert len(part["cases"]) == 4
    for entry in part["cases"]:
        balance = F.balance_outcomes(
            outcomes,
            groups,
            margin=part["base_margin"],
            adaptive_difficulty_boundary=entry["adaptive_difficulty_boundary"],
            dynamic_loss_weighting=entry["dynamic_loss_weighting"],
        )
        torch.testing.assert_close(balance.weights, real(entry["weight"]), **EXACT)
        torch.testing.assert_close(balance.margins, real(entry["margin"]), **EXACT)
        ratios = real(part["log_ratio"]).requires_grad_()
        loss = F.ipvrm_loss(
            ratios, outcomes, mask, beta=part["beta"], margin=balance.margins, outcome_weights=balance.weights
        )
        assert_loss(loss, ratios, entry["loss"], entry["grad"])


def test_candidates(case: dict[str, Any]) -> None:
    part = case["candidates"]
    logits, sampled = real(part["logits"]), torch.tensor(part["sampled_ids"])
    indices = F.select_candidates(logits, sampled, part["top_k"])
    assert indices.tolist() == part["indices"]
    log_probs = logits.log_softmax(-1).gather(-1, indices)
    torch.testing.assert_close(log_probs, real(part["old_log_probs"]), **EXACT)
    assert len(part["cases"]) == 4
    for entry in part["cases"]:
        counted = F.candidate_mask(log_probs, boolean(part["mask"]), min_probability=entry["min_probability"])
        assert counted.tolist() == entry["candidate_mask"]


def test_advantages_of_a_minibatch(case: dict[str, Any]) -> None:
    part = case["advantages_minibatch"]
    outcomes, mask = real(part["outcomes"]), boolean(part["mask"])
    assert len(part["cases"]) == 2
    for entry in part["cases"]:
        found = F.distrl_advantages(
            real(part["candidate_td"]),
            outcomes,
            torch.arange(len(outcomes)) // part["group_size"],
            mask,
            discount=entry["gamma"],
            gae_lambda=entry["lambda"],
            outcome_coef=entry["outcome_coef"],
            gae_coef=entry["gae_coef"],
            normalization="minibatch",
        )
        torch.testing.assert_close(found.tokens, real(entry["advantages"]), rtol=0.0, atol=1e-5)
        torch.testing.assert_close(found.candidates, real(entry["candidate_advantages"]), rtol=0.0, atol=1e-5)


def test_policy_loss(case: dict[str, Any]) -> None:
    part = case["policy_loss"]
    log_probs = real(part["new_log_probs"]).requires_grad_()
    loss = F.distrl_loss(
        log_probs,
        real(part["old_log_probs"]),
        real(part["advantages"]),
        real(part["candidate_advantages"]),
        boolean(part["mask"]),
        boolean(part["candidate_mask"]),
        clip_low=part["clip_low"],
        clip_high=part["clip_high"],
        candidate_clip=part["candidate_clip"],
        dual_clip=part["dual_clip"],
        distribution_coef=0.1,
    )
    expected = {
        "token": part["token_loss"],
        "candidate": part["candidate_loss"],
        "token_clip_fraction": part["token_clip_fraction"],
        "candidate_clip_fraction": part["candidate_clip_fraction"],
    }
    for name, value in expected.items():
        torch.testing.assert_close(getattr(loss, name).detach(), real(value), **EXACT, msg=name)
    assert_loss(loss.total, log_probs, part["total_loss_alpha_0.1"], part["grad_new_log_probs"])


def scores_of(sample: dict[str, Any], protocol: str) -> list[float]:
    """Sigmoid scores through tokens: each step's sum spread evenly over its tokens."""
    sums, counts = real(sample["step_reward"]), torch.tensor(sample["step_tokens"])
    steps = torch.repeat_interleave(torch.arange(len(counts)), counts)
    scores = F.step_scores((sums / counts)[steps], steps, protocol=protocol)
    assert isinstance(scores, Tensor)
    return scores.sigmoid().tolist()


def test_step_f1(case: dict[str, Any]) -> None:
    part = case["step_f1"]
    labels = [sample["label"] for sample in part["samples"]]
    grid = torch.linspace(part["grid"]["low"], part["grid"]["high"], part["grid"]["count"], dtype=torch.float64)
    assert {entry["protocol"] for entry in part["cases"]} == set(F.PROTOCOLS)
    for entry in part["cases"]:
        scores = [scores_of(sample, entry["protocol"]) for sample in part["samples"]]
        best = F.best_threshold(scores, labels)
        assert best.f1 == pytest.approx(entry["exact_f1"], abs=1e-6)
        assert F.step_f1_at(scores, labels, best.threshold) == best
        there = F.step_f1_at(scores, labels, entry["exact_threshold"])
        assert there.f1 == pytest.approx(entry["exact_f1"], abs=1e-6)
        assert there.correct_accuracy == pytest.approx(entry["exact_correct_accuracy"], abs=1e-6)
        assert there.error_accuracy == pytest.approx(entry["exact_error_accuracy"], abs=1e-6)
        on_grid = [F.step_f1_at(scores, labels, threshold).f1 for threshold in grid.tolist()]
        assert max(on_grid) == pytest.approx(entry["grid_f1"], abs=1e-6)
