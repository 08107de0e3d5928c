from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader

from ipvrm_lightning import functional
from ipvrm_lightning.data.dataset import TrajectoryDataset, collate
from ipvrm_lightning.metrics import StepF1Report
from ipvrm_lightning.metrics.prefix_truth import PrefixTruthReport
from ipvrm_lightning.models import (
    AdaptersOff,
    CachedReference,
    FrozenCopy,
    LoRA,
    PretrainedLanguageModel,
    RandomLanguageModel,
    logprobs,
)
from ipvrm_lightning.modules import IPVRMModule, SFTModule
from ipvrm_lightning.modules.schedule import Schedule
from ipvrm_lightning.objectives import DPORM, IPVRM, QRM, EndoRM, ImplicitPRM, Objective
from ipvrm_lightning.types import TrajectoryBatch, Window

from .conftest import QWEN, InMemoryData, make_examples, quiet_trainer, tiny, trained_state

SGD = partial(torch.optim.SGD, lr=0.05)
SHORT = {**QWEN, "max_position_embeddings": 60}
OBJECTIVES: dict[str, Objective] = {
    "ipvrm_sequence": IPVRM(),
    "ipvrm_token": IPVRM(reduction="token"),
    "ipvrm_late": IPVRM(prefix_weighting="late"),
    "implicit_prm": ImplicitPRM(beta=1.0),
    "dpo_rm": DPORM(beta=1.0),
    "qrm": QRM(),
}


def fitted(folder: Path, module: LightningModule, data: InMemoryData, **options: object) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    quiet_trainer(folder, **options).fit(module, datamodule=data)
    return trained_state(module)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_size_of_micro_batches_changes_nothing(name: str, tmp_path: Path) -> None:
    objective = OBJECTIVES[name]
    states = []
    for max_tokens in (4096, 40, 1):
        module = IPVRMModule(language_model=tiny(lora=True), objective=objective, optimizer=SGD)
        data = InMemoryData(max_tokens=max_tokens, pairwise=objective.pairwise)
        states.append(fitted(tmp_path, module, data))
    moved = sum((states[0][key] - value).abs().max().item() for key, value in initial(name).items())
    assert moved > 1e-4
    for state in states[1:]:
        for key, value in states[0].items():
            torch.testing.assert_close(state[key], value, rtol=0, atol=2e-5)


def test_training_data_is_looked_at_when_a_fit_follows_a_validation(tmp_path: Path) -> None:
    class LongInTraining(InMemoryData):
        def setup(self, stage: str | None = None) -> None:
            super().setup(stage)
            self.train_set = None
            if stage == "fit":
                self.train_set = TrajectoryDataset([replace(make_examples(1)[0], input_ids=[5] * 99)] * 16)

    module, data = IPVRMModule(language_model=RandomLanguageModel(config=SHORT), optimizer=SGD), LongInTraining()
    quiet_trainer(tmp_path).validate(module, datamodule=data, verbose=False)
    with pytest.raises(ValueError, match=r"sequences of up to 99 tokens .* made for 60"):
        quiet_trainer(tmp_path).fit(module, datamodule=data)


class WithOne(InMemoryData):
    """One row of one of the sets has these tokens."""

    def __init__(self, name: str, input_ids: list[int]) -> None:
        super().__init__()
        self.name, self.input_ids = name, input_ids

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        first, *others = make_examples(8)
        changed = TrajectoryDataset([first, replace(others[0], input_ids=self.input_ids), *others[1:]])
        setattr(self, self.name, [self.val_set, changed] if self.name == "test_sets" else changed)


@pytest.mark.parametrize("name", ["train_set", "val_set", "test_sets"])
def test_a_row_that_the_model_cannot_read_is_refused_before_the_first_batch(name: str, tmp_path: Path) -> None:
    for input_ids, message in (
        ([5] * 61, "up to 61 tokens .* made for 60"),
        ([*range(5), 97, 5], "token 97, but the model has embeddings for 97 tokens"),
    ):
        trainer = quiet_trainer(tmp_path, callbacks=[StopValidation()], num_sanity_val_steps=1)
        with pytest.raises(ValueError, match=message):
            (trainer.test if name == "test_sets" else trainer.fit)(
                IPVRMModule(language_model=RandomLanguageModel(config=SHORT)), datamodule=WithOne(name, input_ids)
            )


def test_a_model_whose_output_head_is_trained_is_refused() -> None:
    lora = LoRA(r=2, target_modules=["q_proj", "embed_tokens"])
    tied = RandomLanguageModel(config={**QWEN, "tie_word_embeddings": True}, lora=lora)
    for kind in (IPVRMModule, SFTModule):
        with pytest.raises(ValueError, match="is its output head too"):
            kind(language_model=tied).configure_model()


def initial(name: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    module = IPVRMModule(language_model=tiny(lora=True), objective=OBJECTIVES[name], optimizer=SGD)
    module.configure_model()
    return trained_state(module)


def test_one_step_is_the_gradient_of_the_mean_over_the_window(tmp_path: Path) -> None:
    """An independent step: plain logits, one sequence at a time, the formula of Eq. 9 written out."""
    module = IPVRMModule(
        language_model=tiny(), objective=IPVRM(beta=2.0, margin=0.5), optimizer=SGD, gradient_clip_val=None
    )
    data = InMemoryData(count=8, max_tokens=30)
    actual = fitted(tmp_path, module, data, max_steps=1)

    model, reference = tiny().build_model(), tiny().build_model()
    losses = []
    for example in make_examples(8):
        ids = torch.tensor([example.input_ids])
        per_token = [
            m(input_ids=ids).logits[0].log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[example.response_start - 1 :, 0]
            for m in (model, reference)
        ]
        ratio = per_token[0] - per_token[1].detach()
        z = 2.0 * ratio.cumsum(0) / torch.arange(1, len(ratio) + 1)
        sign = 1.0 if example.outcome else -1.0
        losses.append(torch.nn.functional.softplus(-(sign * z - 0.5)).mean())
    torch.stack(losses).mean().backward()
    for name, parameter in model.named_parameters():
        expected = parameter.detach() - 0.05 * parameter.grad
        torch.testing.assert_close(actual[f"model.{name}"], expected, rtol=0, atol=1e-6)


def test_training_separates_right_from_wrong(tmp_path: Path) -> None:
    module = IPVRMModule(language_model=tiny(), optimizer=partial(torch.optim.AdamW, lr=1e-2))
    trainer = quiet_trainer(tmp_path, max_epochs=15)
    trainer.fit(module, datamodule=InMemoryData(count=64))
    assert trainer.callback_metrics["val/auroc"] > 0.9
    for name in ("val/loss", "val/prefix_accuracy", "val/ece", "val/brier"):
        assert math.isfinite(trainer.callback_metrics[name])


def test_validation_is_what_its_numbers_are_named_after_whatever_the_batches(tmp_path: Path) -> None:
    logged, expected = [], []
    for max_tokens in (4096, 60, 1):
        module = IPVRMModule(language_model=tiny(seed=1), reference=FrozenCopy(), optimizer=SGD)
        data, trainer = InMemoryData(max_tokens=max_tokens), quiet_trainer(tmp_path)
        module.configure_model()
        torch.manual_seed(0)
        with torch.no_grad():  # small and large values, of both signs
            for parameter in module.trainable_parameters().values():
                parameter += 0.05 * torch.randn_like(parameter)
        (found,) = trainer.validate(module, datamodule=data, verbose=False)
        logged.append(found["val/auroc"])
        batch = collate(data.val_set, range(len(data.val_set)))
        scores, mask = module.token_scores(batch)
        assert found["val/loss"] == pytest.approx(module.objective(scores, mask, batch).item(), rel=1e-5)
        logits = module.objective.prefix_logits(scores, mask).detach()
        finals = [row[length - 1].item() for row, length in zip(logits, batch.response_lengths, strict=True)]
        right, wrong = ([f for f, y in zip(finals, batch.outcomes, strict=True) if y == label] for label in (1, 0))
        assert min(finals) < 0 < max(finals) and any(0 < final < 1 for final in finals)
        expected.append(sum(r > w for r in right for w in wrong) / (len(right) * len(wrong)))
        told = (logits > 0) == (batch.outcomes[:, None] > 0.5)
        assert found["val/prefix_accuracy"] == pytest.approx(told[mask].float().mean().item(), abs=1e-6)
        gaps = torch.tensor(finals, dtype=torch.float64).sigmoid() - batch.outcomes
        assert found["val/brier"] == pytest.approx((gaps**2).mean().item(), abs=1e-6)
        bins = ((gaps + batch.outcomes) * 10).long()
        ece = sum(abs(gaps[bins == place].sum().item()) for place in range(10)) / len(gaps)
        assert found["val/ece"] == pytest.approx(ece, abs=1e-6)
    assert logged == pytest.approx(expected, abs=1e-6) and len(set(logged)) == 1


class StopValidation(Callback):
    def on_validation_batch_end(self, *_: object) -> None:
        raise RuntimeError("stopped halfway")


@pytest.mark.parametrize("kind", [IPVRMModule, SFTModule])
def test_a_validation_says_nothing_of_an_earlier_one_and_training_may_follow_it(
    kind: type[IPVRMModule | SFTModule], tmp_path: Path
) -> None:
    module, data = kind(language_model=tiny(), optimizer=SGD), InMemoryData(max_tokens=60)

    def validated(**options: object) -> dict[str, float]:
        (found,) = quiet_trainer(tmp_path, **options).validate(module, datamodule=data, verbose=False)
        return dict(found)

    validated()
    quiet_trainer(tmp_path).fit(module, datamodule=data)
    expected = validated()
    with pytest.raises(RuntimeError, match="stopped halfway"):
        validated(callbacks=[StopValidation()])
    assert validated() == expected


def test_a_value_of_0_tells_half_of_an_outcome(tmp_path: Path) -> None:
    # the model is its own reference: every value is 0
    module = IPVRMModule(language_model=tiny(), optimizer=SGD)
    (found,) = quiet_trainer(tmp_path).validate(module, datamodule=InMemoryData(), verbose=False)
    assert found["val/prefix_accuracy"] == 0.5


class TwoTruths(InMemoryData):
    """Two test sets whose true values rise and fall along each response, the second about a higher level."""

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self.test_sets = []
        for seed, level in ((3, 0.2), (4, 0.8)):
            examples = []
            for one in make_examples(12, seed=seed):
                truths = [level + 0.2 * math.sin(token) for token in range(one.response_length)]
                examples.append(replace(one, outcome=None, true_values=truths))
            self.test_sets.append(TrajectoryDataset(examples))


class OneTruth(TwoTruths):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self.test_sets = [self.test_sets[self.number]]


def test_rows_of_two_test_sets_with_true_values_are_not_mixed(tmp_path: Path) -> None:
    module = IPVRMModule(language_model=tiny(), objective=EndoRM())

    def truth(data: InMemoryData) -> PrefixTruthReport:
        quiet_trainer(tmp_path).test(module, datamodule=data, verbose=False)
        report = module.test_report["prefix_truth"]
        assert isinstance(report, PrefixTruthReport)
        return report

    first, second, both = truth(OneTruth(0)), truth(OneTruth(1)), truth(TwoTruths())
    for within, count in (("within_solution", "solutions"), ("within_problem", "problems")):
        counts = [getattr(one, count) for one in (first, second, both)]
        assert counts[2] == counts[0] + counts[1]
        sums = [getattr(one, within) * getattr(one, count) for one in (first, second, both)]
        assert sums[2] == pytest.approx(sums[0] + sums[1], abs=1e-9)


def test_cached_reference_trains_to_the_same_weights(tmp_path: Path) -> None:
    states = []
    for reference in (FrozenCopy(), CachedReference(source=FrozenCopy(), cache_dir=str(tmp_path / "cache"))):
        module = IPVRMModule(language_model=tiny(), reference=reference, optimizer=SGD)
        states.append(fitted(tmp_path, module, InMemoryData()))
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=0, atol=1e-5)


class Counted(FrozenCopy):
    """Counts the rows that it is asked for."""

    rows = 0

    def log_probs(self, batch: TrajectoryBatch, **options: Any) -> torch.Tensor:
        self.rows += len(batch.index)
        return super().log_probs(batch, **options)


def test_a_cached_reference_computes_each_row_once_and_lets_go_of_its_copy(tmp_path: Path) -> None:
    def computed(cache: str, how: str = "fit", **options: Any) -> int:
        source, data = Counted(), InMemoryData()
        reference = CachedReference(source=source, cache_dir=str(tmp_path / cache))
        module, trainer = IPVRMModule(language_model=tiny(), reference=reference), quiet_trainer(tmp_path, **options)
        if how == "loaders":
            data.setup()
            trainer.fit(module, data.train_dataloader())
        else:
            getattr(trainer, how)(module, datamodule=data)
        assert not source._copy
        return source.rows

    # without a data module, what comes up is computed and kept all the same
    assert computed("one", "loaders") == 24
    assert [computed("one", max_epochs=2), computed("one")] == [40, 0]
    assert [computed("one", "test"), computed("one", "test")] == [12, 0]
    assert computed("half", precision="bf16-mixed") == 24 + 40
    # a run that ends within its first epoch asks for what it reads alone; a batch that lacks a row is computed whole
    assert [computed("short", max_steps=2, max_epochs=-1, limit_val_batches=0), computed("short")] == [16, 24 + 40]
    assert computed("batches", limit_train_batches=1, limit_val_batches=0) == 8
    assert computed("epochs", limit_train_batches=1, limit_val_batches=0, max_epochs=3) == 24
    assert computed("trial", fast_dev_run=1) == 8 + 40


def test_a_cached_reference_asks_for_no_validation_rows_and_for_nothing_where_no_ratio_is_read(tmp_path: Path) -> None:
    class Unheld(InMemoryData):
        def setup(self, stage: str | None = None) -> None:
            super().setup(stage)
            self.val_set = None

    class Started(Callback):
        def on_train_start(self, *_: object) -> None:
            assert source.rows == rows and not getattr(source, "_copy", None), "computed, and the copy is gone"

    for objective, rows in ((IPVRM(), 24), (QRM(), 0)):
        source, cache = Counted(), tmp_path / type(objective).__name__
        reference = CachedReference(source=source, cache_dir=str(cache))
        module = IPVRMModule(language_model=tiny(), objective=objective, reference=reference)
        data = Unheld(pairwise=objective.pairwise)
        quiet_trainer(tmp_path, limit_val_batches=0, callbacks=[Started()]).fit(module, datamodule=data)
        assert source.rows == rows and cache.exists() == bool(rows)


def test_a_cached_reference_asks_for_what_loaders_of_ones_own_do_not_say_when_it_comes(tmp_path: Path) -> None:
    class OneLoader(InMemoryData):
        def val_dataloader(self) -> Any:
            return super().val_dataloader()[0]

    class Other(InMemoryData):
        def val_dataloader(self) -> Any:
            return DataLoader(list(super().val_dataloader()[0]), batch_size=None)

    for data, before in ((OneLoader(), 24 + 40), (Other(), 24)):
        source = Counted()

        class Started(Callback):
            def on_sanity_check_start(self, *_: object, source: Any = source, before: int = before) -> None:
                assert source.rows == before

        reference = CachedReference(source=source, cache_dir=str(tmp_path / type(data).__name__))
        module = IPVRMModule(language_model=tiny(), reference=reference)
        quiet_trainer(tmp_path, callbacks=[Started()]).fit(module, datamodule=data)
        assert source.rows == 24 + 40


class NoSync(SingleDeviceStrategy):
    """Says, as strategies of several processes do, which gradients stay where they are."""

    entered = 0

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        self.entered += 1
        yield


def test_gradients_are_sent_between_processes_once_a_step(tmp_path: Path) -> None:
    """The numbers would be the same if each micro-batch's were."""
    module, data = IPVRMModule(language_model=tiny(lora=True), optimizer=SGD), InMemoryData(max_tokens=60)
    strategy = NoSync(device="cpu", accelerator=CPUAccelerator())
    quiet_trainer(tmp_path, strategy=strategy, accelerator="auto", limit_val_batches=0).fit(module, datamodule=data)
    batches = [len(window.micro_batches) for window in data.train_dataloader()]
    assert strategy.entered == sum(batches) - len(batches) > 0


class Rows(Callback):
    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, window: Window, *_: object) -> None:
        self.seen.append(sorted(row for batch in window.micro_batches for row in batch.index.tolist()))


@pytest.mark.parametrize(
    ("objective", "reference"),
    [(IPVRM(), FrozenCopy()), (IPVRM(), AdaptersOff()), (IPVRM(), CachedReference()), (EndoRM(), FrozenCopy())],
    ids=["copy", "base", "cache", "none"],
)
def test_no_more_logits_exist_at_one_time_than_the_config_says(
    objective: Objective, reference: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training, validation and test, of the model and of its reference."""
    sizes: list[int] = []
    whole = logprobs.token_log_probs

    def scoring(*args: Any, **options: Any) -> torch.Tensor:
        sizes.append(options["chunk_size"])
        return whole(*args, **options)

    monkeypatch.setattr(logprobs, "token_log_probs", scoring)
    if isinstance(reference, CachedReference):
        reference.cache_dir = str(tmp_path)
    language_model = tiny(lora=isinstance(reference, AdaptersOff))
    module = IPVRMModule(language_model=language_model, objective=objective, reference=reference, chunk_size=5)
    trainer = quiet_trainer(tmp_path)
    if objective.trainable:
        trainer.fit(module, datamodule=InMemoryData())
    trainer.test(module, datamodule=InMemoryData(), verbose=False)
    assert set(sizes) == {5}


def test_a_run_that_overfits_has_the_same_windows_in_every_epoch(tmp_path: Path) -> None:
    rows = Rows()
    module = IPVRMModule(language_model=tiny(lora=True), optimizer=SGD)
    fitted(tmp_path, module, InMemoryData(), overfit_batches=1, max_epochs=3, callbacks=[rows])
    assert len(rows.seen) == 3 and rows.seen[0] == rows.seen[1] == rows.seen[2]


def test_averaged_adapters_are_kept_alone_and_go_on(tmp_path: Path) -> None:
    states = []
    for epochs, start in ((3, None), (2, None), (3, tmp_path / "2.ckpt")):
        module = IPVRMModule(language_model=tiny(lora=True), optimizer=partial(torch.optim.AdamW, lr=1e-2))
        saver = ModelCheckpoint(tmp_path, filename=f"{epochs}", enable_version_counter=False)
        trainer = quiet_trainer(
            tmp_path, callbacks=[EMAWeightAveraging(decay=0.5), saver], enable_checkpointing=True, max_epochs=epochs
        )
        torch.manual_seed(0)
        trainer.fit(module, datamodule=InMemoryData(), ckpt_path=start)
        states.append(trained_state(module))
        stored = torch.load(tmp_path / f"{epochs}.ckpt", weights_only=True)
        for part in ("state_dict", "current_model_state"):
            assert stored[part] and all(".lora_" in name for name in stored[part])
    for name, value in states[0].items():
        assert torch.equal(states[2][name], value)


@pytest.mark.parametrize("kind", ["bfloat16", "nf4"])
def test_averaging_leaves_frozen_weights_alone(kind: str, tmp_path: Path) -> None:
    """Validation read them off by rounding in half precision, and others in 4 bits; a run with these did not go on."""
    folder = str(tmp_path)
    wider = {**QWEN, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}  # 4 bits take blocks of 64 weights
    RandomLanguageModel(config=wider).build_model().save_pretrained(folder)
    options: dict[str, Any] = {"dtype": "bfloat16"}
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
        options = {"quantization": "nf4", "compute_dtype": "float32"}
    factory = PretrainedLanguageModel(name=folder, lora=LoRA(r=2), **options)
    for epochs, start in ((2, None), (3, tmp_path / "2.ckpt")):
        module = IPVRMModule(language_model=factory, optimizer=SGD)
        saver = ModelCheckpoint(tmp_path, filename=f"{epochs}")
        trainer = quiet_trainer(
            tmp_path, callbacks=[EMAWeightAveraging(decay=0.9), saver], enable_checkpointing=True, max_epochs=epochs
        )
        trainer.fit(module, datamodule=InMemoryData(), ckpt_path=start)
        for name, parameter in factory.build_model().named_parameters():
            own = module.model.get_parameter(name)
            assert torch.equal(own, parameter) is not own.requires_grad, name


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        self.values.append(trainer.callback_metrics["train/loss"].item())


@pytest.mark.parametrize("lora", [True, False])
def test_stopping_in_the_middle_of_an_epoch_and_going_on_repeats_the_losses_bit_for_bit(
    lora: bool, tmp_path: Path
) -> None:
    def module() -> IPVRMModule:
        torch.manual_seed(0)
        return IPVRMModule(
            language_model=tiny(lora=lora),
            optimizer=partial(torch.optim.AdamW, lr=1e-3),
            scheduler=Schedule(name="cosine", warmup=0.2),
        )

    whole, first, second = Losses(), Losses(), Losses()
    quiet_trainer(tmp_path, max_epochs=2, callbacks=[whole]).fit(module(), datamodule=InMemoryData(max_tokens=40))
    saver = ModelCheckpoint(dirpath=tmp_path / "ckpt", every_n_train_steps=1, save_top_k=-1, filename="{step}")
    options = {"max_epochs": 2, "enable_checkpointing": True}
    quiet_trainer(tmp_path, callbacks=[first, saver], **options).fit(module(), datamodule=InMemoryData(max_tokens=40))
    (checkpoint,) = (tmp_path / "ckpt").glob("step=4*.ckpt")
    trainer = quiet_trainer(tmp_path, max_epochs=2, callbacks=[second])
    trainer.fit(module(), datamodule=InMemoryData(max_tokens=40), ckpt_path=str(checkpoint))
    assert len(whole.values) == 6
    assert first.values == whole.values
    assert second.values == whole.values[4:]


class Rates(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        self.values.append(float(trainer.callback_metrics["train/lr"]))


@pytest.mark.parametrize(
    ("bounds", "steps"),
    [
        ({"max_epochs": 2}, 6),
        ({"max_epochs": 2, "limit_train_batches": 2}, 4),
        ({"max_epochs": 2, "limit_train_batches": 9}, 6),
        ({"max_epochs": 2, "limit_train_batches": 0.7}, 4),
        ({"max_epochs": -1, "max_steps": 4}, 4),
        ({"max_epochs": 2, "max_steps": 4}, 4),
        ({"max_epochs": 1, "max_steps": 4}, 3),
    ],
)
def test_a_schedule_ends_with_the_run_whatever_bounds_it(bounds: dict[str, Any], steps: int, tmp_path: Path) -> None:
    """Three windows an epoch; the rate would be 0 in the step after the last."""
    rates = Rates()
    module = IPVRMModule(
        language_model=tiny(lora=True), optimizer=partial(torch.optim.SGD, lr=1.0), scheduler=Schedule(name="linear")
    )
    fitted(tmp_path, module, InMemoryData(), callbacks=[rates], limit_val_batches=0, **bounds)
    assert rates.values == pytest.approx([1 - step / steps for step in range(steps)])


def test_checkpoint_holds_what_is_trained_and_loads_with_weights_only(tmp_path: Path) -> None:
    module = IPVRMModule(language_model=tiny(lora=True), optimizer=SGD)
    trainer = quiet_trainer(tmp_path)
    trainer.fit(module, datamodule=InMemoryData())
    trainer.save_checkpoint(tmp_path / "adapter.ckpt")
    state = torch.load(tmp_path / "adapter.ckpt", weights_only=True)["state_dict"]
    assert state and all(".lora_" in name for name in state)

    narrow = RandomLanguageModel(config=QWEN, lora=LoRA(r=2))
    weak = RandomLanguageModel(config=QWEN, lora=LoRA(r=4, alpha=4))
    for factory, problem in (
        (tiny(), "the checkpoint does not fit this config: language_model.lora.alpha is 32 there and absent here"),
        (weak, "the checkpoint does not fit this config: language_model.lora.alpha is 32 there and 4 here"),
        (narrow, "the checkpoint does not fit this config: parameter model"),
        (tiny(lora=True, seed=1), "trained from other weights than those that model.language_model names"),
    ):
        other = IPVRMModule(language_model=factory, optimizer=SGD)
        with pytest.raises(ValueError, match=problem):
            quiet_trainer(tmp_path).test(other, datamodule=InMemoryData(), ckpt_path=str(tmp_path / "adapter.ckpt"))


def test_adapter_loaded_from_a_checkpoint_is_judged_against_the_base(tmp_path: Path) -> None:
    module = IPVRMModule(language_model=tiny(lora=True), optimizer=SGD)
    trainer = quiet_trainer(tmp_path, max_epochs=3)
    trainer.fit(module, datamodule=InMemoryData())
    trainer.save_checkpoint(tmp_path / "adapter.ckpt")
    batch = collate(TrajectoryDataset(make_examples(8)), range(8))
    expected = module.token_scores(batch).scores.detach()

    fresh = IPVRMModule(language_model=tiny(lora=True), optimizer=SGD)
    trainer = quiet_trainer(tmp_path)
    trainer.test(fresh, datamodule=InMemoryData(), ckpt_path=str(tmp_path / "adapter.ckpt"), verbose=False)
    assert torch.equal(fresh.token_scores(batch).scores.detach(), expected)
    assert set(fresh.test_report) == {"step_f1", "best_of_n", "calibration"}
    assert len(fresh.scored_solutions) == 12


def test_predictions_are_values_whose_differences_are_td_advantages(tmp_path: Path) -> None:
    module = IPVRMModule(language_model=tiny(lora=True), optimizer=SGD)
    trainer = quiet_trainer(tmp_path)
    trainer.fit(module, datamodule=InMemoryData())
    records = [record for batch in trainer.predict(module, datamodule=InMemoryData())[0] for record in batch]
    assert sorted(record["index"] for record in records) == [*range(12)]
    for record in records:
        example = make_examples(12, seed=2, steps=True)[record["index"]]
        assert record["token_ids"] == example.input_ids[example.response_start :]
        assert (record["step_ids"], record["step_label"]) == (example.step_ids, example.step_label)
        values = torch.tensor(record["values"]) * torch.arange(1, example.response_length + 1)
        torch.testing.assert_close(torch.tensor(record["td_advantages"]).cumsum(0), values, rtol=1e-4, atol=1e-4)
        assert set(record["step_scores"]) == set(functional.PROTOCOLS)


def test_a_test_run_hands_values_and_td_advantages_to_callbacks(tmp_path: Path) -> None:
    found: list[dict[str, torch.Tensor]] = []

    class Keep(Callback):
        def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: object) -> None:
            found.append(outputs)

    module, data = IPVRMModule(language_model=tiny(lora=True), objective=IPVRM(beta=2.0), optimizer=SGD), InMemoryData()
    fitted(tmp_path, module, data)
    quiet_trainer(tmp_path, callbacks=[Keep()]).test(module, datamodule=data, verbose=False)
    with torch.no_grad():
        scores, mask = module.token_scores(next(iter(data.test_dataloader()[0])))
    assert scores.abs().max() > 1e-4
    torch.testing.assert_close(found[0]["td_advantages"], 2.0 * scores, rtol=0, atol=1e-6)
    values = 2.0 * scores.cumsum(1) / torch.arange(1, scores.shape[1] + 1)
    torch.testing.assert_close(found[0]["values"][mask], values[mask], rtol=0, atol=1e-6)


def test_endo_rm_scores_without_training(tmp_path: Path) -> None:
    module = IPVRMModule(language_model=tiny(), objective=EndoRM(), threshold=-1.5)
    quiet_trainer(tmp_path).test(module, datamodule=InMemoryData(), verbose=False)
    assert len(module.scored_solutions) == 12
    report = module.test_report["step_f1"]
    assert isinstance(report, StepF1Report)
    assert report.average.protocols["step_sum"].keys() == {"oracle", "cross_fitted", "fixed"}
    (metrics,) = quiet_trainer(tmp_path).validate(module, datamodule=InMemoryData(), verbose=False)
    assert 0 <= metrics["val/auroc"] <= 1 and "val/loss" not in metrics
    with pytest.raises(ValueError, match="EndoRM is not trained"):
        quiet_trainer(tmp_path).fit(IPVRMModule(language_model=tiny(), objective=EndoRM()), datamodule=InMemoryData())


class Unread(InMemoryData):
    def setup(self, stage: str | None = None) -> None:
        raise AssertionError("the data was read")


@pytest.mark.parametrize(
    ("objective", "message"),
    [(EndoRM(), "EndoRM is not trained"), (DPORM(), "DPORM needs `pairwise: true`"), (None, "quantised already")],
)
def test_settings_that_cannot_work_are_refused_before_the_data_is_read(
    objective: Objective | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any) -> None:
        raise ValueError("its weights are quantised already")

    data = Unread()
    data.pairwise = False  # type: ignore[attr-defined]
    if objective is None:
        monkeypatch.setattr(RandomLanguageModel, "check_stored", refuse)
    module = IPVRMModule(language_model=tiny(), objective=objective or IPVRM())
    with pytest.raises(ValueError, match=message):
        quiet_trainer(tmp_path).fit(module, datamodule=data)


def test_endo_rewards_are_the_inverse_bellman_operator_on_full_logits() -> None:
    module = IPVRMModule(language_model=tiny(), objective=EndoRM(discount=0.9))
    module.configure_model()
    dataset = TrajectoryDataset(make_examples(1))
    actual = module.token_scores(collate(dataset, [0])).scores[0]
    example = dataset[0]
    logits = module.model(input_ids=torch.tensor([example.input_ids])).logits[0, example.response_start - 1 : -1]
    q = logits.gather(1, torch.tensor(example.input_ids[example.response_start :])[:, None])[:, 0]
    v = torch.cat([logits.logsumexp(-1)[1:], torch.zeros(1)])
    torch.testing.assert_close(actual, q - 0.9 * v, rtol=0, atol=1e-5)


def test_a_loss_that_is_not_finite_names_its_rows(tmp_path: Path) -> None:
    class Broken(IPVRM):
        def forward(self, scores, mask, batch):  # type: ignore[no-untyped-def]
            return super().forward(scores, mask, batch) * float("nan")

    module = IPVRMModule(language_model=tiny(lora=True), objective=Broken())
    with pytest.raises(FloatingPointError, match=r"step 0: a loss is not finite, training rows \d+ \(id \d+\)"):
        quiet_trainer(tmp_path).fit(module, datamodule=InMemoryData())


def test_objective_and_data_must_agree_on_pairs(tmp_path: Path) -> None:
    module = IPVRMModule(language_model=tiny(lora=True), objective=DPORM())
    with pytest.raises(ValueError, match="DPORM needs `pairwise: true`"):
        quiet_trainer(tmp_path).fit(module, datamodule=InMemoryData())


def test_sft_minimises_the_mean_over_response_tokens(tmp_path: Path) -> None:
    module = SFTModule(language_model=tiny(), optimizer=SGD)
    module.configure_model()
    batch = collate(TrajectoryDataset(make_examples(6)), range(6))
    total, count = 0.0, 0
    for example in make_examples(6):
        ids = torch.tensor([example.input_ids])
        log_probs = module.model(input_ids=ids).logits[0].log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
        total -= log_probs[example.response_start - 1 :].sum().item()
        count += example.response_length
    assert module.batch_loss(batch).item() == pytest.approx(total / count, abs=1e-5)
    losses = Losses()
    module = SFTModule(language_model=tiny(), optimizer=partial(torch.optim.AdamW, lr=1e-2))
    quiet_trainer(tmp_path, max_epochs=8, callbacks=[losses]).fit(module, datamodule=InMemoryData())
    assert sum(losses.values[-3:]) < 0.9 * sum(losses.values[:3])


def test_supervised_models_and_reward_models_do_not_go_on_from_each_other(tmp_path: Path) -> None:
    paths = {}
    for kind in (SFTModule, IPVRMModule):
        trainer = quiet_trainer(tmp_path)
        trainer.fit(kind(language_model=tiny(), optimizer=SGD), datamodule=InMemoryData())
        trainer.save_checkpoint(tmp_path / f"{kind.__name__}.ckpt")
        paths[kind] = str(tmp_path / f"{kind.__name__}.ckpt")
    sft, ipvrm = SFTModule(language_model=tiny(), optimizer=SGD), IPVRMModule(language_model=tiny(), optimizer=SGD)
    for run in ("fit", "validate"):
        start = getattr(quiet_trainer(tmp_path, max_epochs=2), run)
        with pytest.raises(ValueError, match="the checkpoint is of no reward model: to start from a supervised one"):
            start(ipvrm, datamodule=InMemoryData(), ckpt_path=paths[SFTModule])
        with pytest.raises(ValueError, match=r"the checkpoint is of a reward model \(.*IPVRM\), not of fine-tuning"):
            start(sft, datamodule=InMemoryData(), ckpt_path=paths[IPVRMModule])
    endo = IPVRMModule(language_model=tiny(), objective=EndoRM())
    quiet_trainer(tmp_path).test(endo, datamodule=InMemoryData(), ckpt_path=paths[SFTModule], verbose=False)
    assert endo.test_report


def test_default_reference_follows_the_adapters() -> None:
    assert isinstance(IPVRMModule(language_model=tiny(lora=True)).reference, AdaptersOff)
    assert isinstance(IPVRMModule(language_model=tiny()).reference, FrozenCopy)


def test_lora_dropout_is_active_in_training_and_off_in_the_reference(tmp_path: Path) -> None:
    module = IPVRMModule(language_model=tiny(lora=True, dropout=0.5), optimizer=SGD)
    fitted(tmp_path, module, InMemoryData())
    batch = collate(TrajectoryDataset(make_examples(4)), range(4))
    module.train()
    assert not torch.equal(module.token_scores(batch).scores, module.token_scores(batch).scores)
    assert torch.equal(module.reference.log_probs(batch), module.reference.log_probs(batch))


def test_window_counts_are_of_the_whole_window() -> None:
    data = InMemoryData(max_tokens=30)
    data.setup()
    windows: list[Window] = list(data.train_dataloader())
    assert all(w.counts["sequences"] == sum(b.count("sequences") for b in w.micro_batches) for w in windows)
    assert max(len(w.micro_batches) for w in windows) > 1


def test_a_value_head_is_as_wide_as_what_the_output_head_reads(tmp_path: Path) -> None:
    """OPT-350m makes its states narrower before the output head."""
    config = {"model_type": "opt", "hidden_size": 32, "word_embed_proj_dim": 16, "ffn_dim": 48, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 4, "vocab_size": 97, "max_position_embeddings": 64, "do_layer_norm_before": False}
    module = IPVRMModule(language_model=RandomLanguageModel(config=config), objective=QRM(), optimizer=SGD)
    quiet_trainer(tmp_path, max_steps=1).fit(module, datamodule=InMemoryData(pairwise=True))
    assert module.value_head.in_features == 16


@pytest.mark.parametrize("tied", [True, False])
def test_beside_a_value_head_an_output_head_is_trained_only_as_the_embedding_it_is(tied: bool) -> None:
    config = {**QWEN, "tie_word_embeddings": tied}
    module = IPVRMModule(language_model=RandomLanguageModel(config=config), objective=QRM())
    module.configure_model()
    others = {"model.lm_head.weight", "value_head.weight"}
    expected = {f"model.{name}" for name, _ in module.model.named_parameters()} - others | {"value_head.weight"}
    assert set(module.trainable_parameters()) == expected and "model.model.embed_tokens.weight" in expected


def test_what_was_trained_is_tested_and_not_made_anew(tmp_path: Path) -> None:
    """One module in one process: its value head, and the starting weights that name its cache."""
    cached = CachedReference(cache_dir=str(tmp_path / "cache"))
    for objective, reference in ((QRM(), None), (IPVRM(), cached)):
        module = IPVRMModule(language_model=tiny(), objective=objective, reference=reference, optimizer=SGD)
        data = InMemoryData(pairwise=objective.pairwise)
        expected = fitted(tmp_path, module, data)
        quiet_trainer(tmp_path).test(module, datamodule=data, verbose=False)
        assert all(torch.equal(value, expected[name]) for name, value in trained_state(module).items())
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_token_values_are_not_rounded_in_mixed_precision() -> None:
    module = IPVRMModule(language_model=tiny(), objective=QRM())
    module.configure_model()
    with torch.autocast("cpu", torch.bfloat16):
        scores, mask = module.token_scores(collate(TrajectoryDataset(make_examples(8)), range(8)))
    assert scores.dtype == torch.float32
    assert not torch.equal(scores[mask], scores[mask].bfloat16().float())


def test_an_objective_of_ones_own_reads_endogenous_scores_and_none_of_an_unknown_kind(tmp_path: Path) -> None:
    class Endogenous(ImplicitPRM):
        score_source = "endogenous"

    module = IPVRMModule(language_model=tiny(), objective=Endogenous(beta=1.0), optimizer=SGD)
    quiet_trainer(tmp_path, max_steps=1).fit(module, datamodule=InMemoryData())
    assert module.skips.skipped == 0
    with pytest.raises(ValueError, match=r"Endogenous: score_source must be one of log_ratio, .* found 'mlp_head'"):
        Endogenous.score_source = "mlp_head"  # type: ignore[assignment]
        IPVRMModule(language_model=tiny(), objective=Endogenous())
