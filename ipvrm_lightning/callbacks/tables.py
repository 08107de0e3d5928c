"""`ResultsTable`: writes what a test run found as JSON, keeps every raw score, and prints the tables."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ipvrm_lightning.callbacks.run_files import from_all_processes, is_trial, run_folder
from ipvrm_lightning.callbacks.run_record import run_facts
from ipvrm_lightning.metrics.score_file import in_stable_order, write_scores
from ipvrm_lightning.metrics.tables import Report, as_report, output_console, plain_report, print_report
from ipvrm_lightning.types import ScoredSolution
from ipvrm_lightning.whole_files import write_atomically


class ResultsTable(Callback):
    """Shows and saves the reports of a test run.

    The module offers `test_report`, a dictionary from a name to a report of a metric of this package, a number, or a
    mapping of names to numbers, the same on every process, and optionally `scored_solutions`, a list of the
    `ScoredSolution` this process has made. Both are read when the test run ends: add to `test_report` in
    `on_test_epoch_end`. With `fast_dev_run` the tables are printed and nothing is written.
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._step: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the checkpoint of an earlier command."""
        self._step = None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember of which step the weights are that are judged: `last.ckpt` is written over while a fit goes on."""
        self._step = checkpoint.get("global_step")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather on all processes, write and print on the first.

        Raises:
            ValueError: the module offers no report, or solutions whose ids occur twice in a subset; or something that
                is no report, once the others are written.
        """
        offered: dict[str, Any] = getattr(pl_module, "test_report", {})
        if not offered:
            raise ValueError(f"{type(pl_module).__name__} has no test_report: nothing was judged in this test run")
        made = {name: as_report(name, found) for name, found in offered.items()}
        reports = {name: report for name, report in made.items() if report is not None}
        # both ask all processes
        scored: list[ScoredSolution] = getattr(pl_module, "scored_solutions", [])
        solutions = in_stable_order(solution for part in from_all_processes(scored) for solution in part)
        folder = run_folder(trainer)
        if not trainer.is_global_zero:
            return
        # files first: whatever may go wrong with a terminal, hours of scoring are on the disk
        written = [] if is_trial(trainer) else self._write(folder, reports, solutions, processes=trainer.world_size)
        console = output_console()
        for report in reports.values():
            print_report(report, console)
        for line in written:
            print(line)
        for name in sorted(made.keys() - reports.keys()):
            raise ValueError(
                f"{type(pl_module).__name__}: test_report[{name!r}] is a {type(offered[name]).__name__} and was left"
                " out: give a report of ipvrm_lightning.metrics, a number, or a mapping of names to numbers"
            )

    def _write(
        self, folder: Path, reports: dict[str, Report], solutions: list[ScoredSolution], *, processes: int
    ) -> list[str]:
        """Write the files; says where they are."""
        said = []
        if solutions:
            scores_path = write_scores(folder / "scores.jsonl", solutions)
            said.append(f"Raw step scores: {scores_path} (ipvrm judge recomputes the tables from it)")
        results = {
            "reports": {name: plain_report(report) for name, report in reports.items()},
            "run": {
                **run_facts(),
                "checkpoint_step": self._step,
                "processes": processes,
                "seconds": time.monotonic() - self._started,
            },
        }
        path = write_atomically(folder / "results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
        return [*said, f"Results: {path}"]
