"""Numbers that are not finite: which rows are named, what is skipped, and that all processes decide alike."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from ipvrm_lightning.data import TrajectoryDataModule
from ipvrm_lightning.modules import IPVRMModule, updates
from ipvrm_lightning.modules.processes import Processes
from ipvrm_lightning.modules.updates import GuardedUpdates, check_optimizer, gradient_norm, named_rows
from ipvrm_lightning.objectives import IPVRM
from ipvrm_lightning.types import TrajectoryBatch

from ..fuzz.bases import build_tokenizer
from .conftest import InMemoryData, quiet_trainer, tiny, trained_state

SGD = partial(torch.optim.SGD, lr=0.05)


class Spoilt(IPVRM):
    """Not finite for one row of the training set, or from some window on."""

    def __init__(self, *, row: int | None = None, calls: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.row, self.calls, self.called = row, calls, 0

    def describe(self) -> dict[str, Any]:
        return {"class_path": "Spoilt", "init_args": {}}  # the same to a checkpoint, whatever it spoils

    def forward(self, scores: Tensor, mask: Tensor, batch: TrajectoryBatch) -> Tensor:
        loss = super().forward(scores, mask, batch)
        self.called += self.training
        spoilt = self.called - 1 in self.calls or (self.row is not None and self.row in batch.index.tolist())
        return loss * float("nan") if spoilt and self.training else loss


class Log(Callback):
    """Per step: whether the weights moved, and the count of skipped updates, kept in a file for each process."""

    def __init__(self, file: Path) -> None:
        self.file, self.steps = file, []  # type: ignore[var-annotated]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.before = trained_state(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        moved = any(not torch.equal(value, self.before[name]) for name, value in trained_state(pl_module).items())
        self.steps.append((moved, float(trainer.callback_metrics["train/skipped_updates"])))
        total = sum(value.double().sum().item() for value in trained_state(pl_module).values())
        self.file.with_suffix(f".{trainer.global_rank}").write_text(json.dumps([self.steps, total]))


def module(objective: IPVRM, **options: Any) -> IPVRMModule:
    torch.manual_seed(0)
    return IPVRMModule(language_model=tiny(lora=True), objective=objective, optimizer=SGD, **options)


def steps_of(file: Path, rank: int = 0) -> Any:
    return json.loads(file.with_suffix(f".{rank}").read_text())


def test_stopping_names_the_file_and_row_of_the_data(tmp_path: Path) -> None:
    file = tmp_path / "rollouts.jsonl"
    rows = [{"prompt": f"{n}?", "completion": str(n), "label": n % 2, "id": f"own-{n}"} for n in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = TrajectoryDataModule(train=str(file), validation_fraction=0.0, max_tokens=1).with_tokenizer(
        build_tokenizer()
    )
    language_model = tiny(lora=True)
    language_model.config = {**language_model.config, "vocab_size": 300}  # type: ignore[dict-item]
    broken = IPVRMModule(language_model=language_model, objective=Spoilt(row=4))
    with pytest.raises(FloatingPointError) as caught:
        quiet_trainer(tmp_path).fit(broken, datamodule=data)
    expected = f"step 0: a loss is not finite, training rows 4 ({file}, row 5, id own-4)"
    assert str(caught.value) == expected


def test_skipping_leaves_the_weights_and_counts(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    model = module(Spoilt(calls=(1, 2)), on_nonfinite="skip", max_skipped_updates=2)
    with pytest.warns(UserWarning, match="step 1: a loss is not finite, training rows .*: update skipped"):
        quiet_trainer(tmp_path, callbacks=[log], max_epochs=2).fit(model, datamodule=InMemoryData())
    assert steps_of(tmp_path / "log")[0] == [[True, 0], [False, 1], [False, 2], [True, 2], [True, 2], [True, 2]]


def test_too_many_in_a_row_stop_all_the_same(tmp_path: Path) -> None:
    model = module(Spoilt(calls=(0, 1, 2)), on_nonfinite="skip", max_skipped_updates=2)
    with pytest.raises(FloatingPointError, match="3 updates in a row were not finite"):
        quiet_trainer(tmp_path).fit(model, datamodule=InMemoryData())


def test_a_gradient_that_is_not_finite_names_the_window(tmp_path: Path) -> None:
    class Steep(IPVRM):
        def forward(self, scores: Tensor, mask: Tensor, batch: TrajectoryBatch) -> Tensor:
            return super().forward(scores, mask, batch) + 0.0 * torch.sqrt(0.0 * scores.sum())

    with pytest.raises(
        FloatingPointError, match=r"gradient is not finite though its losses are, training rows \d+ \(id"
    ):
        quiet_trainer(tmp_path).fit(module(Steep()), datamodule=InMemoryData())


def test_counts_survive_a_checkpoint(tmp_path: Path) -> None:
    model = module(Spoilt(calls=(2,)), on_nonfinite="skip")
    trainer = quiet_trainer(tmp_path)
    trainer.fit(model, datamodule=InMemoryData())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    assert torch.load(tmp_path / "x.ckpt", weights_only=True)["skips"] == {"skipped": 1, "in_a_row": 1}
    model = module(Spoilt(calls=()), on_nonfinite="skip")
    quiet_trainer(tmp_path, max_epochs=2).fit(model, datamodule=InMemoryData(), ckpt_path=tmp_path / "x.ckpt")
    assert model.skips.state_dict() == {"skipped": 1, "in_a_row": 0}


@pytest.mark.parametrize("on_nonfinite", ["skip", "stop"])
def test_two_processes_decide_alike(on_nonfinite: Any, tmp_path: Path) -> None:
    """Row 5 is spoilt, and only one of the processes ever sees it."""
    log = Log(tmp_path / "log")
    trainer = quiet_trainer(tmp_path, callbacks=[log], strategy="ddp_spawn", devices=2)
    model = module(Spoilt(row=5), on_nonfinite=on_nonfinite)
    if on_nonfinite == "stop":
        with pytest.raises(
            Exception, match=r"FloatingPointError: step \d: a loss is not finite, training rows .*\(id 5\)"
        ):
            trainer.fit(model, datamodule=InMemoryData(max_tokens=1))
        return
    trainer.fit(model, datamodule=InMemoryData(max_tokens=1))
    first, second = steps_of(tmp_path / "log", 0), steps_of(tmp_path / "log", 1)
    assert first == second
    assert [moved for moved, _ in first[0]].count(False) == 1


def test_bounds_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="gradient_clip_val must be above 0"):
        IPVRMModule(language_model=tiny(), gradient_clip_val=-1.0)
    for bounds in ({"max_skipped_updates": -1}, {"chunk_size": 0}):
        with pytest.raises(ValueError, match="chunk_size must be at least 1 and max_skipped_updates at least 0"):
            IPVRMModule(language_model=tiny(), **bounds)  # type: ignore[arg-type]
    IPVRMModule(language_model=tiny(), gradient_clip_val=1e-9, max_skipped_updates=0, chunk_size=1)
    IPVRMModule(language_model=tiny(), gradient_clip_val=None)


def test_a_gradient_without_losses_is_skipped_and_cleared() -> None:
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, float("inf")])
    skips, alone = GuardedUpdates(1), Processes(0, 1, torch.device("cpu"))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    with pytest.warns(UserWarning, match="^step 3: the gradient is not finite: update skipped$"):
        norm = skips.step(optimizer, [weight], 1.0, alone, where="step 3: ")
    assert weight.grad is None and weight.tolist() == [1, 1] and not torch.isfinite(norm)
    weight.grad = torch.tensor([3.0, 4.0])
    assert skips.step(optimizer, [weight], 1.0, alone).item() == 5  # before it is clipped to 1
    assert weight.tolist() == pytest.approx([1 - 0.6, 1 - 0.8], abs=1e-6)
    assert skips.state_dict() == {"skipped": 1, "in_a_row": 0}


def test_a_loss_that_is_not_finite_is_skipped_though_its_gradient_is() -> None:
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([3.0, 4.0])
    losses = [(torch.tensor(0.5), torch.tensor([1, 2])), (torch.tensor(float("inf")), torch.tensor([7, 3]))]
    optimizer, alone = torch.optim.SGD([weight], lr=1.0), Processes(0, 1, torch.device("cpu"))
    with pytest.warns(UserWarning, match="^a loss is not finite, training rows 3, 7: update skipped$"):
        GuardedUpdates(1).step(optimizer, [weight], None, alone, losses)
    assert weight.tolist() == [1, 1]
    weight.grad = torch.tensor([3.0, 4.0])
    GuardedUpdates(0).step(optimizer, [weight], None, alone, losses[:1])
    assert weight.tolist() == [-2, -3]  # nothing is clipped


def test_many_rows_are_not_all_named() -> None:
    assert named_rows(range(8), None) == "0, 1, 2, 3, 4, 5, 6, 7"
    assert named_rows(range(20), None) == "0, 1, 2, 3, 4, 5, 6, 7 and 12 more"


def test_skips_count_in_a_row() -> None:
    skips = GuardedUpdates(1)
    with pytest.warns(UserWarning, match=r"a: update skipped"):
        skips.skip("a")
    skips.in_a_row = 0
    with pytest.warns(UserWarning):
        skips.skip("b")
    with pytest.raises(FloatingPointError, match=r"c; 2 updates in a row were not finite"):
        skips.skip("c")
    with pytest.raises(FloatingPointError, match=r"^d$"):
        GuardedUpdates(0).skip("d")


def test_norm_and_clip_are_those_of_all_gradients_together() -> None:
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0, 0.0]), torch.full((2, 2), 2.0)
    norm = gradient_norm(parameters)
    assert float(norm) == 5.0
    torch.nn.utils.clip_grads_with_norm_(parameters, 1.0, norm)
    assert float(gradient_norm(parameters)) == pytest.approx(1.0, abs=1e-5)


def test_weights_in_half_precision_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"weights in torch.bfloat16 are trained: small updates are lost"):
        check_optimizer(torch.optim.AdamW([nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))]))


def test_8_bit_optimisers_are_refused_on_sharded_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitsandbytes.optim import AdamW8bit

    weights = [nn.Parameter(torch.zeros(3))]
    assert check_optimizer(AdamW8bit(weights)).param_groups
    monkeypatch.setattr(updates, "is_sharded", lambda tensor: True)
    assert check_optimizer(torch.optim.AdamW(weights)).param_groups
    with pytest.raises(ValueError, match="AdamW8bit cannot update weights that are divided"):
        check_optimizer(AdamW8bit(weights))
