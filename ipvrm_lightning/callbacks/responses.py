"""`ResponseFile`: keeps what a policy answered when it was judged."""

from __future__ import annotations

import json
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ipvrm_lightning.callbacks.run_files import from_all_processes, run_folder, writes_files
from ipvrm_lightning.whole_files import write_atomically


class ResponseFile(Callback):
    """Writes the responses and outcomes of an evaluation, one line per prompt, to the run's folder.

    The module offers `evaluated`, the records of the prompts that this process has answered. A test run writes
    `responses.jsonl`, a validation during training `responses-step<global step>.jsonl`.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, unless it is the sanity check."""
        if not trainer.sanity_checking:
            self._write(trainer, pl_module, f"responses-step{trainer.global_step}.jsonl")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write."""
        self._write(trainer, pl_module, "responses.jsonl")

    def _write(self, trainer: Trainer, pl_module: LightningModule, name: str) -> None:
        own: list[dict[str, Any]] = getattr(pl_module, "evaluated", [])
        folder = run_folder(trainer)
        everywhere = (record for part in from_all_processes(own) for record in part)
        records = sorted(everywhere, key=lambda record: str(record["id"]))
        if records and writes_files(trainer):
            write_atomically(folder / name, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
