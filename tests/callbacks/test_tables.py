from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from ipvrm_lightning.callbacks.tables import ResultsTable
from ipvrm_lightning.metrics import StepF1, plain_report, read_scores, recompute
from ipvrm_lightning.types import ScoredSolution


def scored(index: int) -> ScoredSolution:
    label = index % 3 - 1
    scores = {"step_sum": [float((index * 7 + step * 5) % 11) for step in range(2)]}
    return ScoredSolution(f"s{index}", "only", f"p{index // 2}", label, scores, [3 + index, 9], label < 0)


class Judged(LightningModule):
    """Judges its share of made-up solutions, as a module does in `test_step`."""

    def __init__(self) -> None:
        super().__init__()
        self.step_f1 = StepF1(resamples=20, random_seeds=3)
        self.test_report: dict[str, Any] = {}
        self.scored_solutions: list[ScoredSolution] = []

    def test_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        solutions = [scored(index) for index in batch.tolist()]
        self.step_f1.update(solutions)
        self.scored_solutions.extend(solutions)

    def on_test_epoch_end(self) -> None:
        self.test_report = {"step_f1": self.step_f1.compute()}


def run(folder: Path, *, devices: int = 1, module: LightningModule | None = None, **arguments: Any) -> None:
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp_spawn" if devices > 1 else "auto",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        callbacks=[ResultsTable()],
        **arguments,
    )
    trainer.test(module or Judged(), torch.utils.data.DataLoader(range(12), batch_size=2), verbose=False)  # type: ignore[arg-type]


def test_a_run_leaves_its_table_results_and_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path, before = tmp_path / "run[v2]", time.monotonic()
    run(tmp_path)
    printed = capsys.readouterr().out
    assert "longest step (floor)" in printed and f"Results: {tmp_path}/results.json\n" in printed
    assert f"Raw step scores: {tmp_path}/scores.jsonl (" in printed
    assert [one.id for one in read_scores(tmp_path / "scores.jsonl")] == sorted(f"s{index}" for index in range(12))
    results = json.loads((tmp_path / "results.json").read_text())
    from ipvrm_lightning.metrics import JudgeSettings

    again = recompute(tmp_path / "scores.jsonl", JudgeSettings(resamples=20, random_seeds=3))
    assert results["reports"]["step_f1"] == plain_report(again)
    assert results["run"]["versions"]["torch"] == torch.__version__
    assert results["run"]["processes"] == 1
    assert set(results["run"]) >= {"command", "seed", "time"}
    assert 0 < results["run"]["seconds"] < time.monotonic() - before


def test_the_step_of_the_checkpoint_that_was_judged_is_known(tmp_path: Path) -> None:
    """Of the one that was loaded, be it written over while it is judged."""

    class WrittenOver(Judged):
        def on_test_start(self) -> None:
            torch.save({**stored, "global_step": 9}, tmp_path / "last.ckpt")

    stored = {"state_dict": {}, "global_step": 7, "pytorch-lightning_version": "2.6.0", "callbacks": {}}
    torch.save(stored, tmp_path / "last.ckpt")
    trainer = Trainer(
        **{"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "default_root_dir": tmp_path},
        callbacks=[ResultsTable()],
    )
    loader = torch.utils.data.DataLoader(range(12), batch_size=2)  # type: ignore[arg-type, var-annotated]
    for checkpoint, step in ((tmp_path / "last.ckpt", 7), (None, None)):
        trainer.test(WrittenOver(), loader, verbose=False, ckpt_path=checkpoint)
        assert json.loads((tmp_path / "results.json").read_text())["run"]["checkpoint_step"] == step


class JudgedMore(Judged):
    """With reports of its own, one of which cannot be shown."""

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        self.test_report |= {"mine": {"a": 1.5, "b": torch.tensor(2)}, "one": float("nan"), "list": [1.0]}


def test_numbers_of_ones_own_are_written_and_other_things_lose_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"JudgedMore: test_report\['list'\] is a list and was left out"):
        run(tmp_path, module=JudgedMore())
    reports = json.loads((tmp_path / "results.json").read_text())["reports"]
    assert set(reports) == {"step_f1", "mine", "one"}
    assert reports["mine"] == {"a": 1.5, "b": 2} and reports["one"] == {"one": None}
    printed = capsys.readouterr().out
    assert "mine" in printed and "1.5" in printed and f"Results: {tmp_path}/results.json\n" in printed


class OneNumber(LightningModule):
    """Judges no solutions."""

    def test_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.test_report = {"rows": float(batch.numel())}


def test_a_run_without_solutions_leaves_no_scores(tmp_path: Path) -> None:
    run(tmp_path, module=OneNumber())
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_two_processes_leave_the_same_files(tmp_path: Path) -> None:
    run(tmp_path / "one")
    run(tmp_path / "two", devices=2)
    first, second = (tmp_path / name / "scores.jsonl" for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    reports = [json.loads((tmp_path / name / "results.json").read_text())["reports"] for name in ("one", "two")]
    assert reports[0] == reports[1]


def test_what_cannot_be_printed_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise UnicodeEncodeError("ascii", "é", 0, 1, "a terminal without letters")

    monkeypatch.setattr("ipvrm_lightning.callbacks.tables.print_report", fail)
    with pytest.raises(UnicodeEncodeError):
        run(tmp_path)
    assert (tmp_path / "results.json").is_file() and (tmp_path / "scores.jsonl").is_file()


def test_a_trial_run_writes_nothing(tmp_path: Path) -> None:
    run(tmp_path, fast_dev_run=True)
    assert not list(tmp_path.glob("*.json*"))


def test_a_module_that_judged_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Judged, "on_test_epoch_end", lambda self: None)
    with pytest.raises(ValueError, match="Judged has no test_report"):
        run(tmp_path)
