"""What a reward model says of a step, and its shares of a loss, against the whole step in one piece."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ipvrm_lightning import functional as F
from ipvrm_lightning.data.dataset import TrajectoryDataset, collate
from ipvrm_lightning.models.candidates import BehaviorScores, Candidates
from ipvrm_lightning.modules.distrl_metrics import Values
from ipvrm_lightning.modules.distrl_settings import RewardModel
from ipvrm_lightning.modules.experience import ScoredBatch
from ipvrm_lightning.modules.online_reward import OnlineReward
from ipvrm_lightning.modules.processes import Processes
from ipvrm_lightning.modules.updates import LossOf
from ipvrm_lightning.objectives import DPORM, IPVRM, ImplicitPRM, Objective
from ipvrm_lightning.types import Example, TrajectoryBatch

from .conftest import tiny
from .experience_cases import GROUPS, LENGTHS, OUTCOMES, SHARES, scored, together

#: Two mixed prompts, and one that is always right.
DATASET = TrajectoryDataset(
    Example([1, *range(10 * row, 10 * row + length)], 1, group=str(group), outcome=int(outcome))
    for row, (length, group, outcome) in enumerate(
        zip([*LENGTHS.tolist(), 2, 3], [*GROUPS.tolist(), 2, 2], [*OUTCOMES.tolist(), 1, 1], strict=True)
    )
)
PAIRS = {(0, 1), (2, 1), (3, 1), (4, 5), (6, 5)}


def online(objective: Objective, *, max_tokens: int = 16, model: Any = None, **options: Any) -> OnlineReward:
    balances = dict.fromkeys(("adaptive_difficulty_boundary", "dynamic_loss_weighting"), objective.balanced)
    settings = RewardModel(objective=objective, **{**balances, **options})
    roles: Any = SimpleNamespace(use=lambda role: nullcontext({"reward": model}[role]))
    return OnlineReward(roles, settings, temperature=0.7, chunk_size=4, max_tokens=max_tokens)


def plans(reward: OnlineReward, processes: int) -> list[list[list[TrajectoryBatch]]]:
    """Micro-batches of each process of each mini-batch."""
    found = [reward.plan(DATASET, Processes(rank, processes, torch.device("cpu")), seed=0) for rank in range(processes)]
    assert len({len(plan) for plan in found}) == 1
    return [list(parts) for parts in zip(*found, strict=True)]


@pytest.mark.parametrize("objective", [IPVRM(beta=2.0), ImplicitPRM(beta=2.0)], ids=["mean", "sum"])
@pytest.mark.parametrize("name", SHARES)
def test_a_response_is_told_by_its_last_value(name: str, objective: Objective) -> None:
    def work(parts: list[ScoredBatch], processes: Processes) -> dict[str, Tensor]:
        return online(objective).metrics(parts, TrajectoryDataset([DATASET[row] for row in range(7)]), processes)

    td = scored(list(range(7))).td_advantages
    assert td is not None
    # an advantage is beta times a log-ratio: the trained quantity is the mean or the sum of them
    values = np.array([float(td[row, :length, 0].sum()) for row, length in enumerate(LENGTHS.tolist())])
    values = values / LENGTHS.numpy() if isinstance(objective, IPVRM) else values
    for found in together(SHARES[name], work):
        assert float(found["reward/score"]) == pytest.approx(values.mean(), abs=1e-6)
        assert float(found["reward/accuracy"]) == pytest.approx(np.mean((values > 0) == (OUTCOMES.numpy() == 1)))
        assert float(found["reward/correlation"]) == pytest.approx(np.corrcoef(values, OUTCOMES)[0, 1], abs=1e-6)


def full_log_probs(model: nn.Module, row: int) -> Tensor:
    """Of all tokens at the response positions of a row of `DATASET`, at the temperature that sampled, [T, V]."""
    with torch.no_grad():
        return (model(input_ids=torch.tensor([DATASET[row].input_ids])).logits[0, :-1] / 0.7).log_softmax(-1)


@pytest.mark.parametrize("reference", ["behavior", "sft"])
def test_advantages_are_log_ratios_to_the_reference_that_is_asked_for(reference: Any) -> None:
    """Of sampled tokens and of the candidates that count, on full logits; without a gradient."""
    rows, model = [0, 1, 4], tiny().build_model()
    part = scored(rows)
    counted = part.behavior.candidates.mask
    part.batch = collate(DATASET, rows)
    ids = torch.randint(97, counted.shape, generator=torch.Generator().manual_seed(1))
    ids[..., 0] = part.batch.input_ids[:, 1 : 1 + ids.shape[1]]
    # the sampled token is scored at the last position too, where no candidate counts
    looked_at = counted.clone()
    looked_at[..., 0] = part.mask
    known = {name: torch.where(looked_at, torch.randn(ids.shape), 0.0) for name in ("behavior", "sft")}
    part.behavior = BehaviorScores(Candidates(ids, counted), known["behavior"], part.behavior.entropy)
    part.sft_log_probs = known["sft"]
    online(IPVRM(beta=2.0), reference=reference, model=model).score(part)
    assert part.td_advantages is not None and not part.td_advantages.requires_grad
    expected = torch.zeros(ids.shape)
    for place, row in enumerate(rows):
        own = full_log_probs(model, row)
        own = own.gather(1, ids[place, : len(own)])
        expected[place, : len(own)] = 2 * (own - known[reference][place, : len(own)])
    torch.testing.assert_close(part.td_advantages, torch.where(looked_at, expected, 0.0), rtol=0, atol=2e-5)


@pytest.mark.parametrize("reference", ["behavior", "sft"])
def test_an_update_says_what_the_model_said_before_it(reference: Any) -> None:
    """Though it is read again in a second pass, when it has learned."""
    model, dataset = tiny().build_model(), TrajectoryDataset([DATASET[row] for row in range(7)])
    parts = [scored([1, 3, 5, 6]), scored([0, 2, 4])]
    values = []
    for row in range(7):
        (part,) = (one for one in parts if row in one.batch.index)
        given = part.behavior.log_probs if reference == "behavior" else part.sft_log_probs
        assert given is not None
        own = full_log_probs(model, row)
        own = own.gather(1, torch.tensor(DATASET[row].input_ids[1:])[:, None])[:, 0]
        values.append(2 * (own - given[part.batch.index.tolist().index(row), : len(own), 0]).mean())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    def step(batches: Sequence[TrajectoryBatch], loss_of: LossOf) -> tuple[Tensor, Tensor]:
        loss = torch.stack([loss_of(model, batch)[0] for batch in batches]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        taken.append(loss.detach())
        return taken[-1], torch.tensor(float(len(taken)))

    taken: list[Tensor] = []
    alone = Processes(0, 1, torch.device("cpu"))
    found = online(IPVRM(beta=2.0), reference=reference, epochs=2).update(dataset, parts, alone, step, seed=0)
    assert float(found["reward/score"]) == pytest.approx(float(torch.stack(values).mean()), abs=1e-5)
    assert len(taken) == 2 and taken[0] != taken[1]
    assert float(found["reward/loss"]) == pytest.approx(float(sum(taken)) / 2)
    assert float(found["reward/gradient_norm"]) == 1.5


@pytest.mark.parametrize(
    ("normalize", "weights"),
    [
        # three of four are right, two of three, and both of two
        (True, [2 / 3, 2, 2 / 3, 2 / 3, 3 / 4, 3 / 2, 3 / 4, 1, 1]),
        (False, [1 / 4, 3 / 4, 1 / 4, 1 / 4, 1 / 3, 2 / 3, 1 / 3, 0, 0]),
    ],
)
def test_weights_of_outcomes_are_rescaled_or_those_of_the_paper(normalize: bool, weights: list[float]) -> None:
    """Of the loss of each response, which is its own micro-batch."""
    model, alone = tiny().build_model(), Processes(0, 1, torch.device("cpu"))
    batches = [collate(DATASET, [row]) for row in range(9)]
    reference = torch.zeros(9, 7)
    found = []
    for options in ({"normalize_outcome_weights": normalize}, {"dynamic_loss_weighting": False}):
        reward = online(IPVRM(beta=2.0), **options)
        loss_of = reward.loss_over(batches, DATASET, reference, alone)
        found.append([float(loss_of(model, batch)[0].detach()) for batch in batches])
    weighted, plain = found
    assert weighted == pytest.approx([weight * loss for weight, loss in zip(weights, plain, strict=True)])
    assert min(plain) > 0


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_response_is_learned_from_once(processes: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # there are as many mini-batches as were asked for
        mini_batches = plans(online(IPVRM(), mini_batches=2), processes)
    assert len(mini_batches) == 2
    for mini_batch in mini_batches:
        rows = sorted(row for share in mini_batch for batch in share for row in batch.index.tolist())
        groups = {int(DATASET.group_ids[row]) % 2 for row in rows}
        assert len(groups) == 1 and len({len(share) for share in mini_batch}) == 1
        assert rows == [row for row in range(9) if int(DATASET.group_ids[row]) % 2 in groups]


@pytest.mark.parametrize("objective", [IPVRM(), DPORM()])
def test_fewer_mini_batches_than_are_asked_for_are_warned_of(objective: Objective) -> None:
    """Of 4, 3 and 2 responses."""
    with pytest.warns(UserWarning, match=r"2 mini-batches in place of 3: .* fewer responses than there are processes"):
        plans(online(objective, mini_batches=3), 3)


@pytest.mark.parametrize(
    ("processes", "expected"),
    [
        (1, [{(0, 1), (2, 1), (3, 1)}, {(4, 5), (6, 5)}]),  # the third prompt has no pair
        (2, [{(0, 1), (2, 1), (3, 1)}, {(4, 5), (6, 5)}]),
        (3, [{(0, 1), (2, 1), (3, 1)}, {(4, 5), (6, 5)}]),  # of two pairs, each three times
        (7, [PAIRS]),  # one mini-batch, as two would not have seven responses each
    ],
)
def test_every_pair_of_a_mini_batch_is_learned_from_equally_often(
    processes: int, expected: list[set[tuple[int, int]]]
) -> None:
    found = []
    for mini_batch in plans(online(DPORM(), mini_batches=3), processes):
        assert len({len(share) for share in mini_batch}) == 1
        pairs: Counter[tuple[int, ...]] = Counter()
        for batch in (batch for share in mini_batch for batch in share):
            assert batch.pairs is not None and len(batch.pairs)
            pairs.update(tuple(batch.index[pair].tolist()) for pair in batch.pairs)
        assert set(pairs.values()) == {1 if len(pairs) >= processes else processes}
        found.append(set(pairs))
    assert found == expected


@pytest.mark.parametrize("objective", [IPVRM(), IPVRM(reduction="token"), ImplicitPRM(), DPORM(beta=2.0)])
@pytest.mark.parametrize("max_tokens", [1, 16, 1000])
def test_shares_add_up_to_the_loss_of_the_whole_step(objective: Objective, max_tokens: int) -> None:
    """On full logits at the temperature that sampled, with weights and margins from the accuracy of each prompt."""
    model = tiny().build_model()
    ratios, mask = torch.zeros(9, 7), torch.zeros(9, 7, dtype=torch.bool)
    reference = 0.1 * torch.randn(9, 7, generator=torch.Generator().manual_seed(0)) - 5
    with torch.no_grad():
        for row in range(9):
            ids = torch.tensor([DATASET[row].input_ids])
            log_probs = (model(input_ids=ids).logits[0, :-1] / 0.7).log_softmax(-1).gather(-1, ids[0, 1:, None])
            mask[row, : len(log_probs)] = True
            ratios[row, : len(log_probs)] = log_probs[:, 0]
    ratios = torch.where(mask, ratios - reference, 0.0)
    outcomes = torch.from_numpy(DATASET.outcomes).float()
    if isinstance(objective, IPVRM):
        accuracy = torch.tensor([3 / 4] * 4 + [2 / 3] * 3 + [1 - 1e-6] * 2)
        weights = torch.tensor([2 / 3, 2.0, 2 / 3, 2 / 3, 0.75, 1.5, 0.75, 1.0, 1.0])
        margins = 5 - (2 * outcomes - 1) * accuracy.logit()
        settings = {"beta": 10.0, "margin": margins, "outcome_weights": weights, "reduction": objective.reduction}
        expected = F.ipvrm_loss(ratios, outcomes, mask, **settings)  # type: ignore[arg-type]
        values = F.normalized_values(ratios, mask, beta=10.0)
    elif isinstance(objective, DPORM):
        right, wrong = (list(side) for side in zip(*PAIRS, strict=True))
        expected = F.pairwise_loss(ratios[right], mask[right], ratios[wrong], mask[wrong], beta=2.0)
        values = F.prefix_values(ratios, mask, beta=2.0)
    else:
        expected = F.implicit_prm_loss(ratios, outcomes, mask, beta=0.05)
        values = F.prefix_values(ratios, mask, beta=0.05)

    alone = Processes(0, 1, torch.device("cpu"))
    reward, taken = online(objective, max_tokens=max_tokens), Values(9, torch.device("cpu"))
    (mini_batch,) = reward.plan(DATASET, alone, seed=0)
    loss_of = reward.loss_over(mini_batch, DATASET, reference, alone, taken)
    shares = [loss_of(model, batch) for batch in mini_batch]
    torch.testing.assert_close(torch.stack([loss for loss, _ in shares]).sum().detach(), expected)
    assert all(loss.requires_grad for loss, _ in shares)
    learned = list(range(7 if objective.pairwise else 9))
    assert sorted({row for _, rows in shares for row in rows.tolist()}) == learned
    # what is logged of it is what it said of each response, however often it was read
    assert not taken.sums.requires_grad  # or the graph of every micro-batch would be kept
    seen = taken.sums[1] > 0
    assert seen.nonzero()[:, 0].tolist() == learned
    finals = values[torch.arange(9), mask.sum(1) - 1]
    torch.testing.assert_close(taken.sums[0][seen] / taken.sums[1][seen], finals[seen], rtol=1e-4, atol=1e-4)
    again = reward.loss_over(mini_batch, DATASET, reference, alone)(model, mini_batch[0])
    torch.testing.assert_close(again[0], shares[0][0])
