"""Supervised fine-tuning: step zero, from which policies and reward models start."""

from __future__ import annotations

from torch import Tensor

from ipvrm_lightning.models.logprobs import response_scores
from ipvrm_lightning.modules.windowed import WindowedModule
from ipvrm_lightning.types import TrajectoryBatch, Unit


class SFTModule(WindowedModule):
    """Minimises the negative log-likelihood of responses, averaged over the response tokens of a window.

    Args:
        language_model: builds the model and its tokenizer; nothing is loaded before `configure_model`.
        optimizer: called with the trainable parameters.
        schedule: learning rate over the run.
        gradient_clip_val: largest norm of the gradient, None for no limit.
        chunk_size: response tokens whose logits exist at one time.
    """

    unit: Unit = "tokens"

    def batch_loss(self, batch: TrajectoryBatch) -> Tensor:
        """Mean negative log-likelihood per response token."""
        scores = response_scores(self.model, batch, chunk_size=self.chunk_size)
        return -scores.log_probs.sum() / batch.count("tokens")

    def validation_step(self, batch: TrajectoryBatch, batch_idx: int) -> None:
        """Log the mean negative log-likelihood per response token, `val/loss`."""
        self.log("val/loss", self.batch_loss(batch), batch_size=batch.count("tokens"), prog_bar=True, sync_dist=True)
