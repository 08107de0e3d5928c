"""Compiled decoder blocks and chunks give the numbers and gradients of the same model as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ipvrm_lightning.models import LoRA, PretrainedLanguageModel, RandomLanguageModel, output_head, packing
from ipvrm_lightning.models.logprobs import check_output_head, response_scores
from ipvrm_lightning.models.reference import AdaptersOff

from .conftest import QWEN, make_batch

BATCHES = [make_batch([9, 14, 5, 11], [3, 6, 1, 10]), make_batch([7, 12], [2, 3])]

#: Each kind of pass through a block that differs from the others is traced, in seconds.
ONE_BLOCK = {**QWEN, "num_hidden_layers": 1}


@pytest.fixture(autouse=True)
def without_generated_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Traced and differentiated as ever, but run by PyTorch's own kernels: no C++ compiler is needed, or waited for."""
    torch._dynamo.reset()
    output_head._compiled.cache_clear()
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **options: compile_(*args, **options, backend="aot_eager"))
    yield
    output_head._compiled.cache_clear()


def at_once(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int, scale: float | None) -> Tensor:
    """Attention within each sequence of a row, as a kernel of a GPU does it: nothing in it stops a compiler.

    The one of a CPU does, and within what is recomputed all of a block is then left as it is.
    """
    places = torch.arange(query.shape[0])
    sequences = torch.searchsorted(ends, places, right=True)
    seen = (sequences[:, None] == sequences) & (places[:, None] >= places)
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)[0].transpose(0, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"attn_implementation": "sdpa"},
        {
            "config": ONE_BLOCK,
            "attn_implementation": "varlen",
            "lora": LoRA(r=4),
            "gradient_checkpointing": True,
        },
    ],
    ids=["full", "adapters"],
)
def test_values_and_gradients_are_those_of_the_model_as_it_is(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_one_by_one", at_once)
    torch._dynamo.utils.counters.clear()
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)  # of adapters
        factory = RandomLanguageModel(compile=compiled, **{"config": QWEN, **options})
        model: Any = factory.build_model()
        numbers = []
        for batch in BATCHES:
            log_probs = response_scores(model, batch, chunk_size=4).log_probs
            log_probs.sum().backward()
            numbers.append(log_probs.detach().flatten())
        assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0) == compiled
        if "lora" in options:
            reference = AdaptersOff()
            reference.setup(factory, model)
            numbers += [reference.log_probs(batch).flatten() for batch in BATCHES]
        numbers += [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found.append(torch.cat(numbers))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_compiled_chunks_have_the_values_and_gradients_of_all_logits(soft_cap: float | None) -> None:
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((7, 3), (11, 3), (11,)))
    targets, weights = torch.randint(0, 11, (7,)), torch.randn(7)
    logits = 0.7 * (hidden @ weight.T + bias)
    logits = logits if soft_cap is None else soft_cap * torch.tanh(logits / soft_cap)
    expected = logits.log_softmax(-1)[torch.arange(7), targets]
    torch._dynamo.utils.counters.clear()
    head = output_head.OutputHead(weight, bias, 0.7, soft_cap, compiled=True)
    found = output_head.token_log_probs(hidden, head, targets, chunk_size=4, fused=False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad((v * weights).sum(), (hidden, weight, bias)) for v in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2  # of values and of gradients


def test_weights_in_4_bits_with_adapters_compile(tmp_path: Path) -> None:
    wide = {**ONE_BLOCK, "hidden_size": 64, "intermediate_size": 128}
    RandomLanguageModel(config=wide).build_model().save_pretrained(tmp_path)
    options = {"name": str(tmp_path), "quantization": "nf4", "lora": LoRA(r=4), "compute_dtype": "float32"}
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        factory = PretrainedLanguageModel(compile=compiled, attn_implementation="varlen", **options)
        model: Any = factory.build_model()
        log_probs = response_scores(model, BATCHES[0]).log_probs
        log_probs.sum().backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found.append(torch.cat([log_probs.detach().flatten(), *gradients]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_experts_with_adapters_compile_nothing_in_later_passes() -> None:
    """PEFT gives experts another class in each pass: what had been compiled for one would not do for the next."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    config = {**ONE_BLOCK, **experts, "model_type": "qwen3_moe"}
    models: list[Any] = [
        RandomLanguageModel(config=config, compile=compiled, lora=LoRA(r=2)).build_model() for compiled in (False, True)
    ]
    models[1].load_state_dict(models[0].state_dict())
    graphs = []
    torch._dynamo.utils.counters.clear()
    for lengths in ([9, 14, 5], [7, 12], [8, 4, 6, 11]):
        batch = make_batch(lengths, [2] * len(lengths))
        expected, found = (response_scores(model, batch).log_probs for model in models)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        found.sum().backward()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs[1:] == graphs[:1] * 2


def test_weights_have_the_names_of_a_model_as_it_is() -> None:
    compiled, as_it_is = (RandomLanguageModel(config=QWEN, compile=value).build_model() for value in (True, False))
    assert list(compiled.state_dict()) == list(as_it_is.state_dict())


def test_what_is_checked_before_training_compiles_nothing() -> None:
    model = RandomLanguageModel(config=ONE_BLOCK, compile=True, attn_implementation="varlen").build_model()
    torch._dynamo.utils.counters.clear()
    check_output_head(model)
    assert not torch._dynamo.utils.counters["stats"]
    response_scores(model, BATCHES[0])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
