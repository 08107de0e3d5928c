"""`MetricsFile`: a run's `metrics.csv`, which goes on where a run goes on."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ipvrm_lightning.callbacks.resume_point import logged_until
from ipvrm_lightning.whole_files import write_atomically

_EARLIER = "metrics.earlier.csv"


class MetricsFile(CSVLogger):
    """Lightning's CSV logger, but a run that goes on keeps its rows, less those of steps that are done again.

    Args:
        save_dir: folder of the run's folder.
        version: name of the run's folder.
        resume_from: checkpoint that the run goes on from; None for a new run.
    """

    def __init__(self, save_dir: str, *, version: str, resume_from: str | None = None) -> None:
        super().__init__(save_dir, name="", version=version, flush_logs_every_n_steps=1)
        self.resume_from = resume_from
        self.rows = 0  # of the file; `ResumePoint` keeps their number in checkpoints

    @property
    def experiment(self) -> Any:
        """The writer of the file, on the first process."""
        if self._experiment is None and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            folder = Path(self.log_dir)
            rows = [] if self.resume_from is None else self._earlier_rows(folder, Path(self.resume_from))
            self._experiment = writer = _Writer(log_dir=str(folder))
            writer.metrics, self.rows = rows, len(rows)
            writer.save()
            (folder / _EARLIER).unlink(missing_ok=True)
        return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Write a row, and count it."""
        super().log_metrics(metrics, step)
        self.rows += 1

    def _earlier_rows(self, folder: Path, checkpoint: Path) -> list[dict[str, Any]]:
        """Rows up to the checkpoint; the file is set aside under another name until they are written again."""
        current, earlier = folder / "metrics.csv", folder / _EARLIER
        if current.exists() and not earlier.exists():
            os.replace(current, earlier)
        saved = logged_until(checkpoint)
        rows: list[dict[str, Any]] = []
        if earlier.exists():
            # a full disk or a kill may have torn a line
            whole = earlier.read_text(errors="replace").rpartition("\n")[0]
            for found in csv.DictReader(whole.replace("\0", "").splitlines()):
                if None not in found.values() and found["step"].isdecimal():
                    rows.append({k: v for k, v in found.items() if v})
        return [*rows[: saved.rows], *([] if saved.pending is None else [saved.pending])]


class _Writer(ExperimentWriter):
    """Lightning's, but a new column, for which all rows are written anew, leaves the file whole at any moment."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with open(self.metrics_file_path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=fieldnames)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.metrics_file_path, text.getvalue())
