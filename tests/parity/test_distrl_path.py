"""The conformance cases once more, through what `DistRLModule` runs: a model, micro-batches, shares that add up."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from ipvrm_lightning import functional as F
from ipvrm_lightning.models.candidates import BehaviorScores, Candidates, behavior_scores
from ipvrm_lightning.modules import policy_loss as path
from ipvrm_lightning.modules.distrl_settings import PolicyUpdate
from ipvrm_lightning.modules.experience import ScoredBatch, set_advantages, totals
from ipvrm_lightning.modules.processes import Processes
from ipvrm_lightning.types import TrajectoryBatch

ONE = Processes(0, 1, torch.device("cpu"))
EXACT = {"rtol": 0.0, "atol": 1e-6}


@pytest.fixture(params=[0, 1, 2])
def case(request: pytest.FixtureRequest, shared_dir: Path) -> dict[str, Any]:
    return json.loads((shared_dir / "conformance" / f"case_{request.param}.json").read_text())


def real(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class LogitsModel(nn.Module):
    """A language model whose hidden states are given logits, and whose head is the identity."""

    base_model_prefix = "model"

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(logits.shape[-1], logits.shape[-1], bias=False, dtype=logits.dtype)
        self.head.weight.data = torch.eye(logits.shape[-1], dtype=logits.dtype)
        self.config = PretrainedConfig()
        # one prompt token: the state at position t predicts response token t
        self.model = lambda input_ids, use_cache: SimpleNamespace(
            last_hidden_state=torch.nn.functional.pad(logits, (0, 0, 0, 1))
        )

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    get_input_embeddings = get_output_embeddings  # tied


def batch_of(sampled: Tensor, mask: Tensor) -> TrajectoryBatch:
    rows = len(sampled)
    ids = torch.cat([torch.zeros(rows, 1, dtype=torch.long), sampled], dim=1)
    return TrajectoryBatch(ids, mask.sum(1) + 1, torch.ones(rows, dtype=torch.long), torch.arange(rows))


def test_candidates_of_a_model(case: dict[str, Any]) -> None:
    part = case["candidates"]
    mask, sampled = torch.tensor(part["mask"]).bool(), torch.tensor(part["sampled_ids"])
    logits, indices, expected = real(part["logits"]), torch.tensor(part["indices"]), real(part["old_log_probs"])
    longest = int(mask.sum(1).max())
    for entry in part["cases"]:
        found = behavior_scores(
            LogitsModel(logits),
            batch_of(sampled, mask),
            top_k=part["top_k"],
            min_probability=entry["min_probability"],
            chunk_size=4,
        )
        counted = torch.tensor(entry["candidate_mask"])
        for row, position in mask[:, :longest].nonzero().tolist():
            own = found.candidates.mask[row, position]
            there = counted[row, position]
            assert found.candidates.ids[row, position][own].tolist() == indices[row, position][there].tolist()
            torch.testing.assert_close(found.log_probs[row, position][own], expected[row, position][there], **EXACT)


def micro_batches(old: Tensor, mask: Tensor, counted: Tensor, outcomes: Tensor, groups: Tensor) -> list[ScoredBatch]:
    """Rows in batches of three, two and one, each as wide as it needs to be."""
    parts = []
    for rows in ([0, 4, 2], [5, 1], [3]):
        length = int(mask[rows].sum(1).max())
        batch = batch_of(torch.zeros(len(rows), length, dtype=torch.long), mask[rows][:, :length])
        batch.outcomes, batch.group_ids = outcomes[rows], groups[rows]
        candidates = Candidates(torch.zeros_like(old[rows][:, :length]).long(), counted[rows][:, :length])
        behavior = BehaviorScores(candidates, old[rows][:, :length], torch.zeros(len(rows), length))
        parts.append(ScoredBatch(batch, mask[rows][:, :length], behavior))
    return parts


def test_advantages_of_a_mini_batch(case: dict[str, Any]) -> None:
    part = case["advantages_minibatch"]
    mask, outcomes, td = torch.tensor(part["mask"]).bool(), real(part["outcomes"]), real(part["candidate_td"])
    groups = torch.arange(len(outcomes)) // part["group_size"]
    for entry in part["cases"]:
        parts = micro_batches(td, mask, torch.ones_like(td).bool(), outcomes, groups)
        for scored, rows in zip(parts, ([0, 4, 2], [5, 1], [3]), strict=True):
            scored.td_advantages = td[rows][:, : scored.mask.shape[1]]

        def compute(td: Tensor, outcomes: Tensor, groups: Tensor, mask: Tensor, entry: Any = entry) -> F.Advantages:
            coefs = {"outcome_coef": entry["outcome_coef"], "gae_coef": entry["gae_coef"]}
            decay = {"discount": entry["gamma"], "gae_lambda": entry["lambda"]}
            return F.distrl_advantages(td, outcomes, groups, mask, **coefs, **decay, normalization="minibatch")

        set_advantages(parts, ONE, compute)
        tokens, candidates = real(entry["advantages"]), real(entry["candidate_advantages"])
        for scored, rows in zip(parts, ([0, 4, 2], [5, 1], [3]), strict=True):
            length = scored.mask.shape[1]
            assert scored.advantages is not None
            torch.testing.assert_close(scored.advantages.tokens, tokens[rows][:, :length], rtol=0, atol=1e-5)
            torch.testing.assert_close(scored.advantages.candidates, candidates[rows][:, :length], rtol=0, atol=1e-5)


def test_shares_of_the_policy_loss_add_up_to_it(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    part = case["policy_loss"]
    new = real(part["new_log_probs"]).requires_grad_()
    mask, counted = torch.tensor(part["mask"]).bool(), torch.tensor(part["candidate_mask"]).bool()
    parts = micro_batches(real(part["old_log_probs"]), mask, counted, torch.zeros(6), torch.zeros(6).long())
    update = PolicyUpdate(
        clip_low=part["clip_low"],
        clip_high=part["clip_high"],
        candidate_clip=part["candidate_clip"],
        dual_clip=part["dual_clip"],
        distribution_coef=0.1,
    )
    divisors = totals(parts, ONE)
    sums: dict[str, Tensor] = {}
    total = torch.zeros((), dtype=torch.float64)
    for scored, rows in zip(parts, ([0, 4, 2], [5, 1], [3]), strict=True):
        length = scored.mask.shape[1]
        scored.advantages = F.Advantages(
            real(part["advantages"])[rows][:, :length], real(part["candidate_advantages"])[rows][:, :length]
        )
        monkeypatch.setattr(path, "candidate_log_probs", lambda *_, r=rows, n=length, **__: (new[r][:, :n], None))
        share, values = path.policy_loss(nn.Identity(), scored, divisors, update, temperature=1.0, chunk_size=4)
        total = total + share
        sums = {name: sums.get(name, torch.zeros(())) + value for name, value in values.items()}
    total.backward()
    torch.testing.assert_close(total.detach(), real(part["total_loss_alpha_0.1"]), **EXACT)
    torch.testing.assert_close(new.grad, real(part["grad_new_log_probs"]), **EXACT)
    torch.testing.assert_close(sums["loss/token"], real(part["token_loss"]), **EXACT)
    torch.testing.assert_close(sums["loss/candidate"], real(part["candidate_loss"]), **EXACT)
    torch.testing.assert_close(sums["clipped/token"], real(part["token_clip_fraction"]), **EXACT)
    torch.testing.assert_close(sums["clipped/candidate"], real(part["candidate_clip_fraction"]), **EXACT)
