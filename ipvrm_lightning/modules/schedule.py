"""Learning rates over a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass
class Schedule:
    """Learning-rate schedule (transformers' `get_scheduler`).

    Args:
        name: shape after the warm-up.
        warmup: share of the whole run over which the rate rises from zero.
    """

    name: Literal["constant_with_warmup", "linear", "cosine"] = "constant_with_warmup"
    warmup: float = 0.0

    def build(self, optimizer: Any, steps: int) -> Any:
        """The scheduler of an optimiser.

        Args:
            optimizer: of torch.
            steps: times the scheduler will be stepped over the run.
        """
        from transformers import get_scheduler

        return get_scheduler(
            self.name, optimizer, num_warmup_steps=round(self.warmup * steps), num_training_steps=steps
        )


def planned_batches(trainer: Any) -> int:
    """Training batches of the whole run; 0 where only `max_steps` bounds it.

    Not `trainer.estimated_stepping_batches`: it sets the training loader up before a checkpoint is restored, and a run
    resumed in the middle of an epoch would then start that epoch again without a word.
    """
    if trainer.max_epochs in (None, -1):
        return 0
    batches = len(trainer.datamodule.train_dataloader())
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * (1.0 if limit is None else limit))
    return batches * int(trainer.max_epochs or 1)
