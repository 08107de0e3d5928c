"""Sequences of one row give the numbers they give alone, and what cannot be kept apart is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ipvrm_lightning.models import LoRA, RandomLanguageModel, packing
from ipvrm_lightning.models.candidates import behavior_scores
from ipvrm_lightning.models.logprobs import check_output_head, response_hidden_states, response_scores

from .conftest import QWEN, TINY, make_batch

LLAMA = {"model_type": "llama", "num_key_value_heads": 2, **TINY}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 97}
LENGTHS, STARTS = [9, 14, 5, 11], [3, 6, 1, 10]


def build(config: dict[str, Any], attention: str, **options: Any) -> Any:
    torch.manual_seed(0)  # of adapters
    model = RandomLanguageModel(config=config, attn_implementation=attention, **options).build_model().double()
    check_output_head(model)
    return model


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"lora": LoRA(r=4)}], ids=str)
@pytest.mark.parametrize("config", [QWEN, LLAMA, GPT2], ids=lambda config: config["model_type"])
def test_values_and_gradients_are_those_of_padded_sequences(config: dict[str, Any], options: dict[str, Any]) -> None:
    found = []
    for attention in ("sdpa", "varlen"):
        model = build({**config, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}, attention, **options)
        log_probs = response_scores(model, make_batch(LENGTHS, STARTS), chunk_size=4).log_probs
        log_probs.sum().backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found.append((log_probs.detach(), torch.cat(gradients)))
    # norms of these models are in float32 whatever the weights are
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0, atol=1e-6)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=0, atol=1e-5)


def test_other_positions_and_logits_are_those_of_padded_sequences() -> None:
    """Value heads read states at the tokens themselves, EndoRM reads logits."""
    batch = make_batch(LENGTHS, STARTS)
    padded, packed = (build(QWEN, attention) for attention in ("sdpa", "varlen"))
    states = [response_hidden_states(model, batch, predicting=False) for model in (padded, packed)]
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=1e-6)
    scores: Any = [response_scores(model, batch, with_token_logits=True).token_logits for model in (padded, packed)]
    torch.testing.assert_close(scores[1], scores[0], rtol=0, atol=1e-6)


def test_no_layer_sees_padding() -> None:
    model, seen = build(QWEN, "varlen"), []
    model.model.layers[0].mlp.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[:2]))
    response_scores(model, make_batch(LENGTHS, STARTS))
    assert seen == [(1, sum(LENGTHS))]


def test_candidates_come_by_the_same_path() -> None:
    options = {"top_k": 5, "min_probability": 0.05}
    wide = {**QWEN, "initializer_range": 0.2}
    padded, packed = (
        behavior_scores(build(wide, attention), make_batch(LENGTHS, STARTS), **options)
        for attention in ("sdpa", "varlen")
    )
    assert torch.equal(packed.candidates.mask, padded.candidates.mask)
    torch.testing.assert_close(packed.log_probs, padded.log_probs, rtol=0, atol=1e-6)


def test_sampling_pads_as_ever() -> None:
    prompts = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    options = {"attention_mask": (prompts > 0).long(), "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected, found = (build(QWEN, attention).eval().generate(prompts, **options) for attention in ("sdpa", "varlen"))
    assert torch.equal(found, expected)


def test_the_kernel_is_called_with_what_it_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's kernel replaced by its definition: full attention under a mask of blocks."""

    def varlen_attn(
        query: Tensor, key: Tensor, value: Tensor, ends: Tensor, also: Tensor, longest: int, too: int, **options: Any
    ) -> Tensor:
        assert options == {"window_size": (-1, 0), "scale": 8**-0.5}
        assert ends.dtype == torch.int32 and ends is also and longest == too >= ends.diff().max()
        assert query.shape == key.shape == value.shape == (int(ends[-1]), 4, 8)
        row = torch.bucketize(torch.arange(len(query)), ends[1:], right=True)
        mask = (row[:, None] == row[None]).tril()
        scores = torch.einsum("qhd,khd->hqk", query, key) * options["scale"]
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(~mask, float("-inf")).softmax(-1), value)

    varlen = pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    monkeypatch.setattr(packing, "_one_by_one", packing._kernel)
    check_output_head(build(QWEN, "varlen"))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no attention": (
        {"model_type": "mamba", "state_size": 4, "time_step_rank": 4, **TINY},
        "MambaForCausalLM cannot have .* layers with (linear|mamba)",  # by version of transformers
    ),
    "no heads": (
        {"model_type": "rwkv", "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 97},
        "RwkvForCausalLM cannot have .*it has no attention",
    ),
    "a window": ({**LLAMA, "model_type": "mistral", "sliding_window": 16}, "sliding_window 16"),
    # a window that is in its mask alone
    "a window in the mask": ({**LLAMA, "model_type": "phimoe", "sliding_window": 16}, "sliding_window 16"),
    "layers with a window": (
        {**QWEN, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
        "layers with sliding_attention",
    ),
    "heads for which there is no kernel": ({**QWEN, "head_dim": 12}, "multiple of 8 up to 256"),
    "heads whose size follows from their number": ({**GPT2, "n_embd": 48}, "up to 256 and one for .* not 12"),
    "heads that are too large": ({**QWEN, "head_dim": 264}, "up to 256 and one for .* not 264"),
    "attention dropout": ({**QWEN, "attention_dropout": 0.1}, "knows no dropout, which Qwen3Attention asks for"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_not_be_the_same_is_refused_by_name(case: str) -> None:
    config, reason = REFUSED[case]
    with pytest.raises(ValueError, match=reason):
        build(config, "varlen")


def test_options_of_attention_that_are_not_known_are_refused() -> None:
    from ipvrm_lightning.models.packing import varlen_attention

    query, ends = torch.randn(1, 2, 5, 8), torch.tensor([0, 2, 5], dtype=torch.int32)
    for name, option in {"sliding_window": 4, "softcap": 50.0, "s_aux": torch.zeros(2), "is_causal": False}.items():
        with pytest.raises(ValueError, match=r"varlen (knows no|is causal)"):
            varlen_attention(torch.nn.Module(), query, query, query, None, cu_seq_lens_q=ends, **{name: option})
    encoder = torch.nn.Module()
    encoder.is_causal = False
    with pytest.raises(ValueError, match="varlen is causal, Module is not"):
        varlen_attention(encoder, query, query, query, None, cu_seq_lens_q=ends)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_sequences_that_reach_each_other_are_refused(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def one(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, *_: Any) -> Tensor:
        return packing_one_by_one(query, key, value, ends[[0, -1]], *_)

    packing_one_by_one = packing._one_by_one
    factory = RandomLanguageModel(config={**QWEN, "initializer_range": 0.2}, attn_implementation="varlen")
    model = factory.build_model().to(dtype)
    check_output_head(model)
    monkeypatch.setattr(packing, "_one_by_one", one)
    with pytest.raises(ValueError, match=r"Qwen3ForCausalLM cannot have .*varlen .*a sequence changes the next one"):
        check_output_head(model)


def test_the_largest_heads_that_the_kernel_takes_are_taken() -> None:
    check_output_head(build({**QWEN, "head_dim": 256}, "varlen"))


def test_attention_that_is_another_in_one_row_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By 3 % of the scores: in full precision it is told from rounding."""

    def sharper(query: Tensor, *others: Any) -> Tensor:
        return packing_one_by_one(1.03 * query, *others)

    packing_one_by_one = packing._one_by_one
    model = build({**QWEN, "initializer_range": 0.2}, "varlen")
    monkeypatch.setattr(packing, "_one_by_one", sharper)
    with pytest.raises(ValueError, match=r"varlen .*a sequence is not what it is by itself, by 0\.0"):
        check_output_head(model)
