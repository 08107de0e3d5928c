"""`ipvrm predict` writes what it computes: one JSON line per trajectory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from ipvrm_lightning.callbacks.run_files import from_all_processes, is_trial, run_folder, writes_files
from ipvrm_lightning.whole_files import write_lines_atomically


class PredictionFile(BasePredictionWriter):
    """Writes predictions to `<run folder>/predictions.jsonl`, in the order of the data.

    Batch by batch each process adds to a `predictions.rank<process>.jsonl`. At the end the first one makes one file of
    them and removes them; they stay where the run is killed, or where it does not see those of other machines.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")
        self._folder = Path()
        self._lines: list[_Line] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew: without a logger, the folder may hold what an earlier command has left."""
        self._lines = []
        self._folder = folder = run_folder(trainer)
        if writes_files(trainer):
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
        """Write the records of one batch, with the dataset's metadata beside them, unless it is a trial run.

        Raises:
            ValueError: a number is not finite, as in `ipvrm test`; names the row.
        """
        if is_trial(trainer):
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        dataset = trainer.datamodule.test_sets[dataloader_idx]  # type: ignore[attr-defined]
        with self._part(trainer.global_rank).open("ab") as file:
            for record in prediction:
                row, start = record["index"], file.tell()
                line = _json({**dataset.metadata(row), **record}).encode() + b"\n"
                self._lines.append(_Line(dataloader_idx, row, trainer.global_rank, start, crc32(line)))
                file.write(line)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make one file of those of all processes; called on each of them, when it has written its own.

        Raises:
            ValueError: another run has taken away, or written to, what this one has written.
        """
        lines = sorted(line for part in from_all_processes(self._lines) for line in part)
        if not lines or not trainer.is_global_zero:
            return
        parts = {rank: self._part(rank) for rank in {line.rank for line in lines}}
        if self._lines and not (own := self._part(trainer.global_rank)).is_file():
            raise _disturbed(own)
        if all(part.is_file() for part in parts.values()):
            write_lines_atomically(self._folder / "predictions.jsonl", _texts(lines, parts))
            for part in parts.values():
                part.unlink()
        else:
            rank_zero_info("Machines share no folder: each has its part of the predictions, predictions.rank*.jsonl")

    def _part(self, rank: int) -> Path:
        return self._folder / f"predictions.rank{rank}.jsonl"


def _json(record: dict[str, Any]) -> str:
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        row = f"row {record['index']}" + (f" ({record['id']})" if "id" in record else "")
        raise ValueError(f"prediction of {row}: numbers are not finite: try --trainer.precision 32-true") from error


class _Line(NamedTuple):
    """Where a prediction is, in which process's file and after how many bytes; they sort in the order of the data."""

    dataloader: int
    row: int
    rank: int
    offset: int
    checksum: int


def _texts(lines: Sequence[_Line], parts: Mapping[int, Path]) -> Iterator[str]:
    with ExitStack() as stack:
        files = {rank: stack.enter_context(part.open("rb")) for rank, part in parts.items()}
        for line in lines:
            files[line.rank].seek(line.offset)
            text = files[line.rank].readline()
            if crc32(text) != line.checksum:
                raise _disturbed(parts[line.rank])
            yield text.decode()


def _disturbed(part: Path) -> ValueError:
    return ValueError(f"{part}: another run has begun in this folder meanwhile: give each one of its own")
