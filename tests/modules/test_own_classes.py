"""Classes of one's own that a config names: what they may rely on, and what is said where they are wrong."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from ipvrm_lightning.data.dataset import TrajectoryDataset
from ipvrm_lightning.data.trajectories import TokenizedDataModule
from ipvrm_lightning.models.checkpoints import own_buffers
from ipvrm_lightning.modules import IPVRMModule
from ipvrm_lightning.objectives import DPORM, IPVRM
from ipvrm_lightning.strategies import FullyShard
from ipvrm_lightning.types import TrajectoryBatch

from .conftest import InMemoryData, make_examples, quiet_trainer, tiny
from .test_ipvrm import Losses

ADAM = partial(torch.optim.AdamW, lr=1e-3)


class RunningMean(IPVRM):
    """Its margin follows the outcomes it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.tensor(0.5))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, scores: Tensor, mask: Tensor, batch: TrajectoryBatch) -> Tensor:
        assert batch.outcomes is not None and isinstance(self.seen, Tensor)
        if torch.is_grad_enabled():
            self.seen.lerp_(batch.outcomes.mean(), 0.5)
        self.margin = 5.0 * self.seen.item()
        return super().forward(scores, mask, batch)

    def describe(self) -> dict[str, Any]:
        return {"class_path": "own.RunningMean", "init_args": {}}


def own_module(**options: Any) -> IPVRMModule:
    torch.manual_seed(0)
    return IPVRMModule(**{"language_model": tiny(lora=True), "optimizer": ADAM, **options})


def fit(folder: Path, module: Any, data: Any = None, ckpt_path: str | None = None, **options: Any) -> Trainer:
    trainer = quiet_trainer(folder, **options)
    trainer.fit(module, datamodule=data or InMemoryData(), ckpt_path=ckpt_path)
    return trainer


def test_a_run_goes_on_with_the_buffers_of_its_objective(tmp_path: Path) -> None:
    whole, second = Losses(), Losses()
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=2, save_top_k=-1, filename="{step}")
    fit(
        tmp_path, own_module(objective=RunningMean()), callbacks=[whole, saver], max_epochs=2, enable_checkpointing=True
    )
    path = str(tmp_path / "step=2.ckpt")
    stored = torch.load(path, weights_only=True)["state_dict"]
    assert [name for name in stored if ".lora_" not in name] == ["objective.seen"]
    fit(tmp_path, own_module(objective=RunningMean()), ckpt_path=path, callbacks=[second], max_epochs=2)
    assert second.values == whole.values[2:] and len(second.values) == 4

    sharded: Any = FullyShard()
    sharded._lightning_module = own_module(objective=RunningMean())
    sharded.load_model_state_dict({"state_dict": {"objective.seen": torch.tensor(0.25)}})
    assert sharded.lightning_module_state_dict()["objective.seen"] == 0.25

    del stored["objective.seen"]
    torch.save({**torch.load(path, weights_only=True), "state_dict": stored}, path)
    with pytest.raises(ValueError, match=r"parameter objective\.seen is absent there"):
        fit(tmp_path, own_module(objective=RunningMean()), ckpt_path=path)


def test_buffers_of_language_models_and_metrics_are_in_no_checkpoint() -> None:
    module = own_module()
    module.configure_model()
    module.model.register_buffer("scale", torch.ones(1))
    assert not own_buffers(module)


def test_an_optimizer_for_matrices_alone_saves_and_goes_on(tmp_path: Path) -> None:
    trainer = fit(tmp_path, own_module(optimizer=torch.optim.Muon), max_steps=1)
    trainer.save_checkpoint(tmp_path / "muon.ckpt")
    fit(tmp_path, own_module(optimizer=torch.optim.Muon), ckpt_path=str(tmp_path / "muon.ckpt"), max_steps=2)
    with pytest.raises(ValueError, match=r"optimizer is torch\.optim\.Muon there and .*AdamW here"):
        fit(tmp_path, own_module(), ckpt_path=str(tmp_path / "muon.ckpt"), max_steps=2)


class OwnRate(IPVRMModule):
    """With an optimiser of its own, and a schedule where one is given."""

    schedule: dict[str, Any] | None = None

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.trainable_parameters().values(), lr=0.25)
        if self.schedule is None:
            return optimizer
        options = {name: value for name, value in self.schedule.items() if name != "kind"}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule["kind"](optimizer), **options}}


def test_an_optimizer_of_ones_own_needs_no_schedule(tmp_path: Path) -> None:
    trainer = fit(tmp_path, OwnRate(language_model=tiny(lora=True)))
    assert trainer.callback_metrics["train/lr"] == 0.25
    halved = OwnRate(language_model=tiny(lora=True))
    halved.schedule = {"kind": partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5), "interval": "step"}
    assert fit(tmp_path, halved, max_steps=2).callback_metrics["train/lr"] == 0.125


@pytest.mark.parametrize(
    "schedule",
    [
        {"kind": torch.optim.lr_scheduler.ReduceLROnPlateau, "interval": "step", "monitor": "val/loss"},
        {"kind": partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5), "interval": "epoch"},
        {"kind": partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5), "interval": "step", "frequency": 2},
    ],
)
def test_a_schedule_that_would_not_be_followed_is_refused(schedule: dict[str, Any], tmp_path: Path) -> None:
    module = OwnRate(language_model=tiny(lora=True))
    module.schedule = schedule
    with pytest.raises(ValueError, match=r"OwnRate.configure_optimizers: \w+LR\w* is asked for every \d (step|epoch)"):
        fit(tmp_path, module)


class OwnData(TokenizedDataModule):
    """Knows nothing of pairs, and of its test examples as much as it is told to keep."""

    def __init__(self, *, steps: bool = False, keep: tuple[str, ...] = ()) -> None:
        super().__init__(batch_size=8, max_tokens=4096)
        self.steps, self.keep = steps, keep

    def setup(self, stage: str | None = None) -> None:
        self.train_set = TrajectoryDataset(make_examples(8))
        examples = make_examples(8, steps=self.steps)
        kept = [{name: one.metadata[name] for name in self.keep} for one in examples]
        self.test_sets = [
            TrajectoryDataset(replace(one, metadata=known) for one, known in zip(examples, kept, strict=True))
        ]


def test_data_without_pairs_are_refused_where_an_objective_needs_them(tmp_path: Path) -> None:
    module = own_module(objective=DPORM())
    with pytest.raises(ValueError, match=r"DPORM needs pairs: let OwnData\.setup set train_pairs"):
        fit(tmp_path, module, OwnData())
    assert module.model is None


@pytest.mark.parametrize(
    ("data", "missing"),
    [(OwnData(), "prompt"), (OwnData(steps=True, keep=("id", "problem")), "subset, step_lengths")],
)
def test_metadata_that_testing_needs_is_missed_before_a_model_is_loaded(
    data: OwnData, missing: str, tmp_path: Path
) -> None:
    module = own_module()
    with pytest.raises(ValueError, match=f"test example 0: its metadata has no {missing}, which testing needs"):
        quiet_trainer(tmp_path).test(module, datamodule=data)
    assert module.model is None


def test_an_outcome_is_no_share() -> None:
    (example,) = make_examples(1)
    with pytest.raises(ValueError, match=r"example 0: outcome must be 0, 1 or None, found 0\.7"):
        TrajectoryDataset([replace(example, outcome=0.7)])  # type: ignore[arg-type]
    assert TrajectoryDataset([replace(example, outcome=1.0)])[0].outcome == 1  # type: ignore[arg-type]


def test_a_loader_of_other_batches_is_refused(tmp_path: Path) -> None:
    loader = torch.utils.data.DataLoader([{"input_ids": torch.arange(5)}] * 4)  # type: ignore[arg-type]
    for more, kind in (((), "Window"), ((loader,), "TrajectoryBatch")):
        with pytest.raises(ValueError, match=rf"IPVRMModule reads a {kind}, and .* gives a dict: use a TokenizedData"):
            quiet_trainer(tmp_path).fit(own_module(), loader, *more)


def test_a_loss_that_is_not_one_number_is_refused(tmp_path: Path) -> None:
    class PerRow(IPVRM):
        def forward(self, scores: Tensor, mask: Tensor, batch: TrajectoryBatch) -> Tensor:
            return (scores * mask).sum(-1)

    with pytest.raises(ValueError, match=r"PerRow: forward gave a loss of shape \[8\]: return the mean over sequences"):
        fit(tmp_path, own_module(objective=PerRow()))
