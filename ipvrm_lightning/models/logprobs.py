"""Token log-probabilities from hidden states of the response positions: no [T, V] logits, no prompt positions.

Two paths give the same numbers: `torch.nn.functional.linear_cross_entropy` (torch >= 2.13, float32 and float64), and
chunks recomputed under `torch.utils.checkpoint` (older torch, half precision, soft-capped logits). Half precision takes
the second path because the first one returns its result in half precision, which is too coarse for a log-ratio that is
summed over a response.

Letters: B sequences, L tokens, T tokens of the longest response, N response tokens of the batch, H hidden size,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ipvrm_lightning.failures import library_errors
from ipvrm_lightning.models.sharding import inside
from ipvrm_lightning.pretrained import positions
from ipvrm_lightning.types import TrajectoryBatch

DEFAULT_CHUNK_SIZE = 256
P = ParamSpec("P")
R = TypeVar("R")


class OutputHead(NamedTuple):
    """How a model turns hidden states into logits: `cap * tanh(scale * (hidden @ weight.T + bias) / cap)`.

    Args:
        weight: [V, H].
        bias: [V] or None.
        scale: factor on the logits.
        soft_cap: bound of the tanh, None where logits are not capped.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    soft_cap: float | None

    def at_temperature(self, temperature: float) -> OutputHead:
        """The head whose logits are divided by a temperature."""
        soft_cap = None if self.soft_cap is None else self.soft_cap / temperature
        return self if temperature == 1.0 else self._replace(scale=self.scale / temperature, soft_cap=soft_cap)


class ResponseScores(NamedTuple):
    """Per-token results, aligned to the start of the response.

    Args:
        log_probs: log-probability of each response token, 0 at padding, [B, T].
        mask: True at response tokens, [B, T].
        token_logits: logit of each response token, 0 at padding, [B, T]; None unless asked for.
    """

    log_probs: Tensor
    mask: Tensor
    token_logits: Tensor | None = None


def base_language_model(model: nn.Module) -> Any:
    """The Hugging Face model inside a PEFT wrapper (its adapters are injected in place), or the model itself."""
    get_base = getattr(model, "get_base_model", None)
    return get_base() if callable(get_base) else model


def output_head(model: nn.Module) -> OutputHead:
    """Read the output head of a causal language model.

    Logit scales are known by the names transformers gives them: `logit_scale` (Cohere) multiplies, `logits_scaling`
    (Granite) divides, `lm_head_multiplier` (Falcon-H1) multiplies, `final_logit_softcapping` (Gemma) caps.

    Raises:
        ValueError: the head is missing, quantised or wrapped by an adapter, so that its weight is not what it applies.
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
    config = language_model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale *= float(getattr(config, "lm_head_multiplier", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    return OutputHead(head.weight, getattr(head, "bias", None), scale, getattr(config, "final_logit_softcapping", None))


def reads_weights(function: Callable[Concatenate[nn.Module, P], R]) -> Callable[Concatenate[nn.Module, P], R]:
    """For functions of a model that read its weights past its own forward pass: a sharded model gathers them.

    Args:
        function: of a causal language model, with or without adapters; returns a tensor, or a tuple of them.
    """

    @wraps(function)
    def run(model: nn.Module, *args: P.args, **kwargs: P.kwargs) -> R:
        return inside(base_language_model(model), lambda: function(model, *args, **kwargs))

    return run


def check_output_head(model: nn.Module) -> None:
    """Compare `output_head` with the model's own logits on a few tokens, so that an unknown head is refused by name.

    Raises:
        ValueError: the model's logits are not what its head gives.
    """
    language_model = base_language_model(model)
    head = output_head(model)
    if head.weight.device.type == "meta":
        return
    name = type(language_model).__name__
    input_ids = torch.arange(6, device=head.weight.device)[None] % head.weight.shape[0]
    was_training = language_model.training
    language_model.eval()
    with library_errors(f"{name} cannot run as its config describes it"), torch.no_grad():
        expected = language_model(input_ids=input_ids, use_cache=False).logits.float()
        actual = inside(language_model, lambda: head_logits(_hidden_states(model, input_ids), output_head(model)))
    language_model.train(was_training)
    tolerance = 1e-3 if head.weight.dtype in (torch.float32, torch.float64) else 0.25
    difference = (expected - actual).abs().max().item()
    if not difference <= tolerance * max(1.0, expected.abs().max().item()):
        raise ValueError(
            f"{name} changes its logits after the output head in a way this package does not"
            f" know (difference {difference:.3g}); its log-probabilities would be wrong"
        )


def check_vocabulary(model: nn.Module, largest_id: int) -> None:
    """Refuse token ids that a model has no embedding for; a GPU would stop with an assertion and no reason.

    Args:
        model: causal language model.
        largest_id: of the data it is to read.

    Raises:
        ValueError: there is no such embedding.
    """
    rows = base_language_model(model).get_input_embeddings().weight.shape[0]
    if largest_id >= rows:
        raise ValueError(
            f"the data holds token {largest_id}, but the model has embeddings for {rows} tokens: its tokenizer is not"
            " the model's"
        )


def check_positions(model: nn.Module, longest: int) -> None:
    """Refuse sequences that a model has no positions for: some models stop without a reason, others go on and err.

    Args:
        model: causal language model.
        longest: tokens of the longest sequence it is to read, prompt and response together.

    Raises:
        ValueError: the model was made for shorter ones.
    """
    limit = positions(base_language_model(model).config)
    if limit is not None and longest > limit:
        raise ValueError(
            f"sequences of up to {longest} tokens are to be read, but the model was made for {limit}"
            " (max_position_embeddings): allow fewer tokens, or extend its positions in its config"
        )


def response_mask(batch: TrajectoryBatch) -> Tensor:
    """True at response tokens, aligned to the start of the response, [B, T]."""
    lengths = batch.response_lengths
    longest = int(lengths.max()) if lengths.numel() else 0
    return torch.arange(longest, device=lengths.device)[None] < lengths[:, None]


@reads_weights
def response_hidden_states(model: nn.Module, batch: TrajectoryBatch, *, predicting: bool = True) -> Tensor:
    """Last hidden states of the response, row by row.

    Sequences are padded on the right and attention is causal, so padding cannot reach a response and no attention mask
    is passed: the fastest attention kernels apply.

    Args:
        model: causal language model, with or without adapters.
        batch: the sequences.
        predicting: states at the positions that predict each response token; otherwise at the tokens themselves.

    Returns:
        [N, H].
    """
    hidden = _hidden_states(model, batch.input_ids)
    positions = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)[None]
    shift = 1 if predicting else 0
    chosen = (positions >= batch.response_starts[:, None] - shift) & (positions < batch.lengths[:, None] - shift)
    return hidden[chosen]


def response_token_ids(batch: TrajectoryBatch) -> Tensor:
    """Response tokens, row by row, [N]."""
    positions = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)[None]
    return batch.input_ids[(positions >= batch.response_starts[:, None]) & (positions < batch.lengths[:, None])]


@reads_weights
def response_scores(
    model: nn.Module,
    batch: TrajectoryBatch,
    *,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    temperature: float = 1.0,
    with_token_logits: bool = False,
) -> ResponseScores:
    """Log-probabilities of the response tokens under a model.

    Args:
        model: causal language model, with or without adapters.
        batch: right-padded sequences.
        chunk_size: response tokens whose logits exist at one time.
        temperature: divides the logits; the one that sampled the responses, where ratios are taken.
        with_token_logits: also return the logit of each response token.

    Returns:
        Scores aligned to the start of the response, [B, T], float32 or wider.
    """
    head = output_head(model).at_temperature(temperature)
    hidden = response_hidden_states(model, batch)
    targets = response_token_ids(batch)
    mask = response_mask(batch)
    log_probs = token_log_probs(hidden, head, targets, chunk_size=chunk_size)
    logits = token_logits(hidden, head, targets[:, None])[:, 0] if with_token_logits else None
    return ResponseScores(unpack(log_probs, mask), mask, None if logits is None else unpack(logits, mask))


def unpack(values: Tensor, mask: Tensor) -> Tensor:
    """Lay [N] values out as [B, T] at the True positions of `mask`, zeros elsewhere; differentiable."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)


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
    chunks = zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(_chunk_log_probs, h, head, y, use_reentrant=False) for h, y in chunks])
    return torch.cat([_chunk_log_probs(h, head, y) for h, y in chunks])


def token_logits(hidden: Tensor, head: OutputHead, token_ids: Tensor) -> Tensor:
    """Logits of K tokens per position by dot products, float32 or wider, [N, K] for ids [N, K]."""
    rows = head.weight[token_ids]
    logits = (hidden.to(_wide(hidden.dtype))[:, None] * rows.to(_wide(rows.dtype))).sum(-1)
    return _finish(logits if head.bias is None else logits + head.bias[token_ids], head)


def _hidden_states(model: nn.Module, input_ids: Tensor) -> Tensor:
    language_model = base_language_model(model)
    backbone = getattr(language_model, language_model.base_model_prefix, None)
    if backbone is None:
        raise ValueError(f"{type(language_model).__name__} has no backbone named '{language_model.base_model_prefix}'")
    return backbone(input_ids=input_ids, use_cache=False).last_hidden_state


def _chunk_log_probs(hidden: Tensor, head: OutputHead, targets: Tensor) -> Tensor:
    logits = head_logits(hidden, head)
    return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)


def head_logits(hidden: Tensor, head: OutputHead) -> Tensor:
    """All logits, float32 or wider, [N, V]: for chunks without gradient, or under checkpointing."""
    logits = F.linear(hidden.to(head.weight.dtype), head.weight, head.bias)
    return _finish(logits.to(_wide(logits.dtype)), head)


def _finish(logits: Tensor, head: OutputHead) -> Tensor:
    """What the model does to a product with its head; nothing, without another pass over it, in most models."""
    if head.scale != 1:
        logits = logits * head.scale
    return logits if head.soft_cap is None else head.soft_cap * torch.tanh(logits / head.soft_cap)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
