"""Weights held in bfloat16 change no number: each case is compared with the same weights in float32, bit for bit."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ipvrm_lightning.models import FrozenCopy, LoRA, RandomLanguageModel
from ipvrm_lightning.models.logprobs import response_scores
from ipvrm_lightning.models.product_precision import shorten_frozen, shortened, widen
from ipvrm_lightning.rollouts.sampler import sample_responses
from ipvrm_lightning.types import TrajectoryBatch

from .conftest import QWEN

GEMMA = {**QWEN, "model_type": "gemma3_text", "sliding_window": 8}


def published(config: dict[str, Any] = QWEN, **options: Any) -> Any:
    """A model whose weights are those of a checkpoint in bfloat16, held in float32; adapters do something."""
    model: Any = RandomLanguageModel(config=config, **options).build_model()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1 if ".lora_" in name else parameter.bfloat16().float())
    return model


def in_bfloat16() -> Any:
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)  # as Lightning's bf16-mixed


def kinds(model: Any, part: str) -> set[torch.dtype]:
    found = {parameter.dtype for name, parameter in model.named_parameters() if part in name}
    assert found, part
    return found


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("config", [QWEN, GEMMA], ids=["qwen3", "gemma3"])
@pytest.mark.parametrize(
    "options",
    [{"lora": LoRA(r=2)}, {"lora": LoRA(r=2), "gradient_checkpointing": True}, {"lora": LoRA(r=2, use_dora=True)}, {}],
    ids=["adapters", "checkpointed", "dora", "copy"],
)
def test_frozen_weights_in_bfloat16_change_no_number(
    options: dict[str, Any], config: dict[str, Any], tied: bool, batch: TrajectoryBatch
) -> None:
    found = []
    for short in (False, True):
        model = published({**config, "tie_word_embeddings": tied}, **options)
        if not options:
            model.requires_grad_(False)
        if short:
            shorten_frozen(model)
        with in_bfloat16():
            log_probs = response_scores(model, batch).log_probs
            if options:
                log_probs.square().sum().backward()
        with torch.no_grad():
            in_full = response_scores(model, batch).log_probs
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append((model, log_probs.detach(), in_full, gradients))
    wide, short_ = found
    assert torch.equal(wide[1], short_[1])
    torch.testing.assert_close(wide[2], short_[2], rtol=0, atol=1e-5)  # the head takes another path in float32
    assert wide[3].keys() == short_[3].keys() and bool(wide[3]) == bool(options)
    assert all(torch.equal(gradient, short_[3][name]) for name, gradient in wide[3].items())
    assert kinds(short_[0], "q_proj.base_layer" if options else "q_proj") == {torch.bfloat16}
    assert kinds(short_[0], "norm") == {torch.float32} and kinds(wide[0], "") == {torch.float32}
    scales = config is GEMMA  # an embedding that scales is left alone, and the head with it
    assert kinds(short_[0], "embed_tokens") == {torch.float32 if scales else torch.bfloat16}


def test_weights_that_would_lose_something_or_are_trained_stay_wide(batch: TrajectoryBatch) -> None:
    random: Any = RandomLanguageModel(config=QWEN).build_model()  # drawn in float32
    shorten_frozen(random.requires_grad_(False))
    assert kinds(random, "") == {torch.float32}
    trained = published()
    shorten_frozen(trained)
    assert kinds(trained, "") == {torch.float32}
    adapted = published(lora=LoRA(r=2))
    for parameter in adapted.parameters():  # an adapter that is frozen for now is still to be loaded or trained
        parameter.data = parameter.data.bfloat16().float()
    shorten_frozen(adapted.requires_grad_(False))
    assert kinds(adapted, ".lora_") == {torch.float32} and kinds(adapted, "base_layer") == {torch.bfloat16}


def test_layers_whose_weight_a_model_multiplies_itself_stay_wide(batch: TrajectoryBatch) -> None:
    mamba = {"model_type": "mamba", "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    wide, short = (published(mamba).requires_grad_(False) for _ in range(2))
    shorten_frozen(short)
    assert kinds(short, "dt_proj.weight") == {torch.float32} and kinds(short, "embeddings") == {torch.bfloat16}
    for context in (in_bfloat16(), nullcontext()):
        with context:
            found, expected = (response_scores(model, batch).log_probs for model in (short, wide))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_frozen_copy_is_short_where_products_are(batch: TrajectoryBatch) -> None:
    class Published(RandomLanguageModel):
        def build_model(self) -> Any:
            return published()

    factory, found = Published(config=QWEN), {}
    for autocast in (True, False):
        reference = FrozenCopy()
        reference.setup(factory, factory.build_model())
        with in_bfloat16() if autocast else nullcontext():
            values = reference.log_probs(batch)
        found[autocast] = kinds(reference._copy[0], "q_proj")
        with in_bfloat16() if autocast else nullcontext(), torch.no_grad():
            assert torch.equal(values, response_scores(published().eval(), batch).log_probs)
    assert found == {True: {torch.bfloat16}, False: {torch.float32}}


def test_a_shortened_model_is_copied_kept_and_widened_again_and_adapters_merge_into_it_as_before(
    tmp_path: Path, batch: TrajectoryBatch
) -> None:
    short, wide = (published(lora=LoRA(r=2)).eval() for _ in range(2))
    shorten_frozen(short)
    torch.save(short, tmp_path / "model.pt")
    kept = torch.load(tmp_path / "model.pt", weights_only=False)
    with in_bfloat16(), torch.no_grad():
        expected = response_scores(wide, batch).log_probs
        for model in (short, kept, deepcopy(short)):
            assert torch.equal(response_scores(model, batch).log_probs, expected)
    widen(short)
    assert [type(module) for module in short.modules()] == [type(module) for module in wide.modules()]
    assert all(torch.equal(p, other) for p, other in zip(short.parameters(), wide.parameters(), strict=True))
    merged, expected_merged = (model.merge_and_unload() for model in (short, wide))
    assert all(torch.equal(p, q) for p, q in zip(merged.parameters(), expected_merged.parameters(), strict=True))


class Casts(TorchDispatchMode):
    """Counts casts of a model's weights, and of what has the shape of cached keys and values."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.weights = {parameter.data_ptr() for parameter in model.parameters() if parameter.ndim > 1}
        self.of_weights = self.of_cache = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        # in inference mode `aten::to` is not taken apart
        if operation.name().startswith(("aten::_to_copy", "aten::to.")) and result.dtype != args[0].dtype:
            self.of_weights += args[0].data_ptr() in self.weights
            self.of_cache += args[0].ndim == 4 and args[0].shape[1] == QWEN["num_key_value_heads"] < args[0].shape[2]
        return result


def test_sampling_under_autocast_casts_each_weight_once_and_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    model = published().train()
    before = dict(model.named_parameters())
    prompts = [[5, 6, 7, 8], [9, 10, 11, 12, 13], [20, 21]]

    def sampled() -> list[Any]:
        return sample_responses(
            model, prompts, num_return_sequences=3, max_new_tokens=20, eos_token_id=1, pad_token_id=0, seed=3
        )

    with in_bfloat16(), Casts(model) as short:
        found = sampled()
    matrices = [p for name, p in before.items() if "_proj" in name]
    assert short.of_weights == len(matrices) + 1  # the head
    assert short.of_cache == QWEN["num_hidden_layers"]  # the keys of the prompts
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    monkeypatch.setattr("ipvrm_lightning.rollouts.cache.multiplies_shorter", lambda device: False)
    monkeypatch.setattr("ipvrm_lightning.rollouts.sampler.shortened", lambda model: nullcontext())
    with in_bfloat16(), Casts(model) as wide:
        assert sampled() == found
    assert wide.of_weights > 15 * short.of_weights and wide.of_cache > 15


def test_weights_are_wide_again_after_an_error_and_nothing_changes_without_autocast() -> None:
    model = published()
    before = dict(model.named_parameters())
    with pytest.raises(RuntimeError, match="stopped"), in_bfloat16(), shortened(model):
        assert kinds(model, "q_proj") == {torch.bfloat16}
        raise RuntimeError("stopped")
    with shortened(model):
        assert kinds(model, "") == {torch.float32}
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
