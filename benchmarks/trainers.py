"""Trainers whose steps a clock takes: Lightning's, bare of what is not measured, and what TRL's need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from measuring import Clock


def bare_trainer(clock: Clock, **options: Any) -> Any:
    """Lightning's Trainer without loggers, checkpoints and progress bars; the clock takes its training batches."""
    from lightning.pytorch import Callback, Trainer

    class Timer(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            clock.start()

        def on_train_batch_end(self, *_: Any) -> None:
            clock.stop()

    quiet = ("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar", "use_distributed_sampler")
    callbacks = [Timer(), *options.pop("callbacks", [])]
    return Trainer(**{"devices": 1, **dict.fromkeys(quiet, False), "callbacks": callbacks, **options})


def trl_timer(clock: Clock) -> Any:
    """A callback for transformers' trainers; the clock takes their optimiser steps."""
    from transformers import TrainerCallback

    class Timer(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.stop()

    return Timer()


def trl_options(folder: Path) -> dict[str, Any]:
    """Settings that make TRL's trainers comparable: full precision, nothing saved or logged, no recomputation."""
    import torch

    return {
        "output_dir": str(folder / "trl"), "gradient_checkpointing": False, "bf16": False, "report_to": [],
        "use_cpu": not torch.cuda.is_available(), "save_strategy": "no", "logging_strategy": "no",
        "disable_tqdm": True,
    }  # fmt: skip


def stored_model(factory: Any, folder: Path) -> Any:
    """A model with a name to load it by, which is how TRL gets its reference."""
    model, name = factory.build_model(), str(folder / "model")
    model.save_pretrained(name)
    model.config._name_or_path = model.name_or_path = name
    return model
