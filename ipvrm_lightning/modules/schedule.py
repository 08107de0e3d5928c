"""Learning rates over a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass
class Schedule:
    """Learning-rate schedule (transformers' `get_scheduler`).

    A schedule of one's own is a dataclass that subclasses this one, named by its `class_path`; it overrides `build`.

    Args:
        name: shape after the warm-up.
        warmup: share of the whole run over which the rate rises from zero, to the nearest step; the first step is then
            taken at zero and changes no weight.
    """

    name: Literal["constant_with_warmup", "linear", "cosine"] = "constant_with_warmup"
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"scheduler.warmup is a share of the run, between 0 and 1, found {self.warmup:g}")

    def build(self, optimizer: Any, steps: int) -> Any:
        """The scheduler of an optimiser, with a `step` that takes no arguments.

        Args:
            optimizer: of torch.
            steps: times the scheduler will be stepped over the run; 0 where that is not known.

        Raises:
            ValueError: the shape depends on the length of the run, which is not known.
        """
        from transformers import get_scheduler

        if not steps and (self.warmup or self.name != "constant_with_warmup"):
            raise ValueError(
                f"scheduler {self.name} with warmup {self.warmup:g} follows the length of the run, and nothing says it:"
                " set trainer.max_epochs"
            )

        return get_scheduler(
            self.name, optimizer, num_warmup_steps=round(self.warmup * steps), num_training_steps=steps
        )


def planned_batches(trainer: Any, *, one_step_each: bool = True) -> int:
    """Training batches of the whole run; 0 where neither `max_epochs` of a data module nor `max_steps` bounds it.

    Not `trainer.estimated_stepping_batches`: it sets the training loader up before a checkpoint is restored, and a run
    resumed in the middle of an epoch would then start that epoch again without a word.

    Args:
        trainer: of the run.
        one_step_each: a batch takes one optimiser step, which is what `max_steps` counts; else it bounds no batches.
    """
    bounds = []
    data = getattr(trainer, "datamodule", None)
    if trainer.max_steps >= 0 and one_step_each:
        bounds.append(trainer.max_steps)
    if data is not None and trainer.max_epochs not in (None, -1):
        bounds.append(within_limit(len(data.train_dataloader()), trainer.limit_train_batches) * trainer.max_epochs)
    return min(bounds, default=0)


def within_limit(batches: int, limit: float | None) -> int:
    """How many batches Lightning takes of a loader.

    Args:
        batches: of the loader.
        limit: `limit_train_batches` or `limit_val_batches`: so many where it is an integer, else a share.
    """
    return min(batches, limit) if isinstance(limit, int) else int(batches * (1.0 if limit is None else limit))
