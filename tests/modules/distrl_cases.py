"""A policy of random weights over the arithmetic tokenizer, and a task on which it is right about half of the time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from transformers import PreTrainedTokenizerBase

from ipvrm_lightning.data import PromptModule
from ipvrm_lightning.models import LoRA, RandomLanguageModel
from ipvrm_lightning.modules import DistRLModule
from ipvrm_lightning.modules.distrl_settings import AdvantageSettings, PolicyUpdate, RewardModel
from ipvrm_lightning.objectives import IPVRM
from ipvrm_lightning.rollouts.sources import Sampling
from ipvrm_lightning.rollouts.verifiers import Submission, Verdict, Verifier
from ipvrm_lightning.types import PromptExample
from ipvrm_lightning.worlds.arithmetic.tokenizer import build_tokenizer

from ..rollouts.judges import EvenLength
from .conftest import QWEN, quiet_trainer


class TinyPolicy(RandomLanguageModel):
    """Random weights, sharp enough that some tokens are likely."""

    def __init__(self, **options: Any) -> None:
        config = {**QWEN, "vocab_size": len(build_tokenizer()), "initializer_range": 0.2}
        super().__init__(config=config, **options)

    def build_tokenizer(self) -> PreTrainedTokenizerBase:
        return build_tokenizer()


class NeverRight(Verifier):
    def verify(self, submissions: Sequence[Submission]) -> list[Verdict]:
        return [Verdict(False, None, None) for _ in submissions]


class TinyPrompts(PromptModule):
    def __init__(self, *, batch_size: int = 4, count: int = 16, seed: int = 0) -> None:
        super().__init__(batch_size=batch_size, seed=seed)
        self.count = count

    def setup(self, stage: str | None = None) -> None:
        self.train_prompts = [
            PromptExample([3 + i % 10, 4, 5 + i % 7][: 2 + i % 2], "text", str(i), "tiny", f"prompt {i}")
            for i in range(self.count)
        ]
        self.val_prompts = self.test_prompts = self.train_prompts[:5]


def module(
    *, lora: bool = False, reward: Any = "ipvrm", update: dict[str, Any] | None = None, **options: Any
) -> DistRLModule:
    sgd = partial(torch.optim.SGD, lr=0.5)
    if reward == "ipvrm":
        reward = RewardModel(objective=IPVRM(), optimizer=sgd)
    defaults: dict[str, Any] = {
        "language_model": TinyPolicy(lora=LoRA(r=4) if lora else None),
        "verifier": EvenLength(),
        "sampling": Sampling(group_size=4, max_new_tokens=12),
        "evaluation": Sampling(group_size=2, max_new_tokens=12),
        "advantages": AdvantageSettings(gae_coef=0.5),
        "update": PolicyUpdate(
            **{
                "min_probability": 0.05,
                "distribution_coef": 0.5 if reward else 0.0,
                "max_tokens": 256,
                **(update or {}),
            }
        ),
        "optimizer": sgd,
        "stop_tokens": ["0", "1", "2", "3"],
    }
    return DistRLModule(reward=reward, **{**defaults, **options})


class Losses(Callback):
    """Everything that a run logs, step by step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        timed = ("seconds", "tokens_per_second")
        self.steps.append(
            {
                name.removeprefix("train/"): float(value)
                for name, value in trainer.callback_metrics.items()
                if name.startswith("train/") and not any(part in name for part in timed)
            }
        )


def run(
    folder: Path, model: DistRLModule, *, steps: int = 2, data: TinyPrompts | None = None, **options: Any
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Weights after a run, and what it logged."""
    torch.manual_seed(0)
    losses, resumed = Losses(), options.pop("ckpt_path", None)
    callbacks = [losses, *options.pop("callbacks", [])]
    defaults = {"limit_train_batches": steps, "limit_val_batches": 0}
    trainer = quiet_trainer(folder, callbacks=callbacks, **{**defaults, **options})
    trainer.fit(model, datamodule=data or TinyPrompts(), ckpt_path=resumed)
    state = {name: parameter.detach().clone() for name, parameter in model.trainable_parameters().items()}
    return state, losses.steps
