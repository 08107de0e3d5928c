"""The likely tokens at each position besides the sampled one (arXiv:2604.13197, Sec. 3.2, App. C).

Letters: B sequences, T response positions, K candidates per position, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ipvrm_lightning.functional.masking import check_mask, last_positions, widen


@torch.no_grad()
def select_candidates(logits: Tensor, sampled_ids: Tensor, top_k: int) -> Tensor:
    """The K most likely tokens of the behaviour policy at each position, the sampled token always first.

    A sampled token that is among them changes places with the first; one that is missing is put in front and the least
    likely is dropped.

    Args:
        logits: of the behaviour policy, [B, T, V].
        sampled_ids: the tokens that were sampled, long, [B, T].
        top_k: K.

    Returns:
        Token ids, long, [B, T, K].

    Raises:
        ValueError: `top_k` is not within the vocabulary, or shapes do not match.
    """
    if logits.shape[:-1] != sampled_ids.shape:
        raise ValueError(f"logits have shape {tuple(logits.shape)}, sampled_ids {tuple(sampled_ids.shape)}")
    if not 1 <= top_k <= logits.shape[-1]:
        raise ValueError(f"top_k must lie between 1 and the {logits.shape[-1]} tokens of the vocabulary, found {top_k}")
    top = logits.topk(top_k, dim=-1).indices
    sampled = sampled_ids.unsqueeze(-1)
    found = top == sampled
    shifted = torch.cat((sampled, top[..., :-1]), dim=-1)
    swapped = torch.where(found, top[..., :1], top)
    swapped = torch.cat((sampled, swapped[..., 1:]), dim=-1)
    return torch.where(found.any(-1, keepdim=True), swapped, shifted)


@torch.no_grad()
def candidate_mask(log_probs: Tensor, mask: Tensor, *, min_probability: float) -> Tensor:
    """Which candidates count: those the behaviour policy holds more likely than P_min, and the sampled token.

    At the last response position (end of turn) and at padding none counts.

    Args:
        log_probs: log-probabilities under the behaviour policy, the sampled token first, [B, T, K].
        mask: True at response positions, bool, [B, T].
        min_probability: P_min; a candidate must exceed it.

    Returns:
        True where a candidate counts, bool, [B, T, K].

    Raises:
        ValueError: a probability outside [0, 1], or shapes that do not match.
    """
    if not 0 <= min_probability <= 1:
        raise ValueError(f"min_probability must lie in [0, 1], found {min_probability}")
    check_mask(mask, log_probs[..., 0])
    positions = (mask & ~last_positions(mask)).unsqueeze(-1)
    likely = widen(log_probs).exp() > min_probability
    likely[..., 0] = True
    return likely & positions
