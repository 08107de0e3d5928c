"""`ipvrm predict` writes what it computes: one JSON line per trajectory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter


class PredictionFile(BasePredictionWriter):
    """Writes predictions to `<run folder>/predictions.jsonl`, batch by batch; one file per process."""

    def __init__(self) -> None:
        super().__init__(write_interval="batch")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew: without a logger, the folder may hold what an earlier command has left."""
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            for earlier in (folder / "predictions.jsonl", *folder.glob("predictions.rank*.jsonl")):
                earlier.unlink(missing_ok=True)
        trainer.strategy.barrier()

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the records of one batch, with the dataset's metadata beside them, unless it is a trial run."""
        if getattr(trainer, "fast_dev_run", False):
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        name = "predictions.jsonl" if trainer.world_size == 1 else f"predictions.rank{trainer.global_rank}.jsonl"
        dataset = trainer.datamodule.test_sets[dataloader_idx]  # type: ignore[attr-defined]
        with (folder / name).open("a", encoding="utf-8") as file:
            for record in prediction:
                record = {**dataset.metadata(record["index"]), **record}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
