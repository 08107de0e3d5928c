from __future__ import annotations

import math

import pytest
import torch

from ipvrm_lightning import functional as F

LOGITS = torch.tensor([[[0.0, 4.0, 3.0, 2.0, 1.0]] * 4])


def test_the_sampled_token_is_swapped_or_put_in_front() -> None:
    # By likelihood 1, 2, 3, 4, 0.
    sampled = torch.tensor([[1, 3, 4, 0]])
    assert F.select_candidates(LOGITS, sampled, 3).tolist() == [[[1, 2, 3], [3, 2, 1], [4, 1, 2], [0, 1, 2]]]


def test_one_candidate_is_the_sampled_token() -> None:
    sampled = torch.tensor([[1, 3, 4, 0]])
    assert F.select_candidates(LOGITS, sampled, 1).squeeze(-1).tolist() == sampled.tolist()


def test_as_many_candidates_as_tokens() -> None:
    sampled = torch.tensor([[1, 3, 4, 0]])
    chosen = F.select_candidates(LOGITS, sampled, 5)
    assert torch.equal(chosen[..., 0], sampled)
    assert chosen.sort(-1).values.tolist() == [[[0, 1, 2, 3, 4]] * 4]


def test_candidates_are_distinct_and_the_rest_are_the_likeliest() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 9, 20, generator=generator)
    sampled = torch.randint(20, (8, 9), generator=generator)
    chosen = F.select_candidates(logits, sampled, 6)
    assert torch.equal(chosen[..., 0], sampled)
    assert all(len(set(row)) == 6 for row in chosen.flatten(0, 1).tolist())
    likeliest = logits.topk(6).indices
    for found, best, own in zip(
        chosen.flatten(0, 1).tolist(), likeliest.flatten(0, 1).tolist(), sampled.flatten().tolist(), strict=True
    ):
        assert set(found) == (set(best) if own in best else {own, *best[:5]})


def test_mask_by_hand() -> None:
    log_probs = torch.log(torch.tensor([[[0.01, 0.5, 0.1], [0.2, 0.11, 0.09], [0.9, 0.9, 0.9], [0.9, 0.9, 0.9]]]))
    mask = torch.tensor([[True, True, True, False]])
    counted = F.candidate_mask(log_probs, mask, min_probability=0.1 + 1e-6)
    # The sampled one counts however unlikely; the last response position and padding never do.
    assert counted.tolist() == [[[True, True, False], [True, True, False], [False] * 3, [False] * 3]]


def test_a_candidate_must_exceed_the_least_probability() -> None:
    log_probs = torch.tensor([[[math.log(0.5)] * 2] * 2])
    counted = F.candidate_mask(log_probs, torch.tensor([[True, True]]), min_probability=0.5)
    assert counted[0, 0].tolist() == [True, False]


def test_the_sampled_token_counts_alone() -> None:
    mask = torch.tensor([[True, True]])
    only = F.candidate_mask(torch.full((1, 2, 1), -9.0), mask, min_probability=0.1)
    assert only.tolist() == [[[True], [False]]]
    none_else = F.candidate_mask(torch.zeros(1, 2, 2), mask, min_probability=1.0)
    assert none_else[0, 0].tolist() == [True, False]


def test_what_is_refused() -> None:
    for top_k in (0, 6):
        with pytest.raises(ValueError, match=f"top_k must lie between 1 and the 5 tokens .*found {top_k}"):
            F.select_candidates(LOGITS, torch.zeros(1, 4).long(), top_k)
    with pytest.raises(ValueError, match="sampled_ids"):
        F.select_candidates(LOGITS, torch.zeros(1, 3).long(), 2)
    with pytest.raises(ValueError, match="min_probability"):
        F.candidate_mask(torch.zeros(1, 2, 3), torch.ones(1, 2).bool(), min_probability=1.5)
    with pytest.raises(ValueError, match="boolean"):
        F.candidate_mask(torch.zeros(1, 2, 3), torch.ones(1, 2), min_probability=0.5)
