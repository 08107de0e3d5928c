from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from ipvrm_lightning.loggers import MetricsFile

ROWS = "epoch,step,train/loss\n0,0,0.5\n0,1,0.25\n0,2,0.125\n"


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        (ROWS, [0, 1, 2]),
        (ROWS + "1", [0, 1, 2]),
        (ROWS + "1,", [0, 1, 2]),
        (ROWS + "0,2", [0, 1, 2]),
        (ROWS + "0,9\n0,x,1\n\0\0\n", [0, 1, 2]),
        (ROWS[:-1], [0, 1]),
        ("epoch,st", []),
        ("", []),
    ],
)
def test_a_run_goes_on_with_the_whole_rows_of_a_torn_file(text: str, steps: list[int], tmp_path: Path) -> None:
    loop = {"epoch_loop.state_dict": {"_batches_that_stepped": 3}}
    torch.save({"loops": {"fit_loop": loop}, "logged": {"step": 3, "train/loss": 0.0}}, tmp_path / "resume.ckpt")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text(text)
    logger = MetricsFile(str(tmp_path), version="run", resume_from=str(tmp_path / "resume.ckpt"))
    logger.log_metrics({"train/loss": 0.0625}, step=4)
    logger.save()
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [*steps, 3, 4]
