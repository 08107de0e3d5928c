"""Log-probabilities of sampled tokens and of the other likely tokens at each position, from one forward pass.

With hidden state h, sampled token y and candidate c: log p(c) = h.W[c] - h.W[y] + log p(y). A candidate therefore costs
one dot product, and only the candidates that count are computed: there is no [N, K, H] tensor and, with gradient, none
of [N, V] (arXiv:2604.13197, Sec. 3.2, App. C).

Letters: B sequences, T response positions, K candidates per position, N response tokens of the batch, H hidden size,
V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ipvrm_lightning.functional import candidate_mask, select_candidates
from ipvrm_lightning.models.logprobs import (
    pack,
    reads_weights,
    response_hidden_states,
    response_mask,
    response_token_ids,
    unpack,
)
from ipvrm_lightning.models.output_head import (
    DEFAULT_CHUNK_SIZE,
    OutputHead,
    head_logits,
    output_head,
    token_log_probs,
    token_logits,
)
from ipvrm_lightning.types import TrajectoryBatch


class Candidates(NamedTuple):
    """Which tokens are looked at in each position, the sampled one first.

    Args:
        ids: token ids; what does not count is arbitrary, long, [B, T, K].
        mask: True where a candidate counts; none does at the last response position, bool, [B, T, K].
    """

    ids: Tensor
    mask: Tensor


class BehaviorScores(NamedTuple):
    """What the behaviour policy says of its own responses.

    Args:
        candidates: tokens it holds likely.
        log_probs: of the sampled token (everywhere) and of the candidates that count, 0 elsewhere, [B, T, K].
        entropy: of its distribution at each position, in nats, 0 at padding, [B, T].
    """

    candidates: Candidates
    log_probs: Tensor
    entropy: Tensor


@torch.no_grad()
@reads_weights
def behavior_scores(
    model: nn.Module,
    batch: TrajectoryBatch,
    *,
    top_k: int,
    min_probability: float,
    temperature: float = 1.0,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
) -> BehaviorScores:
    """Choose candidates and take the behaviour policy's log-probabilities of them.

    The log-probabilities come by the same operations as those with a gradient (`candidate_log_probs`), so that the
    ratio of a policy to itself on the same batch is exactly 1.

    Args:
        model: the behaviour policy.
        batch: right-padded sequences.
        top_k: most likely tokens to choose from per position; 1 leaves the sampled token alone.
        min_probability: P_min; a candidate must exceed it.
        temperature: that sampled the responses.
        chunk_size: response tokens whose logits exist at one time.
    """
    head = output_head(model).at_temperature(temperature)
    hidden = response_hidden_states(model, batch)
    targets = response_token_ids(batch)
    mask = response_mask(batch)
    products = head.in_product_precision(hidden)
    parts = [
        _choose(head_logits(h, products), y, min(top_k, head.weight.shape[0]), min_probability)
        for h, y in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True)
    ]
    ids, likely, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
    counted = candidate_mask(unpack(likely, batch), mask, min_probability=min_probability)
    candidates = _compact(Candidates(unpack(ids, batch), counted))
    log_probs = _log_probs(hidden, head, targets, batch, candidates, chunk_size)
    return BehaviorScores(candidates, log_probs, unpack(entropy, batch))


@reads_weights
def candidate_log_probs(
    model: nn.Module,
    batch: TrajectoryBatch,
    candidates: Candidates,
    *,
    temperature: float = 1.0,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of sampled tokens and candidates under any model, with gradient where it is enabled.

    Args:
        model: policy, reward model or reference; its vocabulary must be that of the behaviour policy.
        batch: right-padded sequences.
        candidates: from `behavior_scores` on the same batch.
        temperature: that sampled the responses.
        chunk_size: response tokens whose logits exist at one time.
        with_entropy: also return the entropy of each position, with gradient.

    Returns:
        Log-probabilities, 0 where nothing counts, float32 or wider, [B, T, K]; and the entropy [B, T] or None.
    """
    head = output_head(model).at_temperature(temperature)
    hidden = response_hidden_states(model, batch)
    log_probs = _log_probs(hidden, head, response_token_ids(batch), batch, candidates, chunk_size)
    return log_probs, unpack(_entropies(hidden, head, chunk_size), batch) if with_entropy else None


def _log_probs(
    hidden: Tensor, head: OutputHead, targets: Tensor, batch: TrajectoryBatch, candidates: Candidates, chunk_size: int
) -> Tensor:
    sampled = token_log_probs(hidden, head, targets, chunk_size=chunk_size)
    ids, counted = pack(candidates.ids, batch), pack(candidates.mask, batch)
    result = torch.nn.functional.pad(sampled[:, None], (0, counted.shape[1] - 1))
    rows, others = counted[:, 1:].nonzero().unbind(1)  # waits for the device, once
    if len(rows):
        pairs = torch.stack([ids[rows, others + 1], targets[rows]], -1)
        candidate, own = token_logits(hidden[rows], head, pairs).unbind(-1)
        result = result.index_put((rows, others + 1), candidate - own + sampled[rows])
    return unpack(result, batch)


def _choose(logits: Tensor, targets: Tensor, top_k: int, min_probability: float) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [n, K] and log-probabilities [n, K] of the likely tokens, and the entropy [n], from logits [n, V].

    The vocabulary is searched only where a token besides the sampled one can exceed P_min: where the sampled one leaves
    it so much probability, and some token has it. Elsewhere it is the sampled token again, at minus infinity: the first
    counts whatever stands there (`candidate_mask`), the others do not.
    """
    peak = logits.amax(-1, keepdim=True)
    weights = (logits - peak).exp_()
    total = weights.sum(-1)
    normalizer = peak.squeeze(-1) + total.log()
    entropy = normalizer - weights.mul_(logits).sum(-1) / total  # vecdot rounds to bfloat16 under autocast
    own = logits.gather(-1, targets[:, None]).squeeze(-1) - normalizer
    ids = targets[:, None].repeat(1, top_k)
    likely = own.new_full(ids.shape, float("-inf"))
    if top_k > 1:
        open_rows = (own.exp() < 1 - min_probability + 1e-6) & (1 / total > min_probability - 1e-6)
        rows = open_rows.nonzero()[:, 0]
        found = select_candidates(logits[rows], targets[rows], top_k)
        ids[rows] = found
        likely[rows] = logits[rows].gather(-1, found) - normalizer[rows, None]
    return ids, likely, entropy


def _entropies(hidden: Tensor, head: OutputHead, chunk_size: int) -> Tensor:
    head = head.in_product_precision(hidden)

    def entropy(states: Tensor) -> Tensor:
        log_probs = head_logits(states, head).log_softmax(-1)
        return -(log_probs.exp() * log_probs).sum(-1)

    return torch.cat([checkpoint(entropy, chunk, use_reentrant=False) for chunk in hidden.split(chunk_size)])


def _compact(candidates: Candidates) -> Candidates:
    """Counted candidates first, and no wider than the position that has most."""
    order = (~candidates.mask[..., 1:]).to(torch.uint8).argsort(dim=-1, stable=True) + 1
    order = torch.nn.functional.pad(order, (1, 0))
    width = max(1, int(candidates.mask.sum(-1).max()))
    return Candidates(*(part.gather(-1, order)[..., :width] for part in candidates))
