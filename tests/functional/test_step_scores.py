from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ipvrm_lightning import functional as F

# Two steps of two and one tokens, a separator between them, an end-of-turn token behind.
RATIOS = torch.tensor([1.0, 2.0, 10.0, -4.0, 99.0])
STEPS = torch.tensor([0, 0, -1, 1, -1])
EXPECTED = {
    "step_sum": [3.0, -4.0],
    "step_mean": [1.5, -4.0],
    # The separator belongs to the prefix: 1 + 2 + 10 - 4 over four tokens.
    "prefix_sum": [3.0, 9.0],
    "prefix_mean": [1.5, 2.25],
}


def test_the_protocols_are_four() -> None:
    assert set(F.PROTOCOLS) == set(EXPECTED)


@pytest.mark.parametrize("protocol", EXPECTED)
def test_by_hand(protocol: str) -> None:
    found = F.step_scores(RATIOS, STEPS, protocol=protocol)
    assert isinstance(found, Tensor)
    assert found.tolist() == EXPECTED[protocol]
    scaled = F.step_scores(RATIOS, STEPS, protocol=protocol, beta=10.0)
    assert isinstance(scaled, Tensor)
    assert scaled.tolist() == [10 * score for score in EXPECTED[protocol]]


@pytest.mark.parametrize("protocol", EXPECTED)
def test_a_batch_is_its_rows_and_padding_is_never_touched(protocol: str) -> None:
    nan = float("nan")
    ratios = torch.tensor([[1.0, 2.0, 10.0, -4.0, nan, nan], [5.0, 6.0, 7.0, nan, nan, nan], [nan] * 6])
    steps = torch.tensor([[0, 0, -1, 1, -1, -1], [0, 1, 2, -1, -1, -1], [-1] * 6])
    found = F.step_scores(ratios, steps, protocol=protocol)
    assert [len(row) for row in found] == [2, 3, 0]
    assert found[0].tolist() == EXPECTED[protocol]
    alone = F.step_scores(ratios[1, :3], steps[1, :3], protocol=protocol)
    assert isinstance(alone, Tensor)
    assert found[1].tolist() == alone.tolist()


@pytest.mark.parametrize("protocol", EXPECTED)
def test_ids_of_another_type_and_rows_without_tokens(protocol: str) -> None:
    narrow = F.step_scores(RATIOS, STEPS.to(torch.int32), protocol=protocol)
    assert isinstance(narrow, Tensor) and narrow.tolist() == EXPECTED[protocol]
    for rows in (0, 2):
        empty = F.step_scores(torch.zeros(rows, 0), torch.zeros(rows, 0).long(), protocol=protocol)
        assert [scores.tolist() for scores in empty] == [[]] * rows
    assert F.step_scores(torch.zeros(0, 3), torch.zeros(0, 3).long(), protocol=protocol) == []


def test_scores_carry_no_gradient() -> None:
    found = F.step_scores(RATIOS.clone().requires_grad_(), STEPS, protocol="step_sum")
    assert isinstance(found, Tensor) and not found.requires_grad


def test_the_last_prefix_is_the_final_value() -> None:
    ratios = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2]).expand(3, 8)
    mask = torch.ones(3, 8).bool()
    values = F.prefix_values(ratios, mask, beta=10.0)
    sums = torch.stack(list(F.step_scores(ratios, steps, protocol="prefix_sum", beta=10.0)))
    torch.testing.assert_close(sums, values[:, [1, 4, 7]])
    means = torch.stack(list(F.step_scores(ratios, steps, protocol="prefix_mean", beta=10.0)))
    torch.testing.assert_close(means, F.normalized_values(ratios, mask, beta=10.0)[:, [1, 4, 7]])
    parts = torch.stack(list(F.step_scores(ratios, steps, protocol="step_sum", beta=10.0)))
    torch.testing.assert_close(parts.cumsum(-1), sums)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="row 1: step 1 has no token"):
        F.step_scores(torch.ones(2, 3), torch.tensor([[0, 1, 2], [0, 2, 2]]), protocol="step_sum")
    with pytest.raises(ValueError, match="protocol must be one of step_sum, prefix_sum, prefix_mean, step_mean"):
        F.step_scores(RATIOS, STEPS, protocol="sum")
    for ratios, steps in ((RATIOS, STEPS[:3]), (RATIOS[None, None], STEPS[None, None])):
        with pytest.raises(ValueError, match="must both be"):
            F.step_scores(ratios, steps, protocol="step_sum")
