from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from ipvrm_lightning.data.dataset import TrajectoryDataset
from ipvrm_lightning.data.trajectories import TokenizedDataModule
from ipvrm_lightning.models import LoRA, RandomLanguageModel
from ipvrm_lightning.types import Example

QWEN = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 97,
}


def make_examples(count: int, *, seed: int = 0, steps: bool = False) -> list[Example]:
    """Groups of four rollouts; a response is right where it holds more small token ids than large ones."""
    draw = random.Random(seed)
    examples = []
    for row in range(count):
        prompt = [draw.randrange(97) for _ in range(draw.randrange(2, 6))]
        bias = draw.choice((20, 97))
        response = [draw.randrange(bias) for _ in range(draw.randrange(2, 12))]
        fields: dict[str, Any] = {}
        if steps:
            fields = {"step_ids": [i // 2 for i in range(len(response))], "step_label": draw.choice((-1, 0))}
        group = f"problem {row // 4}"
        metadata = {"id": str(row), "subset": "tiny", "problem": group, "prompt": group}
        metadata["step_lengths"] = [1] * ((len(response) + 1) // 2)
        outcome = None if steps else int(bias == 20)
        examples.append(Example(prompt + response, len(prompt), group, outcome, metadata=metadata, **fields))
    return examples


class InMemoryData(TokenizedDataModule):
    """Rollouts made on the spot."""

    def __init__(self, *, count: int = 24, pairwise: bool = False, **options: Any) -> None:
        super().__init__(**{"batch_size": 8, "max_tokens": 4096, **options})
        self.count, self.pairwise = count, pairwise

    def setup(self, stage: str | None = None) -> None:
        self.train_set = TrajectoryDataset(make_examples(self.count))
        self.val_set = TrajectoryDataset(make_examples(40, seed=1))
        self.test_sets = [TrajectoryDataset(make_examples(12, seed=2, steps=True)), self.val_set]
        if self.pairwise:
            right = [i for i in range(self.count) if self.train_set[i].outcome == 1]
            wrong = [i for i in range(self.count) if self.train_set[i].outcome == 0]
            self.train_pairs = [(a, b) for a in right for b in wrong][:: max(1, len(right) * len(wrong) // self.count)]


def tiny(*, lora: bool = False, dropout: float = 0.0, seed: int = 0) -> RandomLanguageModel:
    return RandomLanguageModel(config=QWEN, seed=seed, lora=LoRA(r=4, dropout=dropout) if lora else None)


def quiet_trainer(folder: Path, **options: Any) -> Trainer:
    """Lightning's Trainer, on a CPU unless the environment says otherwise (CONTRIBUTING.md, "On a GPU")."""
    defaults: dict[str, Any] = {
        "accelerator": os.environ.get("IPVRM_TEST_ACCELERATOR", "cpu"),
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(folder),
        "use_distributed_sampler": False,
        "max_epochs": 1,
    }
    return Trainer(**{**defaults, **options})


def trained_state(module: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.trainable_parameters().items()}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
