"""`IPVRMModule`: train a reward model from outcome labels, judge it on first wrong steps.

Where the reference trainer departs from the paper, the objective's arguments choose (`IPVRM.reduction`); all the rest
is the same for every objective, so that a comparison changes one class and nothing more.
"""

from __future__ import annotations

from functools import partial
from itertools import chain, islice
from typing import Any, Literal, get_args

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torchmetrics import MeanMetric

from ipvrm_lightning.data.batching import EvalLoader, WindowLoader
from ipvrm_lightning.data.tokenized import TokenizedDataModule
from ipvrm_lightning.metrics import PrefixCalibration
from ipvrm_lightning.models.checkpoints import check_same_settings
from ipvrm_lightning.models.language_model import LanguageModelFactory
from ipvrm_lightning.models.output_head import base_language_model, freeze_unread_head
from ipvrm_lightning.models.reference import CachedReference, Reference, default_reference
from ipvrm_lightning.models.sharding import placed
from ipvrm_lightning.models.token_scores import TokenScores, steps_by_protocol, token_scores
from ipvrm_lightning.modules.judging import Judge, check_metadata
from ipvrm_lightning.modules.schedule import Schedule, planned_batches, within_limit
from ipvrm_lightning.modules.windowed import WindowedModule
from ipvrm_lightning.objectives import IPVRM, Objective, ScoreSource
from ipvrm_lightning.progress import progress
from ipvrm_lightning.types import TrajectoryBatch


class IPVRMModule(WindowedModule):
    """A reward model trained from outcome labels alone.

    Args:
        language_model: builds the model and its tokenizer; nothing is loaded before `configure_model`.
        objective: the loss and how its scores read as values; IPVRM with the paper's numbers where none is given.
        reference: where the reference log-probabilities come from; with LoRA the same weights with adapters off, else a
            frozen copy, where none is given.
        optimizer: called with the trainable parameters.
        scheduler: learning rate over the run.
        gradient_clip_val: largest norm of the gradient, None for no limit.
        chunk_size: response tokens whose logits exist at one time.
        on_nonfinite: "stop" at a loss or gradient that is not finite, or "skip" the update; either names the rows.
        max_skipped_updates: updates in a row that may be skipped before the run stops all the same.
        threshold: fixed threshold of the step F1 that `test` reports beside oracle and cross-fitted ones.

    Raises:
        ValueError: a bound that cannot work, or an objective that reads unknown scores or that no checkpoint can hold.
    """

    def __init__(
        self,
        *,
        language_model: LanguageModelFactory,
        objective: Objective | None = None,
        reference: Reference | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: Schedule | None = None,
        gradient_clip_val: float | None = 1.0,
        chunk_size: int = 256,
        on_nonfinite: Literal["stop", "skip"] = "stop",
        max_skipped_updates: int = 3,
        threshold: float | None = None,
    ) -> None:
        super().__init__(
            language_model=language_model,
            optimizer=optimizer,
            scheduler=scheduler,
            gradient_clip_val=gradient_clip_val,
            chunk_size=chunk_size,
            on_nonfinite=on_nonfinite,
            max_skipped_updates=max_skipped_updates,
        )
        self.objective = objective or IPVRM()
        if self.objective.score_source not in get_args(ScoreSource):
            raise ValueError(
                f"{type(self.objective).__name__}: score_source must be one of {', '.join(get_args(ScoreSource))},"
                f" found {self.objective.score_source!r}"
            )
        self.objective.describe()  # refuses what its checkpoints could not hold
        self.reference = reference or default_reference(language_model)
        self.unit = self.objective.unit
        self.value_head: Any = None
        self.val_prefix_accuracy = MeanMetric()
        self.val_calibration = PrefixCalibration()
        self.judge = Judge(threshold=threshold)

    def prepare_model(self) -> None:
        """Set up the reference, which knows weights as they were loaded, and the objective's value head."""
        if self._uses_reference:
            self.reference.setup(placed(self.language_model, self.device_mesh), self.model)
        if self.objective.score_source == "value_head":
            self._replace_output_head()
        super().prepare_model()

    def token_scores(self, batch: TrajectoryBatch) -> TokenScores:
        """What the objective reads: log-ratios, head values or endogenous rewards, float32 or wider."""
        return token_scores(
            self.model,
            batch,
            self.objective,
            reference=partial(self.reference.log_probs, chunk_size=self.chunk_size),
            value_head=self.value_head,
            chunk_size=self.chunk_size,
        )

    def batch_loss(self, batch: TrajectoryBatch) -> Tensor:
        """Mean loss of the objective over its unit.

        Raises:
            ValueError: it is not one number.
        """
        scores, mask = self.token_scores(batch)
        loss: Tensor = self.objective(scores, mask, batch)
        if loss.ndim:
            kind, shape = type(self.objective).__name__, list(loss.shape)
            raise ValueError(f"{kind}: forward gave a loss of shape {shape}: return the mean over {self.unit}")
        return loss

    def check_settings(self, stage: str) -> None:
        """Refuse what can be told without data.

        Raises:
            ValueError: the objective has no training or is of pairs and the data module makes none, or the other way
                round; or see `WindowedModule.check_settings`.
        """
        super().check_settings(stage)
        if stage != "fit":
            return
        if not self.objective.trainable:
            raise ValueError(
                f"{type(self.objective).__name__} is not trained: use `ipvrm test`, `validate` or `predict`"
            )
        if getattr(self.data, "pairwise", None) not in (None, self.objective.pairwise):
            wanted = str(self.objective.pairwise).lower()
            raise ValueError(f"{type(self.objective).__name__} needs `pairwise: {wanted}` in the data module")

    def setup(self, stage: str) -> None:
        """Refuse what cannot be trained or tested, before any model is built.

        Raises:
            ValueError: see `check_settings`; or the objective needs pairs and there are none, or test examples lack
                metadata.
        """
        super().setup(stage)
        if stage == "test":
            for dataset in getattr(self.data, "test_sets", ()):
                check_metadata(dataset)
        if stage == "fit" and self.objective.pairwise and not getattr(self.data, "train_pairs", True):
            raise ValueError(
                f"{type(self.objective).__name__} needs pairs: let {type(self.data).__name__}.setup set train_pairs"
                " (ipvrm_lightning.data.build_pairs)"
            )

    def on_fit_start(self) -> None:
        """Compute what a cached reference lacks: one pass over the run's data, so that no copy is needed after it."""
        if not self._uses_reference or not isinstance(self.reference, CachedReference):
            return
        if getattr(self.trainer, "fast_dev_run", False):  # for a batch or two, their values are computed when they come
            return
        parts = self._parts_to_read()
        hidden = self.trainer.progress_bar_callback is None
        with progress(sum(count for _, count in parts), "values of the reference", "batch", hidden=hidden) as bar:
            for batch in chain.from_iterable(islice(loader, count) for loader, count in parts):
                with self.trainer.precision_plugin.forward_context():
                    batch = self.transfer_batch_to_device(batch, self.device, 0)
                    self.reference.log_probs(batch, chunk_size=self.chunk_size)
                bar.update()
        self.reference.release()
        self.trainer.strategy.barrier()
        self.reference.read()  # what the other processes have computed: rows are dealt out otherwise in training

    def _parts_to_read(self) -> list[tuple[EvalLoader, int]]:
        """Training and validation examples that a fit will read, and in how many batches; none where it is not known.

        Of the training examples all, or those of the first windows where the fit ends within its first epoch.
        """
        data, trainer = self.data, self.trainer
        loader = data.train_dataloader() if isinstance(data, TokenizedDataModule) else None
        if not isinstance(loader, WindowLoader):
            return []
        steps = planned_batches(trainer)
        ends_within = 0 < steps <= within_limit(len(loader), trainer.limit_train_batches)
        train = data.evaluation_loader(loader.trajectories, loader.rows(steps) if ends_within else None)
        found: Any = data.val_dataloader()  # one of one's own may give a loader alone, or others
        loaders = [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, EvalLoader)]
        validation = [(one, within_limit(len(one), trainer.limit_val_batches)) for one in loaders]
        return [(train, len(train)), *validation]

    def on_fit_end(self) -> None:
        """Keep values of the reference that were computed on the way, and let go of what computed them."""
        if self._uses_reference:
            self.reference.release()

    def on_validation_epoch_start(self) -> None:
        """Forget an earlier validation."""
        super().on_validation_epoch_start()
        self.val_prefix_accuracy.reset()
        self.val_calibration.reset()

    def validation_step(self, batch: TrajectoryBatch, batch_idx: int) -> None:
        """Log loss and prefix accuracy on rollouts with outcomes, and collect their values.

        Raises:
            ValueError: the loader gives other batches, or they have no outcomes.
        """
        self.check_batch(batch, TrajectoryBatch)
        scores, mask = self.token_scores(batch)
        logits = self.objective.prefix_logits(scores, mask)
        outcomes = batch.outcomes
        if outcomes is None:
            raise ValueError("validation needs rollouts with outcomes, and this batch has none")
        if self.objective.trainable and not self.objective.pairwise:
            self.log_validation_loss(self.objective(scores, mask, batch), batch)
        # 1 where the sign tells the outcome, 0 where it tells the other, a half where the value is 0
        agreement = (1 + logits.sign() * (2 * outcomes[:, None] - 1)) / 2
        self.val_prefix_accuracy.update(agreement[mask])
        self.val_calibration.update(logits, mask, outcomes)
        self.log("val/prefix_accuracy", self.val_prefix_accuracy, batch_size=1)

    def on_validation_epoch_end(self) -> None:
        """Log how validation values rank responses and how they are calibrated."""
        report = self.val_calibration.compute()
        # the report is reduced already; averaging equal values only tells Lightning so
        self.log("val/auroc", report.final_auroc, sync_dist=True, prog_bar=True)
        self.log("val/ece", report.final_ece, sync_dist=True)
        self.log("val/brier", report.final_brier, sync_dist=True)

    def on_test_epoch_start(self) -> None:
        """Forget an earlier test run."""
        self.judge.reset()

    def test_step(self, batch: TrajectoryBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Judge: steps, rollouts and prefixes whose truth is known, whichever the batch carries.

        Returns:
            `td_advantages` and `values` (logits of ending right) of the response tokens, [B, T] each, for callbacks.
        """
        scores, mask = self.token_scores(batch)
        dataset = self.data.test_sets[dataloader_idx]
        metadata = [dataset.metadata(i) for i in batch.index.tolist()]
        logits = self.objective.prefix_logits(scores, mask)
        beta = self.objective.beta
        self.judge.update(scores, logits, mask, batch, metadata, beta=beta, test_set=dataloader_idx)
        return {"td_advantages": beta * scores, "values": logits}

    def on_test_epoch_end(self) -> None:
        """Reduce the judgement over processes; the results table prints and saves it."""
        anywhere = self.trainer.strategy.reduce_boolean_decision
        fed = {name for name in self.judge.metrics() if anywhere(name in self.judge.fed, all=False)}
        self.test_report = self.judge.compute(fed)
        self.scored_solutions = self.judge.solutions
        if self._uses_reference:
            self.reference.release()

    def predict_step(self, batch: TrajectoryBatch, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """Values and TD advantages per token and, where steps are known, per step.

        Returns:
            One record per row: `index`, `token_ids`, `values` (logit of ending right), `td_advantages`; where steps are
            known `step_ids` and `step_scores` by protocol; where it is known `step_label`, the first wrong step.
        """
        scores, mask = self.token_scores(batch)
        logits = self.objective.prefix_logits(scores, mask)
        # once, not row by row
        batch, scores, logits = move_data_to_device((batch, scores, logits), torch.device("cpu"))
        steps = {} if batch.step_ids is None else steps_by_protocol(scores, batch, self.objective.beta)
        records = []
        for row, length in enumerate(batch.response_lengths.tolist()):
            start = int(batch.response_starts[row])
            record: dict[str, Any] = {
                "index": int(batch.index[row]),
                "token_ids": batch.input_ids[row, start : start + length].tolist(),
                "values": logits[row, :length].tolist(),
                "td_advantages": (self.objective.beta * scores[row, :length]).tolist(),
            }
            if batch.step_ids is not None:
                record["step_ids"] = batch.step_ids[row, :length].tolist()
                record["step_scores"] = {protocol: of_rows[row] for protocol, of_rows in steps.items()}
            if batch.step_labels is not None:
                record["step_label"] = int(batch.step_labels[row])
            records.append(record)
        return records

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained, and the objective that says how its scores read."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["objective"] = self.objective.describe()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model, objective or other settings.

        Raises:
            ValueError: names the first thing that differs.
        """
        if "objective" in checkpoint:
            stored = {"objective": checkpoint["objective"]}
            check_same_settings({"objective": self.objective.describe()}, stored, what="the checkpoint")
        elif self.objective.trainable:  # else it scores with whatever model it is given
            raise ValueError(
                "the checkpoint is of no reward model: to start from a supervised one, `ipvrm export` it (--merge) and"
                " give the folder as model.language_model.init_args.name"
            )
        super().on_load_checkpoint(checkpoint)

    def _replace_output_head(self) -> None:
        """Train a linear value head; an output head of its own would get no gradient, which DDP does not forgive.

        Without a bias, which falls out of a pair: Adam would make steps of what rounding leaves of its gradient.
        """
        head = base_language_model(self.model).get_output_embeddings()
        self.value_head = torch.nn.Linear(head.weight.shape[1], 1, bias=False)
        if self.device_mesh is not None and not self.language_model.has_adapters:
            # what one optimiser updates is all sharded or all whole: torch refuses a mixture
            fully_shard(self.value_head, mesh=self.device_mesh["data_parallel"], reshard_after_forward=True)
        freeze_unread_head(self.model)

    @property
    def _uses_reference(self) -> bool:
        return self.objective.score_source == "log_ratio"
