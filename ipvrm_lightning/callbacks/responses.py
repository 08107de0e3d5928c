"""`ResponseFile`: keeps what a policy answered when it was judged."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ipvrm_lightning.callbacks.run_files import from_all_processes, is_trial, run_folder, writes_files
from ipvrm_lightning.whole_files import write_atomically


class ResponseFile(Callback):
    """Writes the responses and outcomes of an evaluation, one line per prompt, to the run's folder.

    The module offers `evaluated`, the records of the prompts that this process has answered, and `policy_version`, the
    optimiser steps that its weights have seen. A test run writes `responses.jsonl`, a validation
    `responses-step<policy version>.jsonl`. Batch by batch each process adds to a `responses.rank<process>.jsonl`, and
    removes it once that file is there: an evaluation that is killed leaves what was sampled until then.
    """

    def __init__(self) -> None:
        self._part: Path | None = None
        self._kept = 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew."""
        self._start(trainer, _validation(trainer, pl_module))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew: without a logger, the folder may hold what an earlier command has left."""
        self._start(trainer, "responses")

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Keep what was sampled."""
        self._keep(pl_module)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Keep what was sampled."""
        self._keep(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, unless it is the sanity check."""
        if not trainer.sanity_checking:
            self._write(trainer, pl_module, f"{_validation(trainer, pl_module)}.jsonl")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write."""
        self._write(trainer, pl_module, "responses.jsonl")

    def _start(self, trainer: Trainer, name: str) -> None:
        part = run_folder(trainer) / f"{name}.rank{trainer.global_rank}.jsonl"
        self._part, self._kept = None if trainer.sanity_checking or is_trial(trainer) else part, 0
        if self._part is not None:
            self._part.unlink(missing_ok=True)

    def _keep(self, pl_module: LightningModule) -> None:
        """Add what the last batch has brought, whole lines that are on the disk when this returns."""
        new: list[dict[str, Any]] = getattr(pl_module, "evaluated", [])[self._kept :]
        if self._part is None or not new:
            return
        self._part.parent.mkdir(parents=True, exist_ok=True)
        with self._part.open("ab") as file:
            file.write(_lines(new).encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        self._kept += len(new)

    def _write(self, trainer: Trainer, pl_module: LightningModule, name: str) -> None:
        own: list[dict[str, Any]] = getattr(pl_module, "evaluated", [])
        folder = run_folder(trainer)
        everywhere = (record for part in from_all_processes(own) for record in part)
        records = sorted(everywhere, key=lambda record: str(record["id"]))
        if records and writes_files(trainer):
            write_atomically(folder / name, _lines(records))
        trainer.strategy.barrier()  # before that nobody's part may go
        if self._part is not None:
            self._part.unlink(missing_ok=True)


def _validation(trainer: Trainer, pl_module: LightningModule) -> str:
    """Name of a validation's file: the trainer itself counts no steps before a checkpoint that is judged."""
    return f"responses-step{getattr(pl_module, 'policy_version', trainer.global_step)}"


def _lines(records: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
