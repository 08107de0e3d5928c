"""Choosing among several solutions of a problem: by score, by vote, by luck, and by an oracle.

Letters: N solutions in all, G solutions of one problem, n solutions to choose from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import comb

import torch
from torch import Tensor

from ipvrm_lightning.functional.masking import check_groups, check_outcomes


@torch.no_grad()
def best_of_n(scores: Tensor, outcomes: Tensor, group_ids: Tensor, *, n: int | None = None) -> float:
    """Mean over problems of the accuracy of picking the solution with the highest score.

    With `n` it is the expectation over all subsets of n of a problem's G solutions, without drawing any: the best of a
    subset lies among the m solutions that share a score above L others with probability
    [C(L + m, n) - C(L, n)] / C(G, n), and is right with their mean outcome (ties are broken at random).

    Args:
        scores: the higher the better, finite, [N].
        outcomes: 1 right, 0 wrong, [N].
        group_ids: equal for solutions of the same problem, integer, [N].
        n: how many solutions to choose from; None for all of a problem's.

    Returns:
        Expected accuracy in [0, 1].

    Raises:
        ValueError: no solutions, a score that is NaN, n larger than the smallest group, shapes that do not match.
    """
    right, inverse, sizes = _groups(outcomes, group_ids, n)
    if scores.shape != right.shape:
        raise ValueError(f"scores have shape {tuple(scores.shape)}, outcomes {tuple(right.shape)}")
    values = scores.to(torch.float64)
    if bool(values.isnan().any()):
        raise ValueError(f"solution {int(values.isnan().nonzero()[0])}: score is NaN")
    order = torch.argsort(values, stable=True)
    order = order[torch.argsort(inverse[order], stable=True)]
    owners, values, right = inverse[order], values[order], right[order]
    new_block = torch.ones_like(owners, dtype=torch.bool)
    new_block[1:] = (owners[1:] != owners[:-1]) | (values[1:] != values[:-1])
    blocks = new_block.cumsum(0) - 1
    count = torch.bincount(blocks)
    mean = torch.zeros(len(count), dtype=torch.float64, device=right.device).index_add_(0, blocks, right) / count
    owner = owners[new_block]
    lower = new_block.nonzero().squeeze(-1) - (sizes.cumsum(0) - sizes)[owner]
    drawn = sizes[owner] if n is None else torch.full_like(lower, n)
    share = _share_of_subsets(drawn, sizes[owner], among=lower + count, but_not=lower)
    # shares add up to 1 for each problem but for rounding
    return min(1.0, float((share * mean).sum() / len(sizes)))


@torch.no_grad()
def pass_at_1(outcomes: Tensor, group_ids: Tensor) -> float:
    """Mean over problems of the share of right solutions: the accuracy of picking at random.

    Args:
        outcomes: 1 right, 0 wrong, [N].
        group_ids: equal for solutions of the same problem, integer, [N].

    Raises:
        ValueError: no solutions, outcomes that are not 0 or 1, shapes that do not match.
    """
    right, inverse, sizes = _groups(outcomes, group_ids, None)
    return float((_totals(right, inverse, len(sizes)) / sizes).mean())


@torch.no_grad()
def oracle(outcomes: Tensor, group_ids: Tensor, *, n: int | None = None) -> float:
    """Mean over problems of whether any solution is right: the accuracy of a perfect chooser.

    With `n` it is pass@n, the expectation over all subsets: 1 - C(wrong, n) / C(G, n).

    Args:
        outcomes: 1 right, 0 wrong, [N].
        group_ids: equal for solutions of the same problem, integer, [N].
        n: how many solutions to choose from; None for all of a problem's.

    Raises:
        ValueError: no solutions, n larger than the smallest group, shapes that do not match.
    """
    right, inverse, sizes = _groups(outcomes, group_ids, n)
    wrong = sizes - _totals(right, inverse, len(sizes))
    drawn = sizes if n is None else torch.full_like(sizes, n)
    return float(_share_of_subsets(drawn, sizes, among=sizes, but_not=wrong.long()).mean())


@torch.no_grad()
def majority_vote(answers: Sequence[str | None], outcomes: Tensor, group_ids: Tensor) -> float:
    """Mean over problems of the accuracy of the answer most solutions give.

    Answers that tie for the lead are picked at random, so the expectation counts. None (no answer found) has no vote;
    where no solution of a problem has an answer, one of them is picked at random.

    Args:
        answers: final answer of each solution, equal strings for equal answers, None where there is none.
        outcomes: 1 right, 0 wrong, [N].
        group_ids: equal for solutions of the same problem, integer, [N].

    Raises:
        ValueError: no solutions, or lengths that do not match.
    """
    right, inverse, sizes = _groups(outcomes, group_ids, None)
    if len(answers) != len(right):
        raise ValueError(f"{len(answers)} answers for {len(right)} outcomes")
    votes: list[dict[str | None, list[float]]] = [defaultdict(list) for _ in sizes.tolist()]
    for answer, outcome, group in zip(answers, right.tolist(), inverse.tolist(), strict=True):
        votes[group][answer].append(outcome)
    return sum(map(_elect, votes)) / len(votes)


def _elect(votes: dict[str | None, list[float]]) -> float:
    voters = {answer: outcomes for answer, outcomes in votes.items() if answer is not None} or votes
    lead = max(map(len, voters.values()))
    leaders = [sum(outcomes) / lead for outcomes in voters.values() if len(outcomes) == lead]
    return sum(leaders) / len(leaders)


def _groups(outcomes: Tensor, group_ids: Tensor, n: int | None) -> tuple[Tensor, Tensor, Tensor]:
    right = check_outcomes(outcomes).to(torch.float64)
    check_groups(group_ids, len(right))
    if not len(right):
        raise ValueError("no solutions to choose from")
    _, inverse, sizes = torch.unique(group_ids, return_inverse=True, return_counts=True)
    if n is not None and not 1 <= n <= int(sizes.min()):
        raise ValueError(f"n must lie between 1 and the smallest group's {int(sizes.min())} solutions, found {n}")
    return right, inverse, sizes


def _totals(values: Tensor, inverse: Tensor, groups: int) -> Tensor:
    return values.new_zeros(groups).index_add_(0, inverse, values)


def _share_of_subsets(drawn: Tensor, size: Tensor, *, among: Tensor, but_not: Tensor) -> Tensor:
    """[C(among, drawn) - C(but_not, drawn)] / C(size, drawn): subsets of one part that are not of another."""
    rows = zip(drawn.tolist(), size.tolist(), among.tolist(), but_not.tolist(), strict=True)
    # whole numbers, so that pass@1 is the mean outcome to the last bit
    shares = [(comb(most, n) - comb(least, n)) / comb(whole, n) for n, whole, most, least in rows]
    return torch.tensor(shares, dtype=torch.float64, device=size.device)
