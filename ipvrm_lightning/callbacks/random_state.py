"""`RandomState`: random states go into checkpoints, so that what draws from them (dropout) goes on bit for bit."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from ipvrm_lightning.callbacks.run_files import from_all_processes


class RandomState(Callback):
    """Saves the random states of every process, and restores them before the first step after a restart.

    A run that goes on with another number of processes draws anew, and says so.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the states of all processes into the checkpoint; called on each of them."""
        checkpoint["random_states"] = from_all_processes(random_state())

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember this process's state, where the run goes on with as many processes as it had."""
        states = checkpoint.get("random_states") or []
        self._restored = states[trainer.global_rank] if len(states) == trainer.world_size else None
        if states and self._restored is None and trainer.state.fn == TrainerFn.FITTING:
            rank_zero_warn(
                f"The run goes on with {trainer.world_size} processes in place of {len(states)}: their random states"
                " cannot be restored, and what is random in training (dropout) is drawn anew."
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Restore: nothing draws between here and the step."""
        if self._restored is not None:
            set_random_state(self._restored)
            self._restored = None


def random_state() -> dict[str, Any]:
    """States of Python, NumPy, torch and its devices, as primitives and tensors."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [str(name), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Go back to what `random_state` found."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([values.cpu() for values in state["cuda"]])
