from __future__ import annotations

from typing import Any

import pytest
import torch

from ipvrm_lightning.models import output_head as heads
from ipvrm_lightning.models.language_model import LoRA, RandomLanguageModel
from ipvrm_lightning.models.logprobs import check_output_head, response_scores
from ipvrm_lightning.models.output_head import OutputHead, output_head, token_log_probs
from ipvrm_lightning.types import TrajectoryBatch

from .conftest import QWEN, TINY, make_batch

CONFIGS = {
    "qwen3": QWEN,
    "llama_tied": {"model_type": "llama", "tie_word_embeddings": True, **TINY},
    "gemma2_soft_cap": {
        "model_type": "gemma2",
        "num_key_value_heads": 2,
        "head_dim": 8,
        "final_logit_softcapping": 2.0,
        "pad_token_id": 0,
        **TINY,
    },
    "granite_scaled": {"model_type": "granite", "logits_scaling": 3.0, **TINY},
    "cohere_scaled": {
        "model_type": "cohere",
        "logit_scale": 0.25,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **TINY,
    },
    "falcon_h1_scaled": {
        "model_type": "falcon_h1",
        "lm_head_multiplier": 0.5,
        "num_key_value_heads": 2,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_d_ssm": 64,
        "mamba_chunk_size": 8,
        **TINY,
        "num_hidden_layers": 1,
    },
    "recurrent_gemma_soft_cap": {
        "model_type": "recurrent_gemma",
        "block_types": ["recurrent", "attention"],
        "lru_width": 32,
        "logits_soft_cap": 2.0,
        "pad_token_id": 0,
        **TINY,
    },
    "llama4": {
        "model_type": "llama4_text",
        "intermediate_size_mlp": 48,
        "num_local_experts": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        **TINY,
    },
}


def plain_log_probs(model: torch.nn.Module, batch: TrajectoryBatch, temperature: float = 1.0) -> torch.Tensor:
    """The textbook computation: full logits of each sequence by itself, without padding."""
    out = torch.zeros(len(batch.lengths), int(batch.response_lengths.max()), dtype=torch.float64)
    rows = []
    for row, (length, start) in enumerate(zip(batch.lengths.tolist(), batch.response_starts.tolist(), strict=True)):
        ids = batch.input_ids[row : row + 1, :length]
        log_probs = (model(input_ids=ids).logits[0].double() / temperature).log_softmax(-1)
        picked = log_probs[:-1].gather(1, ids[0, 1:, None]).squeeze(1)[start - 1 :]
        rows.append(torch.nn.functional.pad(picked, (0, out.shape[1] - len(picked))))
    return torch.stack(rows)


@pytest.mark.parametrize("fused", [True, False], ids=["linear_cross_entropy", "chunks"])
@pytest.mark.parametrize("name", CONFIGS)
def test_values_and_gradients_equal_full_logits(
    name: str, fused: bool, batch: TrajectoryBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fused and not hasattr(torch.nn.functional, "linear_cross_entropy"):
        pytest.skip("this torch has no linear_cross_entropy")
    if not fused:
        monkeypatch.delattr(torch.nn.functional, "linear_cross_entropy", raising=False)
    model = RandomLanguageModel(config=CONFIGS[name], seed=3).build_model().double().train()
    check_output_head(model)
    weights = torch.rand(4, 10, dtype=torch.float64)
    gradients = []
    results = []
    for compute in (
        lambda: response_scores(model, batch, chunk_size=4).log_probs,
        lambda: plain_log_probs(model, batch),
    ):
        model.zero_grad()
        values = compute()
        (values * weights[:, : values.shape[1]]).sum().backward()
        results.append(values.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-6)
    # the models compute their norms in float32 whatever their weights are, hence not 1e-10
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.7, 1.6])
@pytest.mark.parametrize("name", ["qwen3", "gemma2_soft_cap"])
def test_temperature_divides_the_logits(name: str, temperature: float, batch: TrajectoryBatch) -> None:
    model = RandomLanguageModel(config=CONFIGS[name]).build_model().eval()
    actual = response_scores(model, batch, temperature=temperature).log_probs
    torch.testing.assert_close(actual.double(), plain_log_probs(model, batch, temperature), rtol=0, atol=1e-5)


def test_padding_batching_and_chunks_change_nothing() -> None:
    model = RandomLanguageModel(config=QWEN).build_model().double().eval()
    whole = response_scores(model, make_batch([9, 14, 5], [3, 6, 1]))
    padded = response_scores(model, make_batch([9, 14, 5], [3, 6, 1], padding=7), chunk_size=3)
    torch.testing.assert_close(whole.log_probs, padded.log_probs, rtol=0, atol=1e-12)
    alone = make_batch([9, 14, 5], [3, 6, 1])
    alone = TrajectoryBatch(alone.input_ids[2:, :5], alone.lengths[2:], alone.response_starts[2:], alone.index[2:])
    torch.testing.assert_close(response_scores(model, alone).log_probs[0], whole.log_probs[2, :4], rtol=0, atol=1e-12)


def test_token_logits_are_the_logits_of_the_sampled_tokens(batch: TrajectoryBatch) -> None:
    model = RandomLanguageModel(config=CONFIGS["gemma2_soft_cap"]).build_model().eval()
    scores = response_scores(model, batch, with_token_logits=True)
    logits = model(input_ids=batch.input_ids[1:2, :14]).logits[0]
    expected = logits[5:13].gather(1, batch.input_ids[1, 6:14, None]).squeeze(1)
    torch.testing.assert_close(scores.token_logits[1, :8], expected, rtol=0, atol=1e-5)


def test_half_precision_returns_float32_close_to_float32() -> None:
    model = RandomLanguageModel(config=QWEN).build_model().eval()
    batch = make_batch([40], [8])
    full = response_scores(model, batch).log_probs
    half = response_scores(model.bfloat16(), batch).log_probs
    assert half.dtype == torch.float32
    assert (full - half).abs().max() < 0.05


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize(("scale", "soft_cap"), [(1.0, None), (0.7, None), (0.7, 2.0)])
def test_a_head_is_its_formula(scale: float, soft_cap: float | None, temperature: float) -> None:
    """`cap * tanh(scale * (hidden @ weight.T + bias) / cap)`, over the temperature."""
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((7, 3), (11, 3), (11,)))
    targets = torch.randint(0, 11, (7,))
    logits = scale * (torch.einsum("nh,vh->nv", hidden, weight) + bias)
    logits = (logits if soft_cap is None else soft_cap * torch.tanh(logits / soft_cap)) / temperature
    head = OutputHead(weight, bias, scale, soft_cap).at_temperature(temperature)
    exact = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(heads.head_logits(hidden, head), logits, **exact)
    ids = torch.stack([targets, targets.roll(1)], 1)
    torch.testing.assert_close(heads.token_logits(hidden, head, ids), logits.gather(1, ids), **exact)
    expected = torch.distributions.Categorical(logits=logits).log_prob(targets)
    can_be_fused = soft_cap is None and hasattr(torch.nn.functional, "linear_cross_entropy")
    for fused in (None, False, True)[: 2 + can_be_fused]:
        for count in (7, 1):
            found = token_log_probs(hidden[:count], head, targets[:count], chunk_size=3, fused=fused)
            torch.testing.assert_close(found, expected[:count], **exact)
        assert token_log_probs(hidden[:0], head, targets[:0], fused=fused).shape == (0,)


@pytest.mark.parametrize(("autocast", "in_half"), [(False, False), (True, True)], ids=["as they are", "autocast"])
def test_products_with_the_head_are_as_precise_as_the_wider_side_or_as_autocast_says(
    autocast: bool, in_half: bool
) -> None:
    half, full, double = torch.bfloat16, torch.float32, torch.float64
    for weight, hidden, expected in (
        (half, half, half),
        (half, full, half if in_half else full),
        (full, half, half if in_half else full),
        (full, full, half if in_half else full),
        (double, double, double),  # which autocast leaves alone
    ):
        head = OutputHead(torch.ones(3, 2, dtype=weight), None, 1.0, None)
        with torch.autocast("cpu", half, enabled=autocast):
            found = head.in_product_precision(torch.ones(1, 2, dtype=hidden))
        assert found.weight.dtype == expected, (weight, hidden)


def test_chunks_multiply_in_the_precision_of_autocast_and_cast_the_weight_once_a_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """States of a model whose norms give float32: products with them would be, and each chunk's weight a copy."""
    products: list[torch.Tensor] = []
    product = heads._product
    monkeypatch.setattr(heads, "_product", lambda a, b: products.extend((a, b)) or product(a, b))
    hidden, weight = torch.randn(6, 3, requires_grad=True), torch.randn(11, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        head = OutputHead(weight, None, 1.0, None)
        values = token_log_probs(hidden, head, torch.zeros(6, dtype=torch.long), chunk_size=2)
    assert len(products) == 2 * 3 and len({weight.data_ptr() for weight in products[1::2]}) == 1
    values.sum().backward()
    assert len(products) == 2 * (3 + 3 + 3) and {tensor.dtype for tensor in products} == {torch.bfloat16}


def test_states_in_full_precision_are_read_by_a_head_in_half() -> None:
    """As of a model whose last norm gives float32: only the weight is rounded."""
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(7, 3), torch.randn(11, 3).bfloat16(), torch.randint(0, 11, (7,))
    expected = (hidden.double() @ weight.double().T).log_softmax(-1)[torch.arange(7), targets]
    found = token_log_probs(hidden, OutputHead(weight, None, 1.0, None), targets)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


def test_linear_cross_entropy_is_taken_in_full_precision_alone_and_told_the_chunk_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under autocast it would multiply in full precision; without the size it chooses how many logits exist."""
    fused = getattr(torch.nn.functional, "linear_cross_entropy", None)
    if fused is None:
        pytest.skip("this torch has no linear_cross_entropy")
    sizes: list[int] = []
    taken: list[int] = []

    def told(*args: Any, options: Any, **others: Any) -> torch.Tensor:
        sizes.append(options.batch_chunk_size)
        return fused(*args, options=options, **others)  # type: ignore[misc]

    monkeypatch.setattr(torch.nn.functional, "linear_cross_entropy", told)
    hidden, weight, targets = torch.randn(7, 3), torch.randn(11, 3), torch.zeros(7, dtype=torch.long)
    for dtype, soft_cap, autocast in (
        (torch.float32, None, True),
        (torch.float32, 2.0, False),
        (torch.bfloat16, None, False),
        (torch.float64, None, False),
        (torch.float32, None, False),
    ):
        head = OutputHead(weight.to(dtype), None, 1.0, soft_cap)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            token_log_probs(hidden.to(dtype), head, targets, chunk_size=3)
        taken.append(len(sizes))
    assert taken == [0, 0, 0, 1, 2] and sizes == [3, 3]


def test_logits_of_tokens_are_added_up_without_rounding() -> None:
    """They are made of states and weights in half precision, and a sum in it would be off by 2^-9 of each logit."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 64).bfloat16(), torch.randn(11, 64).bfloat16()
    ids = torch.randint(0, 11, (7, 2))
    expected = (hidden.double() @ weight.double().T).gather(1, ids)
    found = heads.token_logits(hidden, OutputHead(weight, None, 1.0, None), ids)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)


def test_heads_that_cannot_be_read_are_refused_by_name() -> None:
    model = RandomLanguageModel(config=QWEN).build_model()
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(97, 16, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match="the output head of Qwen3ForCausalLM is quantised; keep it in floating"):
        output_head(model)
    for missing in (None, torch.nn.Identity()):
        model.get_output_embeddings = lambda missing=missing: missing
        with pytest.raises(ValueError, match="Qwen3ForCausalLM has no output embedding with a weight"):
            output_head(model)


def test_no_tensor_of_all_logits_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor that the chunks make has chunk_size rows of logits."""
    sizes: list[int] = []
    original = heads.head_logits
    monkeypatch.setattr(heads, "head_logits", lambda h, head: sizes.append(h.shape[0]) or original(h, head))
    model = RandomLanguageModel(config=QWEN).build_model()
    hidden = torch.randn(50, 32, requires_grad=True)
    token_log_probs(hidden, output_head(model), torch.randint(0, 97, (50,)), chunk_size=8, fused=False).sum().backward()
    assert max(sizes) == 8


def test_asking_for_the_fused_path_where_it_cannot_run_is_an_error() -> None:
    model = RandomLanguageModel(config=CONFIGS["gemma2_soft_cap"]).build_model()
    with pytest.raises(ValueError, match="soft cap"):
        token_log_probs(torch.randn(3, 32), output_head(model), torch.zeros(3, dtype=torch.long), fused=True)


def test_a_head_that_is_not_known_is_refused_by_name() -> None:
    model = RandomLanguageModel(config=QWEN).build_model()
    forward = model.lm_head.forward
    model.lm_head.forward = lambda hidden: 2 * forward(hidden)
    with pytest.raises(ValueError, match="Qwen3ForCausalLM changes its logits"):
        check_output_head(model)


@pytest.mark.parametrize(("dtype", "off"), [("bfloat16", 0.1), ("float16", 0.1), ("float32", 0.005)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_no_precision_hides_an_unknown_scale(sign: int, dtype: Any, off: float) -> None:
    scale = 1 + sign * off
    for name in ("qwen3", "gemma2_soft_cap", "granite_scaled"):
        model = RandomLanguageModel(config={**CONFIGS[name], "initializer_range": 0.2}, dtype=dtype).build_model()
        check_output_head(model)
        forward = model.lm_head.forward
        model.lm_head.forward = lambda hidden, forward=forward: scale * forward(hidden)
        with pytest.raises(ValueError, match="changes its logits"):
            check_output_head(model)


XLM = {"model_type": "xlm", "vocab_size": 97, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "init_std": 0.2}
NOT_CAUSAL = {
    "Gemma3ForCausalLM": {"model_type": "gemma3_text", "use_bidirectional_attention": True, "head_dim": 8, **TINY},
    "BertGenerationDecoder": {"model_type": "bert-generation", **TINY},
    "XLMWithLMHeadModel": XLM,
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NOT_CAUSAL)
def test_a_model_that_reads_later_tokens_is_refused(name: str, dtype: str) -> None:
    config = {"initializer_range": 0.2, **NOT_CAUSAL[name]}
    model = RandomLanguageModel(config=config, dtype=dtype).build_model()
    with pytest.raises(ValueError, match=f"^{name}: a token changes what is said of earlier ones: it is no causal"):
        check_output_head(model)
    assert model.training, "as it was before the check"


@pytest.mark.parametrize("size", [1e-3, 0.2])
def test_a_little_that_comes_from_later_tokens_is_told_from_rounding(size: float) -> None:
    """1 % of each state is a mean over all of them; logits are of size 0.004 and 1."""
    model = RandomLanguageModel(config={**QWEN, "initializer_range": size}).build_model()
    check_output_head(model)
    model.model.layers[0].register_forward_hook(lambda _, __, states: states + 0.01 * states.mean(1, keepdim=True))
    with pytest.raises(ValueError, match="a token changes what is said of earlier ones"):
        check_output_head(model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_experts_that_later_tokens_choose_are_no_fault(dtype: str) -> None:
    config = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "initializer_range": 0.2}
    model = RandomLanguageModel(config={**QWEN, **config, "model_type": "qwen3_moe"}, dtype=dtype).build_model()
    check_output_head(model)


def test_an_architecture_that_adapters_break_is_refused_with_what_to_try() -> None:
    """Its router gives two tensors, and all-linear puts an adapter on it."""
    model = RandomLanguageModel(config=CONFIGS["llama4"], lora=LoRA(r=2)).build_model()
    with pytest.raises(ValueError, match=r"Llama4ForCausalLM cannot run .* these adapters: .* lora\.target_modules"):
        check_output_head(model)


def test_an_adapter_on_the_head_is_refused() -> None:
    lora = LoRA(r=2, target_modules=["q_proj", "lm_head"])
    model = RandomLanguageModel(config=QWEN, lora=lora).build_model()
    with pytest.raises(ValueError, match="leave lm_head out"):
        output_head(model)


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_on_an_input_embedding_that_is_the_head_is_refused(tied: bool) -> None:
    lora = LoRA(r=2, target_modules=["q_proj", "embed_tokens"])
    model = RandomLanguageModel(config={**QWEN, "tie_word_embeddings": tied}, lora=lora).build_model()
    if not tied:
        return check_output_head(model)
    with pytest.raises(ValueError, match=r"is its output head too .tied.; leave embed_tokens out"):
        check_output_head(model)


def test_all_linear_leaves_the_head_alone() -> None:
    model = RandomLanguageModel(config=QWEN, lora=LoRA(r=2)).build_model()
    check_output_head(model)
    assert sum(p.requires_grad for p in model.parameters()) == 2 * 7 * 2


@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("trained", ["head and states", "states"])
def test_gradients_of_the_chunks_are_those_of_finite_differences(soft_cap: float | None, trained: str) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(11, 3, dtype=torch.float64), torch.randn(11, dtype=torch.float64)
    targets = torch.randint(0, 11, (7,))
    if trained == "head and states":
        weight.requires_grad_()
        bias.requires_grad_()

    def log_probs(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        head = OutputHead(weight, bias, 0.7, soft_cap)
        return token_log_probs(hidden, head, targets, chunk_size=3, fused=False)

    assert torch.autograd.gradcheck(log_probs, (hidden, weight, bias))


@pytest.mark.parametrize("trained", [True, False])
def test_a_head_that_is_frozen_costs_no_gradient_of_its_size(trained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two products of [n, 3] with [3, 11], in forward and again in backward; [11, n] with [n, 3] if it is trained."""
    shapes: list[tuple[int, ...]] = []
    product = heads._product
    monkeypatch.setattr(heads, "_product", lambda a, b: shapes.append((*a.shape, *b.shape)) or product(a, b))
    hidden, weight = torch.randn(4, 3, requires_grad=True), torch.randn(11, 3, requires_grad=trained)
    targets = torch.zeros(4, dtype=torch.long)
    token_log_probs(hidden, OutputHead(weight, None, 1.0, None), targets, chunk_size=2, fused=False).sum().backward()
    assert sorted(shapes) == [(2, 3, 3, 11)] * 4 + [(11, 2, 2, 3)] * 2 * trained


def test_gradients_of_many_chunks_are_added_up_without_rounding() -> None:
    """Of terms that are alike, a sum in bfloat16 stands still at 256 of them; its end result is rounded by 2^-9."""
    hidden, weight, bias = torch.ones(600, 1), torch.zeros(4, 1), torch.zeros(4)
    hidden, weight, bias = (tensor.bfloat16().requires_grad_() for tensor in (hidden, weight, bias))
    targets = torch.zeros(600, dtype=torch.long)
    token_log_probs(hidden, OutputHead(weight, bias, 1.0, None), targets, chunk_size=1).sum().backward()
    expected = 600 * torch.tensor([0.75, -0.25, -0.25, -0.25])
    torch.testing.assert_close(weight.grad.squeeze(1).float(), expected, rtol=2**-8, atol=0)
    torch.testing.assert_close(bias.grad.float(), expected, rtol=2**-8, atol=0)


def test_half_precision_products_have_gradients_near_exact_ones() -> None:
    """Logits below 4 are rounded by at most 2^-7, and so are probabilities; two more roundings are of 2^-9 each."""
    torch.manual_seed(0)
    rounded = [(0.4 * torch.randn(*shape)).bfloat16() for shape in ((50, 32), (97, 32))]
    assert (rounded[0].float() @ rounded[1].float().T).abs().max() < 4
    targets, weights = torch.randint(0, 97, (50,)), torch.randn(50)
    found = []
    for dtype in (torch.float32, torch.float64):
        hidden, weight = (tensor.to(dtype).requires_grad_() for tensor in rounded)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            values = token_log_probs(hidden, OutputHead(weight, None, 1.0, None), targets, chunk_size=8)
        (values * weights).sum().backward()
        found.append((values.detach().double(), hidden.grad.double(), weight.grad.double()))
        assert values.dtype == hidden.grad.dtype == weight.grad.dtype == dtype
    for half, exact in zip(*found, strict=True):
        assert float((half - exact).norm() / exact.norm()) < 2**-7 + 2 * 2**-9
