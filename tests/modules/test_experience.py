"""What processes put together of a step is what one process alone would have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ipvrm_lightning import functional as F
from ipvrm_lightning.modules.experience import ScoredBatch, sampled_log_probs, set_advantages, stack_rows, totals
from ipvrm_lightning.modules.processes import Processes

from .experience_cases import GROUPS, LENGTHS, OUTCOMES, SHARES, scored, together


@pytest.mark.parametrize("normalization", F.NORMALIZATIONS)
@pytest.mark.parametrize("name", SHARES)
def test_advantages_are_those_of_all_rows_together(name: str, normalization: str) -> None:
    def compute(td: Tensor, outcomes: Tensor, groups: Tensor, mask: Tensor) -> F.Advantages:
        return F.distrl_advantages(td, outcomes, groups, mask, gae_coef=0.5, normalization=normalization)

    def work(parts: list[ScoredBatch], processes: Processes) -> list[ScoredBatch]:
        set_advantages(parts, processes, compute)
        return parts

    whole = scored(list(range(7)))
    assert whole.td_advantages is not None
    expected = compute(whole.td_advantages, OUTCOMES, GROUPS, whole.mask)
    for part in (part for parts in together(SHARES[name], work) for part in parts):
        assert part.advantages is not None and part.advantages.candidates.shape == part.behavior.log_probs.shape
        for found, values in zip(part.advantages, expected, strict=True):
            torch.testing.assert_close(found, values[part.batch.index, : part.mask.shape[1]])


@pytest.mark.parametrize("name", SHARES)
def test_divisors_and_log_probabilities_are_those_of_all_rows_together(name: str) -> None:
    def work(parts: list[ScoredBatch], processes: Processes) -> tuple[Any, ...]:
        tables = (sampled_log_probs(parts, 7, processes, sft=sft) for sft in (False, True))
        return (*totals(parts, processes), *tables)

    whole = scored(list(range(7)))
    counted = whole.behavior.candidates.mask
    assert whole.sft_log_probs is not None and 0 < int(counted.sum()) < counted.numel()
    weight = sum(whole.behavior.log_probs[row].exp()[counted[row]].sum() for row in range(7))
    expected = (LENGTHS.sum(), weight, counted.sum(), whole.behavior.log_probs[..., 0], whole.sft_log_probs[..., 0])
    for found in together(SHARES[name], work):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)


def test_advantages_are_as_wide_as_the_candidates_of_their_micro_batch() -> None:
    """Of which one keeps the sampled tokens alone: as many candidates count in it, and no more."""

    def compute(td: Tensor, outcomes: Tensor, groups: Tensor, mask: Tensor) -> F.Advantages:
        return F.distrl_advantages(td, outcomes, groups, mask, gae_coef=0.5, normalization="minibatch")

    def work(parts: list[ScoredBatch], processes: Processes) -> list[ScoredBatch]:
        td = parts[-1].td_advantages
        assert td is not None
        parts[-1] = replace(parts[-1], td_advantages=td[..., :1])
        set_advantages(parts, processes, compute)
        return parts

    whole = scored(list(range(7)))
    assert whole.td_advantages is not None
    expected = compute(whole.td_advantages, OUTCOMES, GROUPS, whole.mask)
    found = together(SHARES["first has more"], work)
    assert [[part.advantages.candidates.shape[-1] for part in parts] for parts in found] == [[2, 1], [1]]
    for part in (part for parts in found for part in parts):
        rows, (length, width) = part.batch.index, part.advantages.candidates.shape[1:]
        torch.testing.assert_close(part.advantages.tokens, expected.tokens[rows, :length])
        torch.testing.assert_close(part.advantages.candidates, expected.candidates[rows, :length, :width])


def test_rows_below_each_other() -> None:
    stacked = stack_rows([torch.ones(1, 2, dtype=torch.long), torch.full((2, 1), 2)], (3,))
    assert stacked.tolist() == [[1, 1, 0], [2, 0, 0], [2, 0, 0]]
    assert stack_rows([torch.ones(1), torch.zeros(2)], ()).tolist() == [1, 0, 0]
