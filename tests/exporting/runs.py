"""Runs to export: a tiny model in a folder, trained by the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ipvrm_lightning.cli import main
from ipvrm_lightning.models import RandomLanguageModel

from ..conftest import REPOSITORY
from ..modules.conftest import QWEN

VOCABULARY = {**QWEN, "vocab_size": 300}


def save_model(folder: Path, tokenizer: str, *, seed: int = 0, config: dict[str, Any] = VOCABULARY) -> str:
    """A tiny model with a tokenizer in a folder, as one from the hub would be."""
    factory = RandomLanguageModel(config=config, tokenizer=tokenizer, seed=seed)
    factory.build_model().save_pretrained(folder)
    factory.build_tokenizer().save_pretrained(folder)
    return str(folder)


def fit(folder: Path, base: str, inputs: dict[str, str], *, lora: bool, objective: str = "ipvrm") -> Path:
    """Train for a few steps by the command line; returns the run's folder."""
    arguments: dict[str, Any] = {"name": base, "lora": {"r": 4} if lora else None}
    source = {"class_path": f"ipvrm_lightning.models.{'AdaptersOff' if lora else 'FrozenCopy'}"}
    overlay = {
        "model": {
            "init_args": {
                "language_model": {
                    "class_path": "ipvrm_lightning.models.PretrainedLanguageModel",
                    "init_args": arguments,
                },
                "reference": source,
                "optimizer": {"init_args": {"lr": 0.01}},
            }
        },
        "trainer": {"default_root_dir": str(folder), "accelerator": "cpu", "max_steps": 3, "max_epochs": -1},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(overlay))
    extra = ("--data.batch_size", "4") if objective == "qrm" else ()
    main(
        [
            *("fit", "--config", str(REPOSITORY / "configs" / "ipvrm_smollm2.yaml")),
            *("--config", str(REPOSITORY / "configs" / "objective" / f"{objective}.yaml")),
            *("--config", str(folder / "tiny.yaml"), "--data.train", inputs["rollouts"]),
            *("--data.validation_fraction", "0.2", *extra),
        ]
    )
    (run,) = folder.glob("*-fit")
    return run
