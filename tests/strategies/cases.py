"""Runs that give the same numbers under any strategy, and their start on two processes by torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from ipvrm_lightning.metrics import report_to_json
from ipvrm_lightning.models import LoRA, RandomLanguageModel
from ipvrm_lightning.models.sharding import is_sharded, whole
from ipvrm_lightning.modules import IPVRMModule, SFTModule
from ipvrm_lightning.modules.distrl_settings import RewardModel
from ipvrm_lightning.objectives import IPVRM, QRM
from ipvrm_lightning.strategies import FullyShard

from ..conftest import REPOSITORY
from ..modules.conftest import QWEN, InMemoryData, quiet_trainer
from ..modules.distrl_cases import Losses, TinyPolicy, TinyPrompts
from ..modules.distrl_cases import module as distrl_module

STEPS = 10
ADAM = partial(torch.optim.AdamW, lr=1e-3)
#: Divides into no number of processes that tests use: 97 tokens, 3 layers.
UNEVEN = {**QWEN, "num_hidden_layers": 3, "tie_word_embeddings": True}


def language_model(*, lora: bool = False, **options: Any) -> RandomLanguageModel:
    return RandomLanguageModel(config=UNEVEN, lora=LoRA(r=4) if lora else None, **options)


def ipvrm(**options: Any) -> tuple[Any, Any]:
    defaults = {"language_model": language_model(), "objective": IPVRM(), "optimizer": ADAM}
    module = IPVRMModule(**{**defaults, **options})
    return module, InMemoryData(count=40, max_tokens=60, pairwise=module.objective.pairwise)


def distrl(*, reference: str = "behavior", **options: Any) -> tuple[Any, Any]:
    reward = RewardModel(objective=IPVRM(), optimizer=ADAM, reference=reference)  # type: ignore[arg-type]
    update = {"mini_batches": 2}
    return distrl_module(reward=reward, optimizer=ADAM, update=update, **options), TinyPrompts()


CASES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "ipvrm": ipvrm,
    "ipvrm checkpointed": lambda: ipvrm(language_model=language_model(gradient_checkpointing=True)),
    "ipvrm adapters": lambda: ipvrm(language_model=language_model(lora=True, gradient_checkpointing=True)),
    "qrm": lambda: ipvrm(objective=QRM()),
    "sft": lambda: (SFTModule(language_model=language_model(), optimizer=ADAM), InMemoryData(count=40, max_tokens=60)),
    "distrl": lambda: distrl(reference="sft"),
    "distrl adapters": lambda: distrl(language_model=TinyPolicy(lora=LoRA(r=4), gradient_checkpointing=True)),
}


class Record(Losses):
    """What a run logged in every step, and whether its model was in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.sharded = False

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module)
        self.sharded = all(is_sharded(p) for name, p in pl_module.named_parameters() if "lora" not in name)


def run(name: str, folder: Path, **options: Any) -> None:
    """Train, validate and test; the first process writes what came of it to `folder / (name + .pt)`."""
    torch.manual_seed(0)
    module, data = CASES[name]()
    record = Record()
    distributed = isinstance(options.get("strategy"), FullyShard)
    trainer = quiet_trainer(
        folder, callbacks=[record], max_steps=STEPS, max_epochs=-1, **options
    )
    trainer.fit(module, datamodule=data)
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
    state = {key: whole(value.detach()).clone() for key, value in module.trainable_parameters().items()}
    reports: dict[str, Any] = {}
    if name != "sft":
        trainer.test(module, datamodule=data, verbose=False)
        reports = {key: json.loads(report_to_json(report)) for key, report in module.test_report.items()}
    if trainer.is_global_zero:
        found = {"steps": record.steps, "metrics": metrics, "state": state, "reports": reports}
        torch.save({**found, "sharded": record.sharded and distributed}, folder / f"{name}.pt")


STRATEGIES: dict[str, Callable[[], Any]] = {"ddp": lambda: "ddp", "fsdp2": FullyShard}


def main(strategy: str, folder: Path, names: list[str]) -> None:
    for name in names:
        run(name, folder, strategy=STRATEGIES[strategy](), devices=int(os.environ["WORLD_SIZE"]))


def on_two_processes(strategy: str, folder: Path, names: list[str]) -> None:
    """Run cases on two processes with a strategy."""
    script = (
        "import sys; from pathlib import Path; from tests.strategies.cases import main;"
        "main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])"
    )
    launcher = folder / "launch.py"
    launcher.write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*command, str(launcher), strategy, str(folder), *names],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
