from __future__ import annotations

import csv
import shutil
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from ipvrm_lightning.callbacks.resume_point import ResumePoint
from ipvrm_lightning.callbacks.whole_epochs import WholeEpochs
from ipvrm_lightning.loggers import MetricsFile
from ipvrm_lightning.modules import IPVRMModule

from .modules.conftest import InMemoryData, quiet_trainer, tiny
from .processes import Started
from .test_runs import keep

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
    log = {"step": 3, "rows": 3, "pending": {"step": 3, "train/loss": 0.0}}
    torch.save({"log": log}, tmp_path / "resume.ckpt")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text(text)
    logger = MetricsFile(str(tmp_path), version="run", resume_from=str(tmp_path / "resume.ckpt"))
    logger.log_metrics({"train/loss": 0.0625}, step=4)
    logger.save()
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [*steps, 3, 4]
    assert logger.rows == len(steps) + 2  # checkpoints keep it
    assert [found.name for found in (tmp_path / "run").glob("metrics*")] == ["metrics.csv"]


def fit(folder: Path, every: int, resume: Path | None = None) -> list[dict[str, str]]:
    """Rows of a run of three windows an epoch that validates within epochs, whichever checkpoint it goes on from."""
    torch.manual_seed(0)
    log = MetricsFile(str(folder), version="run", resume_from=None if resume is None else str(resume))
    kept = [
        ModelCheckpoint(save_top_k=-1, filename="validated-{step}"),
        ModelCheckpoint(save_top_k=-1, filename="epoch-{step}", save_on_train_epoch_end=True, monitor="step"),
        ModelCheckpoint(save_top_k=-1, filename="within-{step}", every_n_train_steps=1),
    ]
    trainer = quiet_trainer(
        folder, callbacks=[*kept, WholeEpochs(), ResumePoint(minutes=60)], logger=log, enable_checkpointing=True,
        log_every_n_steps=every, val_check_interval=2, max_steps=9, max_epochs=-1, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(IPVRMModule(language_model=tiny(lora=True)), datamodule=InMemoryData(), ckpt_path=resume)
    with (folder / "run" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_kill_while_rows_are_written_anew_loses_none(tmp_path: Path) -> None:
    torch.save({"log": {"step": 2, "rows": 3, "pending": None}}, tmp_path / "resume.ckpt")
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.earlier.csv").write_text(ROWS)
    (run / "metrics.csv").write_text("epoch,step,train/loss\n0,0,0.5\n")
    logger = MetricsFile(str(tmp_path), version="run", resume_from=str(tmp_path / "resume.ckpt"))
    assert logger.experiment is not None  # which Lightning asks for long before the first row
    assert (run / "metrics.csv").read_text() == ROWS and not (run / "metrics.earlier.csv").exists()
    logger.log_metrics({"epoch": 1}, 3)
    with (run / "metrics.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["0", "1", "2", "3"]


def test_a_run_that_another_process_goes_on_with_keeps_its_rows(tmp_path: Path) -> None:
    """Both had looked before either wrote; the other one has even removed the checkpoint by now."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.csv").write_text(ROWS)
    other = Started(keep, run, "alone")
    try:
        while not (run / "alone").exists():
            assert other.poll() is None, other.said()
            time.sleep(0.02)
        logger = MetricsFile(str(tmp_path), version="run", resume_from=str(tmp_path / "resume.ckpt"))
        with pytest.raises(ValueError, match="run: this run is still going on in another process"):
            logger.log_metrics({"train/loss": 0.0625}, step=3)
    finally:
        other.kill()
        other.wait()
    with pytest.raises(FileNotFoundError, match="resume"):
        logger.log_metrics({"train/loss": 0.0625}, step=3)
    assert [file.name for file in run.glob("metrics*")] == ["metrics.csv"]
    assert (run / "metrics.csv").read_text() == ROWS


EVERY_KIND = ("validated-step=2", "epoch-step=3", "within-step=4", "validated-step=5", "epoch-step=6")


def test_a_kill_while_a_column_is_added_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger, file = MetricsFile(str(tmp_path), version="run"), tmp_path / "run" / "metrics.csv"
    logger.log_metrics({"loss": 1.0}, 0)
    before, seen = file.read_bytes(), list[bytes]()
    header = csv.DictWriter.writeheader

    def look(writer: csv.DictWriter[str]) -> None:
        seen.append(file.read_bytes())
        header(writer)

    monkeypatch.setattr(csv.DictWriter, "writeheader", look)
    logger.log_metrics({"loss": 0.5, "val/loss": 2.0}, 1)
    assert seen == [before] and before.count(b"\n") == 2
    with file.open(newline="") as rows:
        found = list(csv.DictReader(rows))
    assert [(row["step"], row["loss"], row["val/loss"]) for row in found] == [("0", "1.0", ""), ("1", "0.5", "2.0")]


@pytest.mark.parametrize(
    ("every", "first", "names"),
    [
        (1, [("0", False), ("1", False), ("1", True), ("2", False)], EVERY_KIND),
        (5, [("1", True), ("4", False), ("4", True), ("7", True)], ("within-step=4", "within-step=7")),
    ],
)
def test_no_row_is_lost_or_invented_whichever_checkpoint_a_run_goes_on_from(
    every: int, first: list[tuple[str, bool]], names: tuple[str, ...], tmp_path: Path
) -> None:
    rows = fit(tmp_path, every)
    assert [(row["step"], bool(row["val/loss"])) for row in rows[:4]] == first
    for name in names:
        file = tmp_path / "run" / "checkpoints" / f"{name}.ckpt"
        again = tmp_path / file.stem
        (again / "run").mkdir(parents=True)
        shutil.copy(tmp_path / "run" / "metrics.csv", again / "run" / "metrics.csv")
        assert fit(again, every, file) == rows, file
