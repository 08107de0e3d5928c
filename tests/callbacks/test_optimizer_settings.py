from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim.lr_scheduler import LambdaLR, LinearLR, OneCycleLR, SequentialLR
from transformers import Adafactor

from ipvrm_lightning.callbacks.optimizer_settings import OptimizerSettings
from ipvrm_lightning.modules import IPVRMModule
from ipvrm_lightning.modules.distrl_settings import RewardModel
from ipvrm_lightning.modules.schedule import Schedule
from ipvrm_lightning.objectives import IPVRM
from ipvrm_lightning.strategies import FullyShard

from ..modules.conftest import InMemoryData, quiet_trainer, tiny, trained_state
from ..modules.distrl_cases import module as distrl
from ..modules.distrl_cases import run as distrl_run

STEPS, SAVED = 6, 3
Weights = dict[str, torch.Tensor]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr("ipvrm_lightning.callbacks.optimizer_settings.rank_zero_info", lines.append)
    return lines


class Rates(Callback):
    """What every step was done at."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.rates.append(float(trainer.callback_metrics["train/lr"]))


class ByHand(Callback):
    """Other settings from a step on, in a run that is not interrupted."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == SAVED:
            for group in trainer.optimizers[0].param_groups:
                group.update(self.settings, initial_lr=self.settings["lr"])
            trainer.lr_scheduler_configs[0].scheduler.base_lrs = [self.settings["lr"]]  # type: ignore[union-attr]


def run(
    folder: Path, schedule: Schedule | None = None, *more: Callback, start: str | None = None, strategy: Any = "auto",
    kind: Any = torch.optim.AdamW, **settings: Any,
) -> tuple[Weights, list[float]]:  # fmt: skip
    """Weights after a run, and the rate of every step."""
    torch.manual_seed(0)
    module = IPVRMModule(language_model=tiny(), optimizer=partial(kind, **settings), scheduler=schedule or Schedule())
    rates, saved = Rates(), ModelCheckpoint(folder, every_n_train_steps=SAVED, save_top_k=-1, filename="{step}")
    trainer = quiet_trainer(
        folder, callbacks=[rates, OptimizerSettings(), *more, saved], max_epochs=2, enable_checkpointing=True,
        strategy=strategy,
    )  # fmt: skip
    trainer.fit(module, datamodule=InMemoryData(), ckpt_path=start and folder / start)
    return trained_state(module), rates.rates


def assert_same(first: Weights, second: Weights) -> None:
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_config_wins_over_the_checkpoint_and_moments_stay(tmp_path: Path, said: list[str]) -> None:
    old, new = {"lr": 1e-3, "weight_decay": 0.0}, {"lr": 3e-3, "weight_decay": 0.3, "betas": (0.8, 0.99)}
    expected, _ = run(tmp_path, None, ByHand(**new), **old)
    run(tmp_path, **old)
    found, rates = run(tmp_path, start="step=3.ckpt", **new)
    assert rates == pytest.approx([3e-3] * 3)
    assert_same(found, expected)
    assert said == [
        "AdamW: lr 0.003, in the checkpoint 0.001; betas (0.8, 0.99), in the checkpoint (0.9, 0.999);"
        " weight_decay 0.3, in the checkpoint 0.0"
    ]


@dataclass
class InTwoParts(Schedule):
    def build(self, optimizer: Any, steps: int) -> Any:
        parts = [LinearLR(optimizer, 0.5, total_iters=2), LambdaLR(optimizer, lambda step: 1 / (3 + step))]
        return SequentialLR(optimizer, parts, milestones=[4])


@dataclass
class OneCycle(Schedule):
    """Changes `betas` in every step as well."""

    def build(self, optimizer: Any, steps: int) -> Any:
        return OneCycleLR(optimizer, max_lr=10 * optimizer.param_groups[0]["lr"], total_steps=steps + 1)


SCHEDULES = [Schedule(name="cosine", warmup=0.2), Schedule(name="linear", warmup=1.0), InTwoParts(), OneCycle()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["cosine", "warm-up", "two parts", "one cycle"])
def test_a_schedule_goes_on_at_the_new_rate(schedule: Schedule, tmp_path: Path, said: list[str]) -> None:
    whole, rates = run(tmp_path, schedule, lr=3e-3)
    rest, last = run(tmp_path, schedule, start="step=3.ckpt", lr=3e-3)
    assert last == rates[SAVED:] and not said
    assert_same(rest, whole)
    run(tmp_path, schedule, lr=1e-3)
    _, moved = run(tmp_path, schedule, start="step=3-v1.ckpt", lr=3e-3)
    assert moved == pytest.approx(rates[SAVED:], rel=1e-6) and len(set(moved)) == 3
    assert len(said) == 1 and said[0].startswith("AdamW: lr ")


def test_another_schedule_has_its_own_rate_from_the_first_step(tmp_path: Path) -> None:
    _, rates = run(tmp_path, Schedule(name="cosine"), lr=1e-3)
    run(tmp_path, Schedule(name="linear", warmup=0.5), lr=1e-3)
    _, moved = run(tmp_path, Schedule(name="cosine"), start="step=3-v1.ckpt", lr=1e-3)
    assert moved == rates[SAVED:]


@pytest.mark.parametrize(
    ("kind", "old", "name", "value"),
    [
        (torch.optim.AdamW, {}, "amsgrad", True),
        (torch.optim.RMSprop, {"momentum": 0.0}, "momentum", 0.9),
        (Adafactor, {"beta1": None, "relative_step": False, "scale_parameter": False}, "beta1", 0.9),
    ],
    ids=["a switch", "momentum from none", "moments from none"],
)
def test_what_the_state_does_not_fit_stays_as_it_was(
    kind: Any, old: dict[str, Any], name: str, value: Any, tmp_path: Path, said: list[str]
) -> None:
    whole, _ = run(tmp_path, kind=kind, lr=1e-3, **old)
    rest, _ = run(tmp_path, start="step=3.ckpt", kind=kind, lr=1e-3, **old | {name: value})
    assert_same(rest, whole)
    assert said == [f"{kind.__name__}: {name} stays {old.get(name, False)}, for which the checkpoint has its state"]


def test_momentum_and_a_rate_that_was_0_are_those_of_the_config(tmp_path: Path, said: list[str]) -> None:
    run(tmp_path, kind=torch.optim.SGD, lr=0.0, momentum=0.9)
    _, rates = run(tmp_path, start="step=3.ckpt", kind=torch.optim.SGD, lr=1e-3, momentum=0.5)
    assert rates == pytest.approx([1e-3] * 3)
    assert said == ["SGD: lr 0.001, in the checkpoint 0.0; momentum 0.5, in the checkpoint 0.9"]


def test_shards_are_trained_at_the_rate_of_the_config(tmp_path: Path, said: list[str]) -> None:
    run(tmp_path, lr=1e-3)
    expected, _ = run(tmp_path, start="step=3.ckpt", lr=3e-3)
    found, rates = run(tmp_path, start="step=3.ckpt", strategy=FullyShard(), lr=3e-3)
    assert rates == pytest.approx([3e-3] * 3)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].full_tensor(), value, rtol=0, atol=1e-6)  # type: ignore[operator]
    assert said == ["AdamW: lr 0.003, in the checkpoint 0.001"] * 2


def test_policy_and_reward_model_have_each_their_own(tmp_path: Path, said: list[str]) -> None:
    def fit(steps: int, policy: float, reward: float, start: str | None = None) -> list[tuple[float, float]]:
        sgd = partial(torch.optim.SGD, momentum=0.9)
        model = distrl(
            optimizer=partial(sgd, lr=policy),
            reward=RewardModel(objective=IPVRM(), optimizer=partial(sgd, lr=reward), scheduler=Schedule(warmup=1.0)),
        )
        saved = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1, filename="{step}")
        _, found = distrl_run(
            tmp_path, model, steps=4, callbacks=[OptimizerSettings(), saved], enable_checkpointing=True,
            ckpt_path=start and tmp_path / start,
        )  # fmt: skip
        return [(step["lr"], step["reward/lr"]) for step in found[-steps:]]

    fit(4, 0.5, 0.4)
    assert fit(2, 0.5, 0.8, "step=2.ckpt") == [pytest.approx((0.5, 0.8 * step / 4)) for step in (2, 3)]
    assert fit(2, 0.1, 0.4, "step=2.ckpt") == [pytest.approx((0.1, 0.4 * step / 4)) for step in (2, 3)]
    assert said == ["SGD: lr 0.8, in the checkpoint 0.4", "SGD: lr 0.1, in the checkpoint 0.5"]


def test_a_setting_that_an_older_library_lacked_is_left_as_it_is(said: list[str]) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    trainer: Any = SimpleNamespace(optimizers=[optimizer], lr_scheduler_configs=[])
    settings, before = OptimizerSettings(), dict(optimizer.param_groups[0])
    settings.on_fit_start(trainer, LightningModule())
    ((own,),) = settings.state_dict()["optimizers"]
    settings.load_state_dict({"optimizers": [[{name: own[name] for name in own.keys() - {"maximize", "foreach"}}]]})
    settings.on_train_start(trainer, LightningModule())
    assert not said and optimizer.param_groups[0] == before
