"""The policy's loss on a micro-batch, both branches from one forward pass; and how far its updates moved the policy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ipvrm_lightning import functional
from ipvrm_lightning.data.dataset import TrajectoryDataset, collate
from ipvrm_lightning.data.planning import batches_for_processes, rows_of
from ipvrm_lightning.models.candidates import candidate_log_probs
from ipvrm_lightning.models.logprobs import response_scores
from ipvrm_lightning.modules.distrl_settings import PolicyUpdate
from ipvrm_lightning.modules.experience import ScoredBatch, Totals, required
from ipvrm_lightning.modules.processes import Processes
from ipvrm_lightning.types import TrajectoryBatch

#: Responses, from long to short, on which the distance is measured, at least.
_SAMPLE = 16


def policy_loss(
    model: nn.Module, part: ScoredBatch, divisors: Totals, update: PolicyUpdate, *, temperature: float, chunk_size: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """A micro-batch's share of the mini-batch's loss (Eqs. 11, 12, 14): the shares of all micro-batches add up to it.

    Args:
        model: the policy.
        part: a micro-batch with its advantages.
        divisors: of the mini-batch.
        update: coefficients and clips.
        temperature: that sampled the responses.
        chunk_size: response tokens whose logits exist at one time.

    Returns:
        The share, with gradient, and the shares of what is logged.
    """
    behavior = part.behavior
    assert part.advantages is not None
    log_probs, entropy = candidate_log_probs(
        model,
        part.batch,
        behavior.candidates,
        temperature=temperature,
        chunk_size=chunk_size,
        with_entropy=bool(update.entropy_coef),
    )
    loss = functional.distrl_loss(
        log_probs,
        behavior.log_probs,
        part.advantages.tokens,
        part.advantages.candidates,
        part.mask,
        behavior.candidates.mask,
        clip_low=update.clip_low,
        clip_high=update.clip_high,
        candidate_clip=update.candidate_clip,
        dual_clip=update.dual_clip,
    )
    tokens = loss.token_count / divisors.tokens
    weight = loss.candidate_weight / divisors.candidate_weight.clamp_min(torch.finfo(torch.float32).tiny)
    candidates = behavior.candidates.mask.sum() / divisors.candidates.clamp_min(1)
    values = {
        "loss/token": tokens * loss.token,
        "loss/candidate": weight * loss.candidate,
        "clipped/token": tokens * loss.token_clip_fraction,
        "clipped/candidate": candidates * loss.candidate_clip_fraction,
    }
    total = values["loss/token"] + update.distribution_coef * values["loss/candidate"]
    if update.uses_kl:
        reference, counted = required(part.sft_log_probs), behavior.candidates.mask
        sampled = functional.low_variance_kl(log_probs[..., 0], reference[..., 0])
        others = functional.candidate_kl(log_probs, reference, counted)
        values["kl/token"] = tokens * functional.masked_mean(sampled, part.mask)
        values["kl/candidate"] = tokens * functional.masked_mean(others, part.mask)
        total = total + update.kl_coef * values["kl/token"] + update.candidate_kl_coef * values["kl/candidate"]
    if entropy is not None:
        total = total - update.entropy_coef * tokens * functional.masked_mean(entropy, part.mask)
    return total, {name: value.detach() for name, value in values.items()}


@torch.no_grad()
def distance_moved(
    model: nn.Module,
    dataset: TrajectoryDataset,
    before: Tensor,
    processes: Processes,
    to_device: Callable[[TrajectoryBatch], TrajectoryBatch],
    update: PolicyUpdate,
    *,
    temperature: float,
    chunk_size: int,
) -> Tensor:
    """KL(policy that sampled || updated policy), nats per token, on some of the step's responses.

    Within a step's loss the two are equal until the first update, and the last update is never looked at.

    Args:
        model: the updated policy.
        dataset: responses of the step.
        before: log-probabilities of their tokens under the policy that sampled them, [R, T].
        processes: of the run.
        to_device: moves a batch.
        update: its `max_tokens` bounds a forward pass.
        temperature: that sampled the responses.
        chunk_size: response tokens whose logits exist at one time.
    """
    rows = sorted(range(len(dataset)), key=lambda row: -int(dataset.lengths[row]))
    rows = rows[:: max(1, len(rows) // max(_SAMPLE, processes.count))]
    batches = batches_for_processes([[row] for row in rows], dataset.lengths, update.max_tokens, processes.count)
    sums = before.new_zeros(2)
    for items in batches[processes.rank :: processes.count]:
        batch = to_device(collate(dataset, rows_of(items)))
        new = response_scores(model, batch, temperature=temperature, chunk_size=chunk_size)
        old = before[batch.index, : new.mask.shape[1]]
        sums += torch.stack([functional.low_variance_kl(old, new.log_probs)[new.mask].sum(), new.mask.sum()])
    kl, tokens = processes.total(sums)
    return kl / tokens
