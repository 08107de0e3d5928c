"""What an objective reads from a model: one number per response token, the same in training, testing and scoring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ipvrm_lightning import functional
from ipvrm_lightning.models.logprobs import (
    response_hidden_states,
    response_mask,
    response_scores,
    unpack,
)
from ipvrm_lightning.models.output_head import DEFAULT_CHUNK_SIZE
from ipvrm_lightning.objectives import Objective
from ipvrm_lightning.types import TrajectoryBatch


class TokenScores(NamedTuple):
    """Per-token scores of a batch, aligned to the start of the response.

    Args:
        scores: log-ratios, head values or endogenous rewards, 0 at padding, [B, T].
        mask: response tokens, [B, T].
    """

    scores: Tensor
    mask: Tensor


def token_scores(
    model: nn.Module,
    batch: TrajectoryBatch,
    objective: Objective,
    *,
    reference: Callable[[TrajectoryBatch], Tensor] | None = None,
    value_head: Any = None,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    temperature: float = 1.0,
) -> TokenScores:
    """What the objective reads, float32 or wider.

    Args:
        model: causal language model, with or without adapters.
        batch: right-padded sequences.
        objective: says which kind of score.
        reference: gives the reference's log-probabilities, [B, T]; for log-ratios.
        value_head: linear layer on the hidden states; for head values.
        chunk_size: response tokens whose logits exist at one time.
        temperature: divides the logits; the reference is to use the same.
    """
    if objective.score_source == "value_head":
        mask = response_mask(batch)
        hidden = response_hidden_states(model, batch, predicting=False).float()
        with torch.autocast(hidden.device.type, enabled=False):  # would round the values to bfloat16
            values = value_head(hidden).squeeze(-1)
        return TokenScores(unpack(values, batch), mask)
    if objective.score_source == "endogenous":
        own = response_scores(model, batch, chunk_size=chunk_size, with_token_logits=True)
        assert own.token_logits is not None
        rewards = functional.endo_rewards(own.token_logits, own.log_probs, own.mask, discount=objective.discount)
        return TokenScores(rewards, own.mask)
    assert reference is not None
    scores = response_scores(model, batch, chunk_size=chunk_size, temperature=temperature)
    return TokenScores(scores.log_probs - reference(batch), scores.mask)


def steps_by_protocol(scores: Tensor, batch: TrajectoryBatch, beta: float) -> dict[str, list[list[float]]]:
    """Scores of every row's steps, by protocol.

    Args:
        scores: per-token scores, [B, T].
        batch: with `step_ids`.
        beta: scale of the scores.
    """
    if batch.step_ids is None:
        raise ValueError("the batch does not say which step its tokens lie in")
    scores, step_ids = scores.cpu(), batch.step_ids.cpu()  # once, not row by row
    return {
        protocol: [
            row.double().tolist() for row in functional.step_scores(scores, step_ids, protocol=protocol, beta=beta)
        ]
        for protocol in functional.PROTOCOLS
    }
