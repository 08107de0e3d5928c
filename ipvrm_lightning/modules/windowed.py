"""One optimiser step per window: the training loop that supervised fine-tuning and reward models share.

Departs from Lightning's automatic accumulation, which averages the means of micro-batches whatever their sizes. Here
the loader delivers a whole `Window`, and every micro-batch's mean is weighted by its share of the window's count, so
that micro-batch size, accumulation and device count change nothing but speed and memory.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torchmetrics import MeanMetric

from ipvrm_lightning.data.dataset import TrajectoryDataset
from ipvrm_lightning.models.checkpoints import (
    add_frozen,
    check_same_parameters,
    check_settings_of,
    keep_trained,
    optimizer_class,
    own_buffers,
)
from ipvrm_lightning.models.language_model import LanguageModelFactory
from ipvrm_lightning.models.logprobs import check_output_head, check_positions, check_vocabulary
from ipvrm_lightning.models.product_precision import shorten_for
from ipvrm_lightning.models.reference import base_fingerprint
from ipvrm_lightning.models.sharding import is_sharded, placed
from ipvrm_lightning.modules.averages import leave_frozen
from ipvrm_lightning.modules.processes import Processes
from ipvrm_lightning.modules.schedule import Schedule, planned_batches
from ipvrm_lightning.modules.updates import GuardedUpdates, check_clip, check_optimizer
from ipvrm_lightning.strategies import FullyShard, check_fit
from ipvrm_lightning.types import TrajectoryBatch, Unit, Window

_KINDS = {"train": "training", "val": "validation", "test": "test"}


class WindowedModule(LightningModule):
    """A language model trained window by window.

    Args:
        language_model: builds the model and its tokenizer; nothing is loaded before `configure_model`.
        optimizer: called with the trainable parameters.
        scheduler: learning rate over the run.
        gradient_clip_val: largest norm of the gradient, None for no limit.
        chunk_size: response tokens whose logits exist at one time.
        on_nonfinite: "stop" at a loss or gradient that is not finite, or "skip" the update; either names the rows.
        max_skipped_updates: updates in a row that may be skipped before the run stops all the same.

    Raises:
        ValueError: a bound that cannot work.
    """

    unit: Unit
    #: Arguments, dotted within others, that change no result but for rounding: a fit may go on with other ones.
    incidental: ClassVar[frozenset[str]] = frozenset({"chunk_size", "language_model.init_args.gradient_checkpointing"})

    def __init__(
        self,
        *,
        language_model: LanguageModelFactory,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: Schedule | None = None,
        gradient_clip_val: float | None = 1.0,
        chunk_size: int = 256,
        on_nonfinite: Literal["stop", "skip"] = "stop",
        max_skipped_updates: int = 3,
    ) -> None:
        super().__init__()
        check_clip("gradient_clip_val", gradient_clip_val)
        if chunk_size < 1 or max_skipped_updates < 0:
            found = f"{chunk_size} and {max_skipped_updates}"
            raise ValueError(f"chunk_size must be at least 1 and max_skipped_updates at least 0, not {found}")
        self.automatic_optimization = False
        self.strict_loading = False
        self.language_model = language_model
        self.optimizer = optimizer
        self.scheduler = scheduler or Schedule()
        self.gradient_clip_val = gradient_clip_val
        self.chunk_size = chunk_size
        self.model: Any = None
        self.base: str | None = None
        self.skips = GuardedUpdates(max_skipped_updates if on_nonfinite == "skip" else 0)
        self.val_loss = MeanMetric()

    @property
    def data(self) -> Any:
        """The data module this module runs with, None where it runs with loaders alone."""
        return getattr(self.trainer, "datamodule", None)

    @abstractmethod
    def batch_loss(self, batch: TrajectoryBatch) -> Tensor:
        """Mean loss of a micro-batch over `unit`, with gradient."""

    def prepare_data(self) -> None:
        """Refuse settings that cannot work before any data is read, which may take minutes; one process does."""
        command = self.trainer.state.fn
        assert command is not None  # it runs
        self.check_settings(command.value)

    def check_settings(self, stage: str) -> None:
        """Refuse what can be told without data.

        Args:
            stage: "fit", "validate", "test" or "predict".

        Raises:
            ValueError: says which pair cannot work, or what is wrong with the weights.
        """
        check_fit(self.trainer.strategy, self)
        if stage != "fit":
            return
        self.language_model.check_stored()
        divided = isinstance(self.trainer.strategy, FullyShard) and not self.language_model.has_adapters
        if divided and self.model is None and (whole := list(self.trainable_parameters())):
            raise ValueError(
                f"{type(self).__name__}: {whole[0]} is trained and would not be divided over processes as the model is:"
                " torch updates no such mixture; use configs/strategy/ddp.yaml, or lora.yaml with fsdp2.yaml"
            )

    def setup(self, stage: str) -> None:
        """Refuse what cannot work before any model is built: settings, or fewer examples than processes.

        Raises:
            ValueError: see `check_settings`; or which examples are too few.
        """
        self.check_settings(stage)
        if stage == "fit":
            leave_frozen(self.trainer)
        processes = self.trainer.world_size
        for kind in {"fit": ("train", "val"), "validate": ("val",)}.get(stage, ("test",)):
            for dataset in self._sets_of(kind):
                if 0 < (few := len(dataset)) < processes:
                    raise ValueError(f"{few} {_KINDS[kind]} examples cannot be shared by {processes} processes")

    def configure_model(self) -> None:
        """Build the model, and see that it can read the data; called by the strategy, after the data was checked."""
        if self.model is None:
            self.model = placed(self.language_model, self.device_mesh).build_model()
            check_output_head(self.model)
            self.base = base_fingerprint(self.model)
            self.prepare_model()
        sets = self._data_sets()
        check_vocabulary(self.model, max((dataset.largest_id for dataset in sets), default=-1))
        check_positions(self.model, max((int(dataset.lengths.max()) for dataset in sets), default=0))

    def prepare_model(self) -> None:
        """Do what is to be done to a new model, once, before it goes to its device."""
        if self._trainer is not None:
            shorten_for(self.trainer, self.model)

    def configure_optimizers(self) -> Any:
        """Optimiser over what is trained, and its schedule."""
        optimizer = check_optimizer(self.optimizer(self.trainable_parameters().values()))
        scheduler = self.scheduler.build(optimizer, planned_batches(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def trainable_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Parameters the optimiser updates, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def on_train_start(self) -> None:
        """Refuse a schedule that would not be followed.

        Raises:
            ValueError: names the scheduler, which a `configure_optimizers` of one's own has made.
        """
        for config in self.trainer.lr_scheduler_configs:
            plateau = isinstance(config.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            if plateau or (config.interval, config.frequency) != ("step", 1):
                raise ValueError(
                    f"{type(self).__name__}.configure_optimizers: {type(config.scheduler).__name__} is asked for every"
                    f" {config.frequency} {config.interval}; schedules are stepped after every optimiser step:"
                    ' give "interval": "step", and none that waits for a metric'
                )

    def training_step(self, window: Window, batch_idx: int) -> None:
        """One optimiser step.

        Args:
            window: micro-batches of this process and the counts of the whole window.
            batch_idx: unused.

        Raises:
            FloatingPointError: a loss or the gradient is not finite, on any process; names the rows.
            ValueError: the loader gives no windows.
        """
        self.check_batch(window, Window)
        optimizer: Any = self.optimizers()
        processes = self.trainer.world_size
        replicated = self._replicated_parameters()
        losses: list[tuple[Tensor, Tensor]] = []
        last = len(window.micro_batches) - 1
        for position, (batch, share) in enumerate(zip(window.micro_batches, window.shares(self.unit), strict=True)):
            with self._gradients_synchronised(position == last):
                loss = self.batch_loss(batch) * share
                # a strategy averages gradients over the processes; those it does not know are added here
                self.manual_backward(loss if replicated else loss * processes)
            losses.append((loss.detach(), batch.index))
        together = Processes(self.global_rank, processes, self.device)
        together.add_gradients(replicated)
        parameters = list(self.trainable_parameters().values())
        # only now, when every process is done: one that stopped by itself would leave the others waiting
        norm = self.skips.step(
            optimizer, parameters, self.gradient_clip_val, together, losses, getattr(self.data, "train_set", None),
            where=f"step {self.global_step}: ",
        )  # fmt: skip
        self.log("train/lr", float(optimizer.param_groups[0]["lr"]))
        schedules: list[Any] = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        for schedule in schedules:
            schedule.step()
        total = torch.stack([loss for loss, _ in losses]).sum()
        self.log("train/loss", total * processes, prog_bar=True, sync_dist=True)
        self.log("train/skipped_updates", float(self.skips.skipped))
        self.log("train/gradient_norm", norm)

    def check_batch(self, batch: Any, kind: type) -> None:
        """Refuse what a loader of another kind gives.

        Args:
            batch: of the loader.
            kind: that it must be.

        Raises:
            ValueError: says which data module makes such batches.
        """
        if not isinstance(batch, kind):
            raise ValueError(
                f"{type(self).__name__} reads a {kind.__name__}, and its loader gives a {type(batch).__name__}:"
                " use a TokenizedDataModule (ipvrm_lightning.data)"
            )

    def on_validation_epoch_start(self) -> None:
        """Forget a validation that was stopped halfway, or ran in inference mode, whose tensors a fit cannot change."""
        self.val_loss.reset()

    def log_validation_loss(self, loss: Tensor, batch: TrajectoryBatch) -> None:
        """Log `val/loss`, the mean over the unit of all batches and processes.

        By a metric, not by a weighted `self.log`: that averages the integer weights of the processes and rounds down.
        """
        self.val_loss.update(loss, weight=batch.count(self.unit))
        self.log("val/loss", self.val_loss, batch_size=1, prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained; frozen weights come from where they came from."""
        keep_trained(checkpoint, self._state_to_keep())
        checkpoint["settings"] = self.settings_to_keep()
        checkpoint["skips"] = self.skips.state_dict()

    def settings_to_keep(self) -> dict[str, Any]:
        """What a checkpoint and a config must agree on: primitives only; the optimiser, to go on training."""
        settings = {"language_model": self.language_model.describe(), "base": self.base}
        return {**settings, "optimizer": optimizer_class(self.optimizer, self.trainable_parameters())}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model or other settings.

        Raises:
            ValueError: names the first thing that differs.
        """
        check_settings_of(checkpoint, self.settings_to_keep(), training=self.trainer.state.fn == "fit")
        check_same_parameters(self._state_to_keep(), checkpoint["state_dict"], what="the checkpoint")
        add_frozen(checkpoint, self)
        self.skips.load_state_dict(checkpoint["skips"])

    def _state_to_keep(self) -> dict[str, Tensor]:
        return {**self.trainable_parameters(), **own_buffers(self)}

    def _data_sets(self) -> list[TrajectoryDataset]:
        """The run's data, as far as it is known beforehand."""
        return [dataset for kind in _KINDS for dataset in self._sets_of(kind) if len(dataset)]

    def _sets_of(self, kind: str) -> list[TrajectoryDataset]:
        data = None if self._trainer is None else self.data
        sets = getattr(data, "test_sets", []) if kind == "test" else [getattr(data, f"{kind}_set", None)]
        return [dataset for dataset in sets if dataset is not None]

    def _replicated_parameters(self) -> list[torch.nn.Parameter]:
        """Adapters on a sharded model: whole on every process, and unknown to the strategy."""
        if self.device_mesh is None:
            return []
        return [parameter for parameter in self.trainable_parameters().values() if not is_sharded(parameter)]

    def _gradients_synchronised(self, synchronise: bool) -> AbstractContextManager[Any]:
        block = getattr(self.trainer.strategy, "block_backward_sync", None)
        return nullcontext() if synchronise or block is None else block()
