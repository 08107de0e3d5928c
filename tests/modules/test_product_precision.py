"""Runs in bf16-mixed, with frozen weights in bfloat16 and without: the same, bit for bit."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging

from ipvrm_lightning.models import CachedReference, LoRA, RandomLanguageModel
from ipvrm_lightning.modules import IPVRMModule

from .conftest import QWEN, InMemoryData, quiet_trainer, trained_state
from .distrl_cases import TinyPolicy, module, run


def _round(model: Any) -> Any:
    """Weights as they are published."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" not in name:
                parameter.copy_(parameter.bfloat16().float())
    return model


class Published(RandomLanguageModel):
    def build_model(self) -> Any:
        return _round(super().build_model())


class PublishedPolicy(TinyPolicy):
    def build_model(self) -> Any:
        return _round(super().build_model())


class Seen(Callback):
    """What training logged, and the precision of frozen matrices."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.kinds: set[torch.dtype] = set()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.kinds = {p.dtype for p in pl_module.parameters() if p.ndim > 1 and not p.requires_grad}


@pytest.fixture(params=[False, True], ids=["full", "adapters"])
def lora(request: pytest.FixtureRequest) -> LoRA | None:
    return LoRA(r=4) if request.param else None


def test_a_reward_model_trains_the_same(lora: LoRA | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(folder: str) -> tuple[Seen, dict[str, torch.Tensor], float, list[str]]:
        torch.manual_seed(0)
        cache = tmp_path / folder
        reward = IPVRMModule(
            language_model=Published(config=QWEN, lora=lora), reference=CachedReference(cache_dir=str(cache))
        )
        seen = Seen()
        callbacks = [seen, EMAWeightAveraging(decay=0.5)]
        trainer = quiet_trainer(tmp_path, precision="bf16-mixed", max_epochs=2, callbacks=callbacks)
        trainer.fit(reward, datamodule=InMemoryData())
        names = [found.name for found in cache.iterdir()]
        return seen, trained_state(reward), float(trainer.callback_metrics["val/loss"]), names

    short = fit("short")
    with monkeypatch.context() as patch:
        patch.setattr("ipvrm_lightning.models.product_precision._is_wide", lambda weight: False)
        wide = fit("wide")
    assert short[0].losses == wide[0].losses and len(short[0].losses) > 3 and short[2] == wide[2]
    assert all(torch.equal(value, wide[1][name]) for name, value in short[1].items())
    assert short[3] == wide[3], "what a cache kept before is found"
    assert (short[0].kinds, wide[0].kinds) == (({torch.bfloat16}, {torch.float32}) if lora else (set(), set()))


def test_a_policy_trains_the_same(lora: LoRA | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(frozen: torch.dtype) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
        policy = module(language_model=PublishedPolicy(lora=lora), update={"kl_coef": 0.1})
        found = run(tmp_path, policy, precision="bf16-mixed")
        if lora is None:
            (reference,) = policy.roles._reference
            assert {p.dtype for name, p in reference.named_parameters() if "proj" in name} == {frozen}
        else:
            assert {p.dtype for p in policy.parameters() if p.ndim > 1 and not p.requires_grad} == {frozen}
        return found

    short = fit(torch.bfloat16)
    with monkeypatch.context() as patch:
        patch.setattr("ipvrm_lightning.models.product_precision._is_wide", lambda weight: False)
        patch.setattr("ipvrm_lightning.rollouts.cache.multiplies_shorter", lambda device: False)
        patch.setattr("ipvrm_lightning.rollouts.sampler.shortened", lambda model: nullcontext())
        wide = fit(torch.float32)
    assert short[1] == wide[1] and len(short[1]) == 2
    assert all(torch.equal(value, wide[0][name]) for name, value in short[0].items())
