from __future__ import annotations

from itertools import combinations

import pytest
import torch

from ipvrm_lightning import functional as F

SCORES = torch.tensor([0.1, 0.9, 0.5, 2.0, 2.0, 1.0])
OUTCOMES = torch.tensor([0, 1, 0, 1, 0, 1])
GROUPS = torch.tensor([4, 4, 4, 1, 1, 1])


def test_by_hand() -> None:
    # Problem 4: the highest is right. Problem 1: two tie, one of them right.
    assert F.best_of_n(SCORES, OUTCOMES, GROUPS) == pytest.approx((1 + 0.5) / 2)
    assert F.pass_at_1(OUTCOMES, GROUPS) == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert F.oracle(OUTCOMES, GROUPS) == 1
    assert F.oracle(torch.tensor([0, 0, 0, 1, 0, 1]), GROUPS) == 0.5


def test_groups_of_different_sizes_weigh_the_same() -> None:
    groups = torch.tensor([0, 0, 0, 0, 1, 1])
    assert F.pass_at_1(torch.tensor([1, 1, 1, 1, 0, 0]), groups) == pytest.approx(0.5)
    assert F.best_of_n(SCORES, torch.tensor([0, 0, 0, 1, 0, 0]), groups) == pytest.approx(0.5)


@pytest.mark.parametrize("n", range(1, 7))
def test_subsets_against_counting_them(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    scores = torch.randint(0, 4, (12,), generator=generator).double()
    outcomes = torch.randint(0, 2, (12,), generator=generator)
    groups = torch.arange(12) % 2
    picked, any_right = [], []
    for group in (0, 1):
        members = (groups == group).nonzero().squeeze(-1).tolist()
        chosen, passed = [], []
        for subset in combinations(members, n):
            top = max(scores[i].item() for i in subset)
            tied = [outcomes[i].item() for i in subset if scores[i].item() == top]
            chosen.append(sum(tied) / len(tied))
            passed.append(any(outcomes[i].item() for i in subset))
        picked.append(sum(chosen) / len(chosen))
        any_right.append(sum(passed) / len(passed))
    assert F.best_of_n(scores, outcomes, groups, n=n) == pytest.approx(sum(picked) / 2)
    assert F.oracle(outcomes, groups, n=n) == pytest.approx(sum(any_right) / 2)


@pytest.mark.parametrize("size", [3, 6, 7, 16, 64, 100, 129])
def test_nothing_is_below_0_or_above_1(size: int) -> None:
    scores, right, wrong = torch.randperm(size), torch.ones(size), torch.zeros(size)
    one = torch.zeros(size, dtype=torch.long)
    for n in range(1, size + 1):
        assert F.oracle(wrong, one, n=n) == 0 and F.oracle(right, one, n=n) == 1
        assert F.best_of_n(scores, wrong, one, n=n) == 0
        found = F.best_of_n(scores, right, one, n=n)
        assert found <= 1 and found == pytest.approx(1, abs=1e-12)


def test_one_of_one_is_pass_at_1_and_all_of_all_the_default() -> None:
    assert F.best_of_n(SCORES, OUTCOMES, GROUPS, n=1) == pytest.approx(F.pass_at_1(OUTCOMES, GROUPS))
    assert F.oracle(OUTCOMES, GROUPS, n=1) == pytest.approx(F.pass_at_1(OUTCOMES, GROUPS))
    assert F.best_of_n(SCORES, OUTCOMES, GROUPS, n=3) == pytest.approx(F.best_of_n(SCORES, OUTCOMES, GROUPS))


def test_a_float_comes_back_whatever_carries_a_gradient() -> None:
    scores = SCORES.clone().requires_grad_()
    votes = F.majority_vote(list("abcabc"), OUTCOMES, GROUPS)
    found = (F.best_of_n(scores, OUTCOMES, GROUPS), F.pass_at_1(OUTCOMES, GROUPS), F.oracle(OUTCOMES, GROUPS), votes)
    assert {type(value) for value in found} == {float}


def test_permuting_changes_nothing() -> None:
    order = torch.tensor([5, 2, 0, 3, 1, 4])
    moved = F.best_of_n(SCORES[order], OUTCOMES[order], GROUPS[order], n=2)
    assert moved == pytest.approx(F.best_of_n(SCORES, OUTCOMES, GROUPS, n=2))


def test_votes_by_hand() -> None:
    groups = torch.zeros(5).long()
    # "7" has two votes and is right.
    assert F.majority_vote(["7", "7", "8", None, "9"], torch.tensor([1, 1, 0, 0, 0]), groups) == 1
    # "7" and "8" tie at two, one of them right; None would have won with three but has no vote.
    seven = torch.zeros(7).long()
    answers = ["7", "7", "8", "8", None, None, None]
    assert F.majority_vote(answers, torch.tensor([1, 1, 0, 0, 0, 0, 0]), seven) == 0.5
    # Nobody has an answer: one is picked at random, and it is right once in two.
    assert F.majority_vote([None, None], torch.tensor([1, 0]), torch.zeros(2).long()) == 0.5
    # Two problems.
    assert F.majority_vote(["1", "2", "2"], torch.tensor([0, 1, 1]), torch.tensor([9, 3, 3])) == 0.5


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="n must lie between 1 and the smallest group's 3 solutions, found 4"):
        F.best_of_n(SCORES, OUTCOMES, GROUPS, n=4)
    with pytest.raises(ValueError, match="the smallest group's 2 solutions, found 3"):
        F.best_of_n(SCORES[1:], OUTCOMES[1:], GROUPS[1:], n=3)
    with pytest.raises(ValueError, match="group_ids has shape"):
        F.pass_at_1(OUTCOMES, GROUPS[:2])
    with pytest.raises(ValueError, match="n must lie between"):
        F.oracle(OUTCOMES, GROUPS, n=0)
    with pytest.raises(ValueError, match="solution 2: score is NaN"):
        F.best_of_n(torch.tensor([0, 0, float("nan"), 0, 0, 0]), OUTCOMES, GROUPS)
    with pytest.raises(ValueError, match="scores have shape"):
        F.best_of_n(SCORES[:2], OUTCOMES, GROUPS)
    with pytest.raises(ValueError, match="2 answers for 6 outcomes"):
        F.majority_vote(["1", "2"], OUTCOMES, GROUPS)
    with pytest.raises(ValueError, match="no solutions"):
        F.pass_at_1(OUTCOMES[:0], GROUPS[:0])
