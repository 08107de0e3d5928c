"""Token log-probabilities from hidden states of the response positions: no [T, V] logits, no prompt positions.

Letters: B sequences, L tokens, T tokens of the longest response, N response tokens of the batch, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from ipvrm_lightning.failures import library_errors
from ipvrm_lightning.models.output_head import (
    DEFAULT_CHUNK_SIZE,
    base_language_model,
    head_logits,
    output_head,
    token_log_probs,
    token_logits,
)
from ipvrm_lightning.models.packing import check_packing, packed_states, packs, runs
from ipvrm_lightning.models.preparation import uncompiled
from ipvrm_lightning.models.sharding import inside
from ipvrm_lightning.pretrained import longrope_switch, positions
from ipvrm_lightning.types import TrajectoryBatch

P = ParamSpec("P")
R = TypeVar("R")


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

    So is a model whose attention is not causal: each log-probability would have seen the token it is of. A model with
    `attn_implementation: varlen` is to read packed sequences each by itself besides.

    Raises:
        ValueError: the model's logits are not what its head gives, depend on later tokens, or sequences would not be
            kept apart.
    """
    language_model = base_language_model(model)
    head = output_head(model)
    if head.weight.device.type == "meta":
        return
    name = type(language_model).__name__
    input_ids = torch.arange(6, device=head.weight.device)[None] % head.weight.shape[0]
    backbone = _backbone(language_model)

    def own_logits() -> Tensor:
        return head_logits(backbone(input_ids=input_ids, use_cache=False).last_hidden_state[0], output_head(model))

    unable = f"{name} cannot run as its config describes it"
    if hasattr(model, "peft_config"):
        unable += " with these adapters: if it can without lora, try other names in lora.target_modules"
    with torch.no_grad(), uncompiled(language_model):
        if packs(language_model):
            with library_errors(f"{name} cannot have attn_implementation varlen"):
                inside(language_model, lambda: check_packing(language_model, backbone))
        was_training = language_model.training
        language_model.eval()
        try:
            with library_errors(unable):
                expected = language_model(input_ids=input_ids, use_cache=False).logits[0].float()
            _check_causal(language_model, input_ids, expected)
            with library_errors(unable):
                actual = inside(language_model, own_logits)
        finally:
            language_model.train(was_training)
    # logits of bfloat16 are rounded by 0.2 % each time that something is done to them, by 0.5 % in the model with most
    tolerance = 1e-3 if head.weight.dtype in (torch.float32, torch.float64) else 0.02
    difference = (expected - actual).abs().max().item()
    if not difference <= tolerance * max(1.0, expected.abs().max().item()):
        raise ValueError(
            f"{name} changes its logits after the output head in a way this package does not"
            f" know (difference {difference:.3g}); its log-probabilities would be wrong"
        )


def _check_causal(language_model: Any, input_ids: Tensor, logits: Tensor) -> None:
    """Refuse a model whose logits [L, V] of the first half of `input_ids` [1, L] change where the second half does."""
    half = input_ids.shape[1] // 2
    others = input_ids.clone()
    others[0, half:] += 1  # not one alone: it may be padding to the model, and unread
    found = language_model(input_ids=others % logits.shape[1], use_cache=False).logits[0].float()
    # nothing else is rounded otherwise, but by experts: which tokens one reads together depends on all of them
    full_precision = all(p.dtype in (torch.float32, torch.float64) for p in language_model.parameters())
    change = (found - logits)[:half].norm() / logits[:half].norm()
    if change > (1e-3 if full_precision else 0.05):  # not so where they are no numbers: another check's concern
        raise ValueError(
            f"{type(language_model).__name__}: a token changes what is said of earlier ones: it is no causal language"
            " model"
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
        ValueError: the model was made for shorter ones, or would not read each by itself.
    """
    config = base_language_model(model).config
    limit = positions(config)
    if limit is None or longest <= limit:
        return
    if limit == longrope_switch(config):
        raise ValueError(
            f"sequences of up to {longest} tokens are to be read, but beyond {limit} (longrope's"
            " original_max_position_embeddings) a long one would change the values of those beside it: allow at most"
            f" {limit} tokens"
        )
    raise ValueError(
        f"sequences of up to {longest} tokens are to be read, but the model was made for {limit}"
        " (max_position_embeddings): allow fewer tokens, or extend its positions in its config"
    )


def response_mask(batch: TrajectoryBatch) -> Tensor:
    """True at response tokens, aligned to the start of the response, [B, T]."""
    lengths = batch.response_lengths
    return torch.arange(batch.longest_response, device=lengths.device)[None] < lengths[:, None]


@reads_weights
def response_hidden_states(model: nn.Module, batch: TrajectoryBatch, *, predicting: bool = True) -> Tensor:
    """Last hidden states of the response, row by row.

    Sequences are padded on the right and attention is causal, so padding cannot reach a response and no attention mask
    is passed: the fastest attention kernels apply. Models with `attn_implementation: varlen` see no padding at all.

    Args:
        model: causal language model, with or without adapters.
        batch: the sequences.
        predicting: states at the positions that predict each response token; otherwise at the tokens themselves.

    Returns:
        [N, H].
    """
    language_model = base_language_model(model)
    backbone = _backbone(language_model)
    if packs(language_model):
        states = packed_states(backbone, batch.input_ids, batch.lengths, batch.tokens)
        rows = batch.lengths.cumsum(0) - batch.lengths
    else:
        states = backbone(input_ids=batch.input_ids, use_cache=False).last_hidden_state.flatten(0, 1)
        rows = _rows(batch, batch.input_ids.shape[1])
    starts = batch.response_starts - (1 if predicting else 0)
    return states.index_select(0, _places(batch, rows + starts))


def response_token_ids(batch: TrajectoryBatch) -> Tensor:
    """Response tokens, row by row, [N]."""
    rows = _rows(batch, batch.input_ids.shape[1])
    return batch.input_ids.flatten()[_places(batch, rows + batch.response_starts)]


def _rows(batch: TrajectoryBatch, width: int) -> Tensor:
    """Where each row of `width` places begins when the rows lie behind one another, [B]."""
    return torch.arange(len(batch.lengths), device=batch.lengths.device) * width


def _places(batch: TrajectoryBatch, first: Tensor) -> Tensor:
    """Places of the response tokens, row by row, [N], from that of each row's first one, [B]."""
    return runs(first, batch.response_lengths, batch.response_tokens)


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
    return ResponseScores(unpack(log_probs, batch), mask, None if logits is None else unpack(logits, batch))


def unpack(values: Tensor, batch: TrajectoryBatch) -> Tensor:
    """Lay values of the response tokens [N, ...] out as [B, T, ...], zeros at padding; differentiable."""
    shape = (len(batch.lengths), batch.longest_response, *values.shape[1:])
    places = _places(batch, _rows(batch, batch.longest_response))
    return values.new_zeros(shape).flatten(0, 1).index_copy(0, places, values).reshape(shape)


def pack(padded: Tensor, batch: TrajectoryBatch) -> Tensor:
    """What `unpack` laid out: values of the response tokens [N, ...] of [B, T, ...].

    Raises:
        ValueError: they are of another batch.
    """
    if (found := tuple(padded.shape[:2])) != (expected := (len(batch.lengths), batch.longest_response)):
        raise ValueError(f"values of {found} rows and response tokens for a batch of {expected}")
    return padded.flatten(0, 1)[_places(batch, _rows(batch, batch.longest_response))]


def _backbone(language_model: Any) -> Any:
    # the prefix of Llama 4 is that of its model for pictures: the text model of its own calls it `model`
    backbone = getattr(language_model, language_model.base_model_prefix, getattr(language_model, "model", None))
    if backbone is None:
        raise ValueError(f"{type(language_model).__name__} has no backbone named '{language_model.base_model_prefix}'")
    return backbone
