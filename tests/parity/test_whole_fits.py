"""Whole fits against a loop in plain PyTorch: one sequence at a time, full logits, every formula written out.

Two epochs with a warm-up, clipped gradients, weight decay, and windows of several micro-batches whose last is short.
The loop takes only the order of rows (and the start of a value head) from the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import softplus

from ipvrm_lightning.modules import IPVRMModule, SFTModule
from ipvrm_lightning.modules.schedule import Schedule
from ipvrm_lightning.objectives import DPORM, IPVRM, QRM, ImplicitPRM, Objective
from ipvrm_lightning.types import Example, Window

from ..modules.conftest import InMemoryData, make_examples, quiet_trainer, tiny, trained_state

RATE, DECAY, CLIP, WARMUP = 2e-3, 0.1, 0.3, 0.2
EXAMPLES = make_examples(22)


class Observed(Callback):
    """Rows of each optimiser step, what was logged of it, and the weights before the first."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []
        self.pairs: list[list[tuple[int, int]]] = []
        self.parts: list[int] = []
        self.logged: list[dict[str, float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = trained_state(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Window, batch_idx: int
    ) -> None:
        parts = batch.micro_batches
        self.parts.append(len(parts))
        self.rows.append([row for part in parts for row in part.index.tolist()])
        self.pairs.append(
            [
                (int(part.index[a]), int(part.index[b]))
                for part in parts
                if part.pairs is not None
                for a, b in part.pairs
            ]
        )
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def values(scores: Tensor) -> Tensor:
    return 2.0 * scores.cumsum(0) / torch.arange(1, len(scores) + 1)


def ipvrm(scores: Tensor, outcome: float) -> Tensor:
    """The loss of each prefix (Eq. 9), with beta 2 and margin 0.5."""
    sign = 1.0 if outcome else -1.0
    return softplus(0.5 - sign * values(scores))


def late(scores: Tensor, outcome: float) -> Tensor:
    weights = torch.arange(1, len(scores) + 1) / len(scores)
    return (ipvrm(scores, outcome) * weights).sum() / weights.sum()


def early(scores: Tensor, outcome: float) -> Tensor:
    weights = 1 - torch.arange(1, len(scores) + 1) / len(scores)
    return (ipvrm(scores, outcome) * weights).sum() / weights.sum()


class Case(NamedTuple):
    """An objective, the loss of a row (or of a pair: right, wrong), and how losses become that of a step."""

    objective: Objective | None
    loss: Callable[[Any, Any], Tensor]
    mean: Callable[[list[Tensor]], Tensor] = lambda losses: torch.stack(losses).mean()


def pooled(losses: list[Tensor]) -> Tensor:
    return torch.cat(losses).mean()


CASES = {
    "ipvrm": Case(IPVRM(beta=2.0, margin=0.5), lambda scores, outcome: ipvrm(scores, outcome).mean()),
    "ipvrm_token": Case(IPVRM(beta=2.0, margin=0.5, reduction="token"), ipvrm, pooled),
    "ipvrm_late": Case(IPVRM(beta=2.0, margin=0.5, prefix_weighting="late"), late),
    "ipvrm_early": Case(IPVRM(beta=2.0, margin=0.5, prefix_weighting="early"), early),
    "implicit_prm": Case(
        ImplicitPRM(beta=0.5), lambda scores, outcome: softplus((-1.0 if outcome else 1.0) * 0.5 * scores.sum())
    ),
    "dpo_rm": Case(DPORM(beta=0.5, margin=0.2), lambda right, wrong: softplus(0.2 - 0.5 * (right.sum() - wrong.sum()))),
    "qrm": Case(QRM(beta=0.5, margin=0.2), lambda right, wrong: softplus(0.2 - 0.5 * (right.mean() - wrong.mean()))),
    "sft": Case(None, lambda log_probs, outcome: -log_probs, pooled),
}


def log_probs(model: nn.Module, example: Example) -> Tensor:
    ids, start = torch.tensor([example.input_ids]), example.response_start
    return model(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1).gather(1, ids[0, start:, None])[:, 0]


def rate(step: int, steps: int) -> float:
    """A rise from zero over a fifth of the run, then half a cosine."""
    rise = round(WARMUP * steps)
    return RATE * (step / rise if step < rise else 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise))))


def by_hand(case: Case, run: Observed) -> tuple[dict[str, Tensor], list[dict[str, float]], float]:
    """Weights after the fit, what each step logs, and the loss on the validation rollouts in the end."""
    model, reference = tiny().build_model(), tiny().build_model().requires_grad_(False)
    head = {name: nn.Parameter(run.start[name].clone()) for name in run.start if name.startswith("value_head")}

    def scores(example: Example) -> Tensor:
        if head:
            ids = torch.tensor([example.input_ids])
            states = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
            return (states @ head["value_head.weight"].T)[example.response_start :, 0]
        return log_probs(model, example) - (log_probs(reference, example) if case.objective else 0.0)

    trained = {f"model.{name}": parameter for name, parameter in model.named_parameters()} | head
    optimizer = torch.optim.AdamW(trained.values(), weight_decay=DECAY)
    logged = []
    for step, (rows, pairs) in enumerate(zip(run.rows, run.pairs, strict=True)):
        if pairs:
            losses = [case.loss(scores(EXAMPLES[right]), scores(EXAMPLES[wrong])) for right, wrong in pairs]
        else:
            losses = [case.loss(scores(EXAMPLES[row]), EXAMPLES[row].outcome) for row in rows]
        loss = case.mean(losses)
        optimizer.zero_grad()
        loss.backward()
        gradients = [parameter.grad for parameter in trained.values() if parameter.grad is not None]
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        for gradient in gradients:
            gradient *= min(1.0, CLIP / norm.item())
        optimizer.param_groups[0]["lr"] = rate(step, len(run.rows))
        optimizer.step()
        found = {"loss": loss.item(), "gradient_norm": norm.item(), "lr": rate(step, len(run.rows))}
        logged.append({f"train/{name}": value for name, value in found.items()})
    validation = math.nan
    if not run.pairs[0]:
        with torch.no_grad():
            validation = case.mean([case.loss(scores(one), one.outcome) for one in make_examples(40, seed=1)]).item()
    return {name: parameter.detach() for name, parameter in trained.items()}, logged, validation


@pytest.mark.parametrize("name", CASES)
def test_a_fit_is_what_a_plain_loop_makes_of_it(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    case, run = CASES[name], Observed()
    pairwise = case.objective is not None and case.objective.pairwise
    options: dict[str, Any] = {
        "language_model": tiny(),
        "optimizer": partial(torch.optim.AdamW, lr=RATE, weight_decay=DECAY),
        "scheduler": Schedule("cosine", WARMUP),
        "gradient_clip_val": CLIP,
        "chunk_size": 7,
    }
    module = IPVRMModule(objective=case.objective, **options) if case.objective else SFTModule(**options)
    data = InMemoryData(count=len(EXAMPLES), batch_size=5, max_tokens=40, pairwise=pairwise)
    trainer = quiet_trainer(tmp_path, max_epochs=2, callbacks=[run], num_sanity_val_steps=0)
    trainer.fit(module, datamodule=data)

    half = len(run.rows) // 2
    assert half >= 5 and min(run.parts) >= 1 and max(run.parts) > 1
    if not pairwise:
        for epoch in (run.rows[:half], run.rows[half:]):
            assert sorted(row for rows in epoch for row in rows) == list(range(len(EXAMPLES)))
    weights, logged, validation = by_hand(case, run)
    for mine, theirs in zip(logged, run.logged, strict=True):
        assert {key: theirs[key] for key in mine} == pytest.approx(mine, rel=1e-5, abs=1e-7)
    assert max(mine["train/gradient_norm"] for mine in logged) > CLIP
    final = trained_state(module)
    untrained = {"model.lm_head.weight"} if name == "qrm" else set()
    assert final.keys() == weights.keys() - untrained
    for key, value in final.items():
        torch.testing.assert_close(value, weights[key], rtol=0, atol=2e-5)
        assert (value - run.start[key]).abs().max() > 1e-3
    if not pairwise:
        assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(validation, rel=1e-5)
