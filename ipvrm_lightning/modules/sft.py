"""Supervised fine-tuning: step zero, from which policies and reward models start."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ipvrm_lightning.models.logprobs import response_scores
from ipvrm_lightning.modules.windowed import WindowedModule
from ipvrm_lightning.types import TrajectoryBatch, Unit


class SFTModule(WindowedModule):
    """Minimises the negative log-likelihood of responses, averaged over the response tokens of a window.

    Its arguments are those of `WindowedModule`.
    """

    unit: Unit = "tokens"

    def batch_loss(self, batch: TrajectoryBatch) -> Tensor:
        """Mean negative log-likelihood per response token."""
        scores = response_scores(self.model, batch, chunk_size=self.chunk_size)
        return -scores.log_probs.sum() / batch.count("tokens")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of a reward model, of another model or other settings.

        Raises:
            ValueError: names the first thing that differs.
        """
        if "objective" in checkpoint:
            raise ValueError(
                f"the checkpoint is of a reward model ({checkpoint['objective']['class_path']}), not of fine-tuning"
            )
        super().on_load_checkpoint(checkpoint)

    def validation_step(self, batch: TrajectoryBatch, batch_idx: int) -> None:
        """Log the mean negative log-likelihood per response token, `val/loss`."""
        self.log_validation_loss(self.batch_loss(batch), batch)
