"""Loggers of a run: its `metrics.csv`, which goes on where the run does, and those of the config."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ipvrm_lightning.callbacks.resume_point import logged_until
from ipvrm_lightning.run_folders import hold
from ipvrm_lightning.whole_files import write_atomically

_EARLIER = "metrics.earlier.csv"


def loggers_of_run(root: Path, run: str, resumed: Path | None, chosen: Any) -> list[Any]:
    """The run's own log, and those chosen or TensorBoard's. Ours is first: Lightning puts files where that writes.

    Args:
        root: folder of the runs.
        run: name of the run's folder.
        resumed: checkpoint that the run goes on from; None for a new run.
        chosen: `trainer.logger` of the config, not false.

    Returns:
        What `trainer.logger` is to be, as the parser has it.
    """
    own = {"save_dir": str(root), "version": run}
    table = Namespace(**own, resume_from=None if resumed is None else str(resumed))
    first = Namespace(class_path="ipvrm_lightning.loggers.MetricsFile", init_args=table)
    others = [] if chosen in (None, True) else chosen if isinstance(chosen, list) else [chosen]
    # the config that a run has kept names its loggers, which would write to that run again
    earlier = {one.init_args.version for one in others if one.class_path == first.class_path}
    others = [one for one in others if one.get("init_args", {}).get("version") not in earlier]
    if others:
        return [first, *others]
    board = Namespace(**own, name="", purge_step=None if resumed is None else logged_until(resumed).step + 1)
    return [first, Namespace(class_path="lightning.pytorch.loggers.TensorBoardLogger", init_args=board)]


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
        """Rows up to the checkpoint; the file is set aside under another name until they are written again.

        Raises:
            ValueError: another process goes on with the run since this one has looked: data may take long to prepare.
        """
        hold(folder, "look").close()
        saved = logged_until(checkpoint)
        current, earlier = folder / "metrics.csv", folder / _EARLIER
        if current.exists() and not earlier.exists():
            os.replace(current, earlier)
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
