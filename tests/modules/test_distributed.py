"""Two processes give the numbers of one."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ipvrm_lightning.callbacks.predictions import PredictionFile
from ipvrm_lightning.metrics import report_to_json
from ipvrm_lightning.modules import IPVRMModule
from ipvrm_lightning.modules.distrl_settings import RewardModel
from ipvrm_lightning.objectives import DPORM, IPVRM, Objective

from .conftest import InMemoryData, quiet_trainer, tiny, trained_state
from .distrl_cases import TinyPrompts
from .distrl_cases import module as distrl_module


@pytest.mark.parametrize(("objective", "lora"), [(IPVRM(), True), (DPORM(), False)], ids=["adapters", "full models"])
def test_distrl_on_two_processes_gives_the_weights_and_logs_of_one(
    objective: Objective, lora: bool, tmp_path: Path
) -> None:
    results = []
    for processes in (1, 2):
        small = partial(torch.optim.SGD, lr=0.02)
        reward = RewardModel(
            objective=objective,
            optimizer=small,
            adaptive_difficulty_boundary=objective.balanced,
            dynamic_loss_weighting=objective.balanced,
        )
        torch.manual_seed(0)
        module = distrl_module(lora=lora, reward=reward, update={"mini_batches": 2}, optimizer=small)
        options = {"strategy": "ddp_spawn", "devices": 2} if processes == 2 else {}
        file = tmp_path / f"{processes}.pt"
        trainer = quiet_trainer(tmp_path, callbacks=[SaveState(file)], limit_train_batches=3, **options)
        trainer.fit(module, datamodule=TinyPrompts())
        results.append(torch.load(file, weights_only=True))
    one, two = results
    for name, value in one["state"].items():
        torch.testing.assert_close(two["state"][name], value, rtol=0, atol=1e-5)
    timed = ("seconds", "tokens_per_second")
    assert one["metrics"].keys() == two["metrics"].keys()
    for name, value in one["metrics"].items():
        if not any(part in name for part in timed):
            assert two["metrics"][name] == pytest.approx(value, abs=1e-4, rel=1e-4), name


class SaveState(Callback):
    """The module lives in another process: what it has learnt comes back through a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            torch.save({"state": trained_state(pl_module), "metrics": metrics}, self.file)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            reports = {name: json.loads(report_to_json(report)) for name, report in pl_module.test_report.items()}
            self.file.write_text(json.dumps(reports))


def run(folder: Path, objective: Objective, processes: int) -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    module = IPVRMModule(
        language_model=tiny(lora=True), objective=objective, optimizer=partial(torch.optim.SGD, lr=0.05)
    )
    options = {"strategy": "ddp_spawn", "devices": 2} if processes == 2 else {}
    file = folder / f"{processes}.pt"
    trainer = quiet_trainer(folder, callbacks=[SaveState(file)], **options)
    # of 25 rows, the last window has one, and none for the second process
    trainer.fit(module, datamodule=InMemoryData(count=25, max_tokens=60, pairwise=objective.pairwise))
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    "objective", [IPVRM(), IPVRM(reduction="token"), DPORM(beta=1.0)], ids=["mean", "token", "pair"]
)
def test_training_on_two_processes_gives_the_weights_and_metrics_of_one(objective: Objective, tmp_path: Path) -> None:
    one, two = (run(tmp_path, objective, processes) for processes in (1, 2))
    for name, value in one["state"].items():
        torch.testing.assert_close(two["state"][name], value, rtol=0, atol=1e-5)
    assert one["metrics"].keys() == two["metrics"].keys()
    for name, value in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(value, abs=1e-5), name


def test_judging_on_two_processes_gives_the_report_of_one(tmp_path: Path) -> None:
    reports = []
    for processes in (1, 2):
        options = {"strategy": "ddp_spawn", "devices": 2} if processes == 2 else {}
        file = tmp_path / f"{processes}.json"
        trainer = quiet_trainer(tmp_path, callbacks=[SaveState(file)], **options)
        trainer.test(IPVRMModule(language_model=tiny(lora=True)), datamodule=InMemoryData(max_tokens=60), verbose=False)
        reports.append(json.loads(file.read_text()))
    assert reports[0] == reports[1]


def test_too_few_examples_for_the_processes_are_refused_before_a_model_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "world_size", 41)
    module, trainer = IPVRMModule(language_model=tiny()), quiet_trainer(tmp_path)
    for run, count, few in (
        (trainer.fit, 24, "24 training"),
        (trainer.fit, 50, "40 validation"),
        (trainer.test, 50, "12 test"),
    ):
        with pytest.raises(ValueError, match=f"{few} examples cannot be shared by 41 processes"):
            run(module, datamodule=InMemoryData(count=count))
    assert module.model is None


class LosesItsFile(Callback):
    """The second process's file is on another machine."""

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank == 1:
            folder = Path(trainer.default_root_dir)
            (folder / "predictions.rank1.jsonl").rename(folder / "elsewhere.jsonl")


def predict(folder: Path, *callbacks: Callback, **options: Any) -> None:
    trainer = quiet_trainer(folder, callbacks=[*callbacks, PredictionFile()], **options)
    module = IPVRMModule(language_model=tiny(lora=True))
    trainer.predict(module, datamodule=InMemoryData(max_tokens=60), return_predictions=False)


def test_predictions_of_two_processes_are_one_file_in_the_order_of_the_data(tmp_path: Path) -> None:
    found = []
    for folder, options in ((tmp_path / "one", {}), (tmp_path / "two", {"strategy": "ddp_spawn", "devices": 2})):
        predict(folder, **options)
        assert [file.name for file in folder.iterdir()] == ["predictions.jsonl"]
        found.append([json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()])
    one, two = found
    assert [record["index"] for record in two] == [*range(12), *range(40)]  # of two test sets
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys() and first["token_ids"] == second["token_ids"]
        assert first["values"] == pytest.approx(second["values"], abs=1e-5)


def test_predictions_stay_where_machines_share_no_folder(tmp_path: Path) -> None:
    predict(tmp_path, LosesItsFile(), strategy="ddp_spawn", devices=2)
    assert {file.name for file in tmp_path.iterdir()} == {"predictions.rank0.jsonl", "elsewhere.jsonl"}
