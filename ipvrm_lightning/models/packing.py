"""Batches without padding: the sequences of a pass lie in one row, and each attends to itself alone.

`attn_implementation: varlen` asks for it. Attention in half precision on a GPU is torch's `varlen_attn`
(FlashAttention), elsewhere one call of `scaled_dot_product_attention` per sequence; all other layers see tokens, not
sequences. Passes that bring their own mask, such as sampling, are transformers' `sdpa`.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

VARLEN = "varlen"
#: What transformers passes on to attention that needs nothing of it.
_HARMLESS = {
    "cu_seq_lens_k", "max_length_k", "position_ids", "cache_position", "use_cache", "is_causal", "position_embeddings"
}  # fmt: skip


def register_varlen() -> None:
    """Make `varlen` known to transformers.

    Raises:
        ValueError: this torch has no `varlen_attn` for one of its GPUs.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if torch.cuda.is_available() and not _has_kernel():
        raise ValueError(f"attn_implementation varlen needs torch 2.11, this is {torch.__version__}: use sdpa")
    AttentionInterface.register(VARLEN, varlen_attention)
    AttentionMaskInterface.register(VARLEN, sdpa_mask)


def packs(language_model: Any) -> bool:
    """Whether a Hugging Face model reads sequences in one row."""
    return bool(language_model.config.get_text_config()._attn_implementation == VARLEN)


def check_packing(language_model: Any, backbone: Any) -> None:
    """Refuse a model that reads packed sequences otherwise than each by itself.

    Args:
        language_model: the Hugging Face model.
        backbone: it, without its head.

    Raises:
        ValueError: names what stands against it.
    """
    reason = _why_not(language_model.config.get_text_config())
    if reason is not None:
        raise ValueError(f"{reason}; use sdpa")
    weight = language_model.get_input_embeddings().weight
    ids = torch.arange(30, device=weight.device) % weight.shape[0]
    first, second, others = ids[:12], ids[12:18], ids[18:]
    later = torch.cat([first[:-1], others[:1]])

    def states(*rows: Tensor) -> tuple[Tensor, ...]:
        sizes = [len(row) for row in rows]
        lengths = torch.tensor(sizes, device=weight.device)
        return packed_states(backbone, pad_sequence(list(rows), batch_first=True), lengths, sum(sizes)).split(sizes)

    was_training = language_model.training
    language_model.eval()
    pair = states(first, second)
    alone = backbone(input_ids=second[None], use_cache=False).last_hidden_state[0]
    # the same shapes are rounded alike in any precision; another shape may take another kernel
    full_precision = all(p.dtype in (torch.float32, torch.float64) for p in language_model.parameters())
    checks = [
        ("a sequence changes the next one", states(others, second)[1], pair[1], 1e-3),
        ("a sequence changes the one before it", states(first, others[:6])[0], pair[0], 1e-3),
        ("a token changes earlier ones", states(later, second)[0][:-1], pair[0][:-1], 1e-3),
        ("a sequence is not what it is by itself", alone, pair[1], 1e-3 if full_precision else 0.2),
    ]
    language_model.train(was_training)
    for problem, found, expected, bound in checks:
        difference = float((found - expected).norm() / expected.norm())
        if not difference <= bound:
            raise ValueError(f"{problem}, by {difference:.2g}; use sdpa")
    states(first)  # what attention does in training alone


def _why_not(config: Any) -> str | None:
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"}:
        return f"it has layers with {', '.join(sorted(kinds - {'full_attention'}))}"
    for field in ("attention_chunk_size", "index_topk", *(() if kinds else ("sliding_window",))):
        if getattr(config, field, None):
            return f"its attention does not reach all earlier tokens ({field} {getattr(config, field)})"
    heads = getattr(config, "num_attention_heads", None)
    if heads is None:
        return "it has no attention"
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    if size % 8 or size > 256 or getattr(config, "v_head_dim", size) != size:
        return f"the kernel takes heads whose size is a multiple of 8 up to 256 and one for keys and values, not {size}"
    return None


def runs(first: Tensor, lengths: Tensor, total: int) -> Tensor:
    """Numbers in runs, one run after the other: `lengths` of them, upwards from `first`. No GPU is waited for.

    Args:
        first: number that each run begins with, [B].
        lengths: of the runs, [B].
        total: the sum of the lengths.

    Returns:
        [total].
    """
    before = lengths.cumsum(0) - lengths
    return torch.arange(total, device=first.device) + (first - before).repeat_interleave(lengths, output_size=total)


def packed_states(backbone: Any, input_ids: Tensor, lengths: Tensor, total: int) -> Tensor:
    """Last hidden states of all tokens, sequence after sequence, [total, H].

    Args:
        backbone: the Hugging Face model without its head.
        input_ids: right-padded sequences, [B, L].
        lengths: tokens of each, [B].
        total: the sum of the lengths.
    """
    zeros = torch.zeros_like(lengths)
    longest = input_ids.shape[1]
    rows = torch.arange(len(lengths), device=lengths.device) * longest
    ends = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    output = backbone(
        input_ids=input_ids.flatten()[runs(rows, lengths, total)][None],
        position_ids=runs(zeros, lengths, total)[None],
        # one of four dimensions is left alone by all that would make a [tokens, tokens] mask
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device),
        cu_seq_lens_q=ends,
        cu_seq_lens_k=ends,
        max_length_q=longest,
        max_length_k=longest,
        use_cache=False,
    )
    states: Tensor = output.last_hidden_state[0]
    return states


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence of one row, as transformers calls it.

    Args:
        module: the attention layer.
        query: [1, heads, tokens, D].
        key: [1, key heads, tokens, D].
        value: [1, key heads, tokens, D].
        attention_mask: of passes whose sequences are not in one row.
        scaling: of the scores.
        cu_seq_lens_q: where each sequence starts, and the number of tokens, [B + 1]; None for other passes.
        max_length_q: no sequence is longer.
        options: what else transformers passes.

    Returns:
        [1, tokens, heads, D] and no weights.

    Raises:
        ValueError: the layer asks for what this attention does not do.
    """
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    if cu_seq_lens_q is None:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return found
    for name, option in options.items():
        if name not in _HARMLESS and (option if not isinstance(option, Tensor) else True):
            raise ValueError(f"attn_implementation varlen knows no {name}, which {type(module).__name__} asks for")
    if options.get("is_causal") is False or not getattr(module, "is_causal", True):
        raise ValueError(f"attn_implementation varlen is causal, {type(module).__name__} is not")
    device = query.device.type
    if torch.is_autocast_enabled(device):
        query, key, value = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    attend = _kernel if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) else _one_by_one
    return attend(query, key, value, cu_seq_lens_q, max_length_q, scaling)[None], None


def _has_kernel() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "window_size" in inspect.signature(varlen_attn).parameters


def _kernel(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int | None, scale: float | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    sizes: Any = (ends, ends, longest, longest)
    attended: Any = varlen_attn(query, key, value, *sizes, window_size=(-1, 0), scale=scale)
    return attended


@torch.compiler.disable
def _one_by_one(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int | None, scale: float | None
) -> Tensor:
    sizes = ends.diff().tolist()
    parts = (tensor.transpose(0, 1)[None].split(sizes, dim=2) for tensor in (query, key, value))
    attended = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale) for q, k, v in zip(*parts, strict=True)
    ]
    return torch.cat(attended, dim=2)[0].transpose(0, 1)
