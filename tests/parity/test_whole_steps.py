"""Whole steps of DistRL against plain PyTorch: one response at a time, full logits, every formula written out.

Two training steps, each with passes over mini-batches for both models, clipped gradients, KL, entropy, and a
temperature. Only the responses and which rows a mini-batch has are taken from the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ipvrm_lightning.modules import DistRLModule
from ipvrm_lightning.modules.distrl_settings import AdvantageSettings, RewardModel
from ipvrm_lightning.objectives import IPVRM
from ipvrm_lightning.rollouts.groups import Group
from ipvrm_lightning.rollouts.sources import Sampling

from ..modules.conftest import quiet_trainer
from ..modules.distrl_cases import Losses, TinyPolicy, TinyPrompts, module

BETA, MARGIN, TEMPERATURE = 5.0, 1.0, 1.2
RATE, DECAY, CLIP, REWARD_CLIP = 5e-3, 0.1, 0.5, 1.0
OUTCOME, GAE, LAMBDA = 0.8, 0.3, 0.9
ALPHA, TOP_K, LIKELY, LOW, HIGH, SYMMETRIC, DUAL = 0.5, 3, 0.05, 0.1, 0.15, 0.12, 1.5
KL, CANDIDATE_KL, ENTROPY = 0.1, 0.2, 0.05


@dataclass
class Step:
    """What the run sampled, and the rows of each of its optimiser steps."""

    kept: list[Group]
    rows: dict[str, list[list[int]]] = field(default_factory=lambda: {"policy": [], "reward": []})


def observe(model: DistRLModule) -> list[Step]:
    steps: list[Step] = []
    collect, step_on = model.collect, model._step_on

    def collecting(stream: Any) -> Any:
        found = collect(stream)
        steps.append(Step(found.kept))
        return found

    def stepping(role: Any, parts: Any, loss_of: Any, *rest: Any) -> Any:
        rows: list[int] = []
        steps[-1].rows[role].append(rows)

        def noting(*args: Any) -> Any:
            loss, index = loss_of(*args)
            rows.extend(index.tolist())
            return loss, index

        return step_on(role, parts, noting, *rest)

    model.collect, model._step_on = collecting, stepping  # type: ignore[method-assign]
    return steps


class Row:
    """A response, and what the policy that sampled it says of its candidates [T, K], each token first of its own."""

    def __init__(self, group: Group, number: int, policy: nn.Module, supervised: nn.Module) -> None:
        attempt, self.group = group.attempts[number], group
        self.ids, self.start = [*group.prompt.input_ids, *attempt.input_ids], len(group.prompt.input_ids)
        self.right, self.mu = attempt.outcome == 1, group.accuracy
        full = self.log_probs(policy)
        candidates, counted = [], []
        for position, token in enumerate(attempt.input_ids):
            chosen = full[position].topk(TOP_K).indices.tolist()
            # the token comes first: it changes places with the likeliest, or the least likely makes room
            place = chosen.index(token) if token in chosen else None
            if place is None:
                chosen = [token, *chosen[:-1]]
            else:
                chosen[0], chosen[place] = token, chosen[0]
            last = position == len(attempt.input_ids) - 1
            candidates.append(chosen)
            counted.append(
                [not last and (k == 0 or full[position, one].exp() > LIKELY) for k, one in enumerate(chosen)]
            )
        self.candidates, self.counted = torch.tensor(candidates), torch.tensor(counted)
        self.old, self.sft = self.of(full), self.of(self.log_probs(supervised))
        self.entropy = -(full.exp() * full).sum(-1)
        self.advantages = self.candidate_advantages = torch.zeros(())

    def log_probs(self, model: nn.Module) -> Tensor:
        logits = model(input_ids=torch.tensor([self.ids])).logits[0, self.start - 1 : -1]
        return (logits / TEMPERATURE).log_softmax(-1)

    def of(self, full: Tensor) -> Tensor:
        return full.gather(1, self.candidates)

    def td(self, reward: nn.Module) -> Tensor:
        return BETA * (self.of(self.log_probs(reward)) - self.old)


def reward_loss(row: Row, reward: nn.Module) -> Tensor:
    """Eq. 9 with the margin and weight of Eq. 15; the weights of a group add up to its size."""
    td = row.td(reward)[:, 0]
    value = td.cumsum(0) / torch.arange(1, len(td) + 1)
    difficulty, size = math.log(row.mu / (1 - row.mu)), len(row.group.attempts)
    weights = [1 - row.mu if attempt.outcome else row.mu for attempt in row.group.attempts]
    weight = (1 - row.mu if row.right else row.mu) * size / sum(weights)
    losses = softplus(MARGIN - difficulty - value) if row.right else softplus(MARGIN + difficulty + value)
    return weight * losses.mean()


def set_advantages(rows: list[Row], reward: nn.Module, normalization: str) -> None:
    """Those of a mini-batch: outcome part plus TD part of sampled tokens, scaled TD of candidates."""
    td = {row: row.td(reward) for row in rows}
    spread = torch.cat([one[:, 0].cumsum(0) for one in td.values()]).std(correction=0)
    summed = {}
    for row in rows:
        like = rows if normalization == "minibatch" else [one for one in rows if one.group is row.group]
        pool = torch.cat([td[one][:, 0] for one in like])
        scale = spread if normalization == "minibatch" else pool.std(correction=0)
        total, sums = torch.zeros(()), []
        for centred in reversed(td[row][:, 0] - pool.mean()):
            total = centred / scale + LAMBDA * total
            sums.append(total)
        summed[row] = torch.stack(sums[::-1])
    if normalization == "minibatch":
        pool = torch.cat(list(summed.values()))
        summed = {row: (one - pool.mean()) / pool.std() for row, one in summed.items()}
    for row in rows:
        outcome = (float(row.right) - row.mu) / math.sqrt(row.mu * (1 - row.mu))
        row.advantages = OUTCOME * outcome + GAE * summed[row]
        row.candidate_advantages = td[row] / spread


def surrogate(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    return -torch.where(advantage < 0, torch.maximum(gain, DUAL * advantage), gain)


def policy_losses(rows: list[Row], policy: nn.Module) -> dict[str, Tensor]:
    """Means over the response tokens of a mini-batch; over probability for the candidates' surrogate."""
    tokens = sum(len(row.candidates) for row in rows)
    mass = sum((row.old.exp() * row.counted).sum() for row in rows)
    losses = {name: torch.zeros(()) for name in ("loss/token", "loss/candidate", "kl/token", "kl/candidate", "entropy")}
    for row in rows:
        full = row.log_probs(policy)
        new = row.of(full)
        ratio, away = (new - row.old).exp(), (row.sft - new).exp() - 1 - (row.sft - new)
        losses["loss/token"] += surrogate(ratio[:, 0], row.advantages, LOW, HIGH).sum() / tokens
        candidates = surrogate(ratio, row.candidate_advantages, SYMMETRIC, SYMMETRIC)
        losses["loss/candidate"] += (candidates * row.old.exp() * row.counted).sum() / mass
        losses["kl/token"] += away[:, 0].sum() / tokens
        losses["kl/candidate"] += (new.exp() * away * row.counted).sum() / tokens
        losses["entropy"] -= (full.exp() * full).sum() / tokens
    return losses


def update(optimizer: torch.optim.Optimizer, loss: Tensor, clip: float) -> float:
    """An optimiser step, and the norm of its gradient before clipping."""
    optimizer.zero_grad()
    loss.backward()
    gradients = [one.grad for one in optimizer.param_groups[0]["params"] if one.grad is not None]
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    for gradient in gradients:
        gradient *= min(1.0, clip / norm)
    optimizer.step()
    return norm


def by_hand(steps: list[Step], normalization: str) -> tuple[dict[str, dict[str, Tensor]], list[dict[str, float]]]:
    """Weights of both models after the steps, and what each step logs."""
    policy, reward, supervised = (TinyPolicy().build_model() for _ in range(3))
    optimizers = {model: torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY) for model in (policy, reward)}
    logged = []
    for step in steps:
        with torch.no_grad():
            rows = [Row(group, n, policy, supervised) for group in step.kept for n in range(len(group.attempts))]
        learned = []
        for chosen in step.rows["reward"]:
            loss = torch.stack([reward_loss(rows[row], reward) for row in chosen]).mean()
            norm = update(optimizers[reward], loss, REWARD_CLIP)
            learned.append({"reward/loss": loss.item(), "reward/gradient_norm": norm})
        with torch.no_grad():
            for chosen in step.rows["policy"][: len(step.rows["policy"]) // 2]:
                set_advantages([rows[row] for row in chosen], reward, normalization)
        improved = []
        for chosen in step.rows["policy"]:
            parts = policy_losses([rows[row] for row in chosen], policy)
            loss = parts["loss/token"] + ALPHA * parts["loss/candidate"]
            loss = loss + KL * parts["kl/token"] + CANDIDATE_KL * parts["kl/candidate"] - ENTROPY * parts.pop("entropy")
            norm = update(optimizers[policy], loss, CLIP)
            improved.append({name: part.item() for name, part in parts.items()} | {"gradient_norm": norm})
        found = {name: sum(one[name] for one in part) / len(part) for part in (learned, improved) for name in part[0]}
        found["entropy"] = torch.cat([row.entropy for row in rows]).mean().item()
        logged.append(found)
    return {"policy": dict(policy.named_parameters()), "reward": dict(reward.named_parameters())}, logged


@pytest.mark.parametrize("normalization", ["prompt_group", "minibatch"])
def test_steps_are_what_plain_code_makes_of_them(normalization: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    optimizer = partial(torch.optim.AdamW, lr=RATE, weight_decay=DECAY)
    objective = IPVRM(beta=BETA, margin=MARGIN)
    model = module(
        sampling=Sampling(group_size=4, max_new_tokens=12, temperature=TEMPERATURE),
        reward=RewardModel(
            objective=objective, optimizer=optimizer, epochs=2, mini_batches=2, gradient_clip_val=REWARD_CLIP
        ),
        advantages=AdvantageSettings(
            outcome_coef=OUTCOME, gae_coef=GAE, gae_lambda=LAMBDA, normalization=normalization
        ),
        optimizer=optimizer,
        update={
            "epochs": 2,
            "mini_batches": 2,
            "max_tokens": 60,
            "clip_low": LOW,
            "clip_high": HIGH,
            "candidate_clip": SYMMETRIC,
            "dual_clip": DUAL,
            "distribution_coef": ALPHA,
            "top_k": TOP_K,
            "min_probability": LIKELY,
            "kl_coef": KL,
            "candidate_kl_coef": CANDIDATE_KL,
            "entropy_coef": ENTROPY,
            "gradient_clip_val": CLIP,
        },
    )
    steps, losses = observe(model), Losses()
    trainer = quiet_trainer(tmp_path, callbacks=[losses], limit_train_batches=2, limit_val_batches=0)
    trainer.fit(model, datamodule=TinyPrompts())

    assert [len(step.rows[role]) for step in steps for role in ("policy", "reward")] == [4] * 4
    weights, logged = by_hand(steps, normalization)
    for mine, theirs in zip(logged, losses.steps, strict=True):
        assert {name: theirs[name] for name in mine} == pytest.approx(mine, rel=1e-4, abs=1e-5)
    assert losses.steps[1]["clipped/token"] > 0 and losses.steps[1]["clipped/candidate"] > 0
    for role, parameters in weights.items():
        for name, value in parameters.items():
            actual = model.state_dict()[f"roles.{role}.{name}"]
            torch.testing.assert_close(actual, value.detach(), rtol=0, atol=1e-4)
