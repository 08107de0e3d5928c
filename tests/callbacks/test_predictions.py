from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import LightningModule

from ipvrm_lightning.callbacks.predictions import PredictionFile


def predict(
    folder: Path,
    batches: list[tuple[int, list[int]]],
    *,
    rank: int = 0,
    again: PredictionFile | None = None,
    **more: Any,
) -> PredictionFile:
    """Writes batches of rows of two data sets, as a trainer has them written; stops before the end."""
    sets = [
        SimpleNamespace(metadata=lambda row, name=name: {"id": f"{name}{row}", "index": "of the set"}) for name in "ab"
    ]
    trainer: Any = SimpleNamespace(
        log_dir=str(folder), global_rank=rank, is_global_zero=rank == 0, strategy=SimpleNamespace(barrier=lambda: None),
        datamodule=SimpleNamespace(test_sets=sets), **more,
    )  # fmt: skip
    writer, module = again or PredictionFile(), LightningModule()
    writer.on_predict_start(trainer, module)
    for number, (loader, rows) in enumerate(batches):
        records = [{"index": row, "values": [0.5], "text": "é"} for row in rows]
        writer.write_on_batch_end(trainer, module, records, None, None, number, loader)
    writer.on_predict_end(trainer, module)
    return writer


def ids(file: Path) -> list[str]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert all(row == {"id": row["id"], "index": int(row["id"][1:]), "values": [0.5], "text": "é"} for row in rows)
    return [row["id"] for row in rows]


def test_predictions_stand_in_the_order_of_the_data(tmp_path: Path) -> None:
    predict(tmp_path / "run", [(0, [11, 2]), (0, [0]), (1, [1]), (1, [3, 0])])
    assert ids(tmp_path / "run" / "predictions.jsonl") == ["a0", "a2", "a11", "b0", "b1", "b3"]
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["predictions.jsonl"]


def test_a_trainer_that_predicts_again_begins_anew(tmp_path: Path) -> None:
    predict(tmp_path, [(0, [1])], again=predict(tmp_path, [(0, [2, 0])]))
    assert ids(tmp_path / "predictions.jsonl") == ["a1"]


def test_what_another_machine_has_written_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a folder that both see, each keeps its part."""
    other = predict(tmp_path / "there", [(0, [1])], rank=1)
    assert ids(tmp_path / "there" / "predictions.rank1.jsonl") == ["a1"]
    assert not (tmp_path / "there" / "predictions.jsonl").exists()
    monkeypatch.setattr("ipvrm_lightning.callbacks.predictions.from_all_processes", lambda own: [own, other._lines])
    predict(tmp_path / "here", [(0, [0, 2])])
    assert [file.name for file in (tmp_path / "here").iterdir()] == ["predictions.rank0.jsonl"]
    assert ids(tmp_path / "here" / "predictions.rank0.jsonl") == ["a0", "a2"]
    predict(tmp_path / "idle", [])  # the first process may have had no batch
    assert not (tmp_path / "idle").exists()


def test_a_trial_run_writes_no_predictions_and_leaves_earlier_ones(tmp_path: Path) -> None:
    (tmp_path / "predictions.jsonl").write_text("earlier\n")
    predict(tmp_path, [(0, [0])], fast_dev_run=True)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["earlier\n"]
