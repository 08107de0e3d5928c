"""A model's output head: logits, and log-probabilities of tokens without a [N, V] tensor.

Two paths give the same numbers: `torch.nn.functional.linear_cross_entropy` (torch >= 2.13, float32 and float64), and
chunks whose logits are made again in backward (older torch, half precision, soft-capped logits). Half precision takes
the second path because the first one returns its result in half precision, which is too coarse for a log-ratio that is
summed over a response. On a GPU the second path's products of half precision come out in float32, never rounded.

Letters: N positions, n positions of a chunk, K tokens per position, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ipvrm_lightning.models.preparation import is_compiled

DEFAULT_CHUNK_SIZE = 256
#: What transformers calls the bound of capped logits: Gemma, RecurrentGemma, xLSTM.
_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
P = ParamSpec("P")
R = TypeVar("R")


class OutputHead(NamedTuple):
    """How a model turns hidden states into logits: `cap * tanh(scale * (hidden @ weight.T + bias) / cap)`.

    Args:
        weight: [V, H].
        bias: [V] or None.
        scale: factor on the logits.
        soft_cap: bound of the tanh, None where logits are not capped.
        compiled: what is done to chunks of logits is compiled.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    soft_cap: float | None
    compiled: bool = False

    def at_temperature(self, temperature: float) -> OutputHead:
        """The head whose logits are divided by a temperature."""
        soft_cap = None if self.soft_cap is None else self.soft_cap / temperature
        return self._replace(scale=self.scale / temperature, soft_cap=soft_cap)

    def in_product_precision(self, hidden: Tensor) -> OutputHead:
        """The head with its weight cast once to the precision of products: autocast's, else the wider one's of both.

        Args:
            hidden: states that are multiplied with it.
        """
        device = self.weight.device.type
        dtype = torch.promote_types(self.weight.dtype, hidden.dtype)
        if self.weight.dtype != torch.float64 and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        return self._replace(weight=self.weight.to(dtype))


def base_language_model(model: nn.Module) -> Any:
    """The Hugging Face model inside a PEFT wrapper (its adapters are injected in place), or the model itself."""
    get_base = getattr(model, "get_base_model", None)
    return get_base() if callable(get_base) else model


def freeze_unread_head(model: nn.Module) -> None:
    """Freeze an output head whose place a value head takes, unless it is the embedding: it gets no gradient.

    Args:
        model: a causal language model, with or without adapters.
    """
    language_model = base_language_model(model)
    head = language_model.get_output_embeddings()
    if head.weight is not language_model.get_input_embeddings().weight:
        head.requires_grad_(False)


def output_head(model: nn.Module) -> OutputHead:
    """Read the output head of a causal language model.

    Logit scales are known by the names transformers gives them: `logit_scale` (Cohere) multiplies, `logits_scaling`
    (Granite) divides, `lm_head_multiplier` (Falcon-H1) multiplies, and any of `_SOFT_CAPS` caps.

    Raises:
        ValueError: the head is missing, quantised or wrapped by an adapter, so that its weight is not what it applies,
            or is the input embedding, which an adapter wraps.
    """
    language_model = base_language_model(model)
    head = language_model.get_output_embeddings()
    name = type(language_model).__name__
    if head is None or not isinstance(getattr(head, "weight", None), Tensor):
        raise ValueError(f"{name} has no output embedding with a weight; log-probabilities cannot be computed from it")
    if not head.weight.is_floating_point():
        raise ValueError(f"the output head of {name} is quantised; keep it in floating point (skip lm_head)")
    if hasattr(head, "base_layer"):
        raise ValueError(f"the output head of {name} carries an adapter; leave lm_head out of the LoRA target modules")
    embedding = getattr(language_model.get_input_embeddings(), "base_layer", None)
    if embedding is not None and embedding.weight is head.weight:  # merged, the update would reach the head as well
        raise ValueError(
            f"the input embedding of {name} carries an adapter and is its output head too (tied); leave"
            " embed_tokens out of the LoRA target modules"
        )
    config = language_model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale *= float(getattr(config, "lm_head_multiplier", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    soft_cap = next((cap for cap in (getattr(config, name, None) for name in _SOFT_CAPS) if cap is not None), None)
    return OutputHead(head.weight, getattr(head, "bias", None), scale, soft_cap, is_compiled(language_model))


def token_log_probs(
    hidden: Tensor,
    head: OutputHead,
    targets: Tensor,
    *,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    fused: bool | None = None,
) -> Tensor:
    """Log softmax(logits)[target] per position without a [N, V] tensor.

    Args:
        hidden: [N, H].
        head: the output head.
        targets: [N].
        chunk_size: positions whose logits exist at one time.
        fused: use `linear_cross_entropy`; None where this torch has it and precision and head allow it.

    Returns:
        [N], float32 or wider, with exact gradients.

    Raises:
        ValueError: `fused` is asked for where it is not available.
    """
    full_precision = hidden.dtype in (torch.float32, torch.float64) and head.weight.dtype == hidden.dtype
    possible = hasattr(F, "linear_cross_entropy") and full_precision and head.soft_cap is None
    if fused and not possible:
        raise ValueError("linear_cross_entropy needs torch 2.13, float32 or float64, and logits without a soft cap")
    if fused is None:
        fused = possible and not torch.is_autocast_enabled(hidden.device.type)
    if hidden.shape[0] == 0:
        return hidden.sum(-1)
    if fused:
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk_size)
        bias = None if head.bias is None else head.bias * head.scale
        return -F.linear_cross_entropy(
            hidden * head.scale, head.weight, targets, linear_bias=bias, reduction="none", options=options
        )
    log_probs: Tensor = _ChunkedLogProbs.apply(hidden, *head[:2], targets, *head[2:], chunk_size)
    return log_probs


def token_logits(hidden: Tensor, head: OutputHead, token_ids: Tensor) -> Tensor:
    """Logits of K tokens per position by dot products, float32 or wider, [N, K] for ids [N, K]."""
    logits = (hidden.to(_wide(hidden.dtype))[:, None] * head.weight[token_ids]).sum(-1)
    return _finish(logits if head.bias is None else logits + head.bias[token_ids], head)


class _ChunkedLogProbs(torch.autograd.Function):
    """Log softmax(logits)[target]; the logits of one chunk exist at a time, in forward and again in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        soft_cap: float | None,
        compiled: bool,
        chunk_size: int,
    ) -> Tensor:
        head = OutputHead(weight, bias, scale, soft_cap, compiled).in_product_precision(hidden)
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.precision, ctx.options, ctx.chunk_size = head.weight.dtype, head[2:], chunk_size
        log_probs = _compiled(_log_probs) if compiled else _log_probs
        chunks = zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True)
        with torch.autocast(hidden.device.type, enabled=False):
            return torch.cat([log_probs(head_logits(h.to(ctx.precision), head), y) for h, y in chunks])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        head = OutputHead(weight.to(ctx.precision), bias, *ctx.options)
        logits_gradient = _compiled(_logits_gradient) if head.compiled else _logits_gradient
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight, dtype=_wide(weight.dtype)) if ctx.needs_input_grad[1] else None
        of_bias = torch.zeros_like(bias, dtype=_wide(bias.dtype)) if ctx.needs_input_grad[2] else None
        with torch.autocast(hidden.device.type, enabled=False):
            chunks = (tensor.split(ctx.chunk_size) for tensor in (hidden, of_hidden, targets, gradient))
            for h, of_h, y, g in zip(*chunks, strict=True):
                h, factors = h.to(ctx.precision), -head.scale * g[:, None]
                of_logits = logits_gradient(head_logits(h, head), y, factors, head.soft_cap, ctx.precision)
                of_h.copy_(of_logits @ head.weight)
                if of_weight is not None:
                    of_weight += _product(of_logits.T, h)
                if of_bias is not None:
                    of_bias += of_logits.sum(0, dtype=of_bias.dtype)
        return of_hidden, of_weight, of_bias, None, None, None, None, None


def _log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def _logits_gradient(
    logits: Tensor, targets: Tensor, factors: Tensor, soft_cap: float | None, precision: torch.dtype
) -> Tensor:
    """Gradient of the product with the head, [n, V]: `factors` [n, 1] times p - 1 at the target and p elsewhere."""
    product = logits.softmax(-1)
    if torch.compiler.is_compiling():  # all in one pass over the logits
        product = product - (torch.arange(logits.shape[1], device=logits.device) == targets[:, None]).to(product.dtype)
    else:
        product[torch.arange(len(targets), device=targets.device), targets] -= 1
    if soft_cap is not None:
        product = product * (1 - (logits / soft_cap).square())
    return torch.mul(product, factors, out=torch.empty_like(product, dtype=precision))


@cache
def _compiled(function: Callable[P, R]) -> Callable[P, R]:
    return torch.compile(function)


def head_logits(hidden: Tensor, head: OutputHead) -> Tensor:
    """All logits of [n, H], float32 or wider, [n, V]: for chunks without gradient, or under checkpointing."""
    head = head.in_product_precision(hidden)
    logits = _product(hidden.to(head.weight.dtype), head.weight.T)
    return _finish((logits if head.bias is None else logits + head.bias).to(_wide(logits.dtype)), head)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """A product of matrices, unrounded where a GPU multiplies half precision and no gradient is asked for."""
    half = left.is_cuda and left.dtype in (torch.bfloat16, torch.float16)
    if half and not (torch.is_grad_enabled() and (left.requires_grad or right.requires_grad)):
        return torch.mm(left, right, out_dtype=torch.float32)
    return left @ right


def _finish(logits: Tensor, head: OutputHead) -> Tensor:
    """What the model does to a product with its head; nothing, without another pass over it, in most models."""
    if head.scale != 1:
        logits = logits * head.scale
    return logits if head.soft_cap is None else head.soft_cap * torch.tanh(logits / head.soft_cap)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
