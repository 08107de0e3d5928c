"""What a step of DistRL learns from: its responses as tokens, what the models say of them, and who computes what.

Letters: B sequences of a micro-batch, R of a mini-batch, T response positions, K candidates per position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ipvrm_lightning.data.dataset import TrajectoryDataset
from ipvrm_lightning.data.planning import batches_for_processes, rows_of
from ipvrm_lightning.functional import Advantages
from ipvrm_lightning.models.candidates import BehaviorScores
from ipvrm_lightning.modules.processes import Processes
from ipvrm_lightning.rollouts.groups import Group
from ipvrm_lightning.types import Example, TrajectoryBatch

MicroBatches = list[list[int]]


@dataclass
class ScoredBatch:
    """A micro-batch of responses and what is known of them before the policy is updated.

    Args:
        batch: tokens, outcomes and groups.
        mask: response positions, [B, T].
        behavior: candidates, log-probabilities and entropies of the policy that sampled them.
        sft_log_probs: of the supervised model, [B, T, K]; None where nothing asks for them.
        td_advantages: of the candidates, [B, T, K]; None without a reward model.
        advantages: of sampled tokens and candidates; None until they are computed.
    """

    batch: TrajectoryBatch
    mask: Tensor
    behavior: BehaviorScores
    sft_log_probs: Tensor | None = None
    td_advantages: Tensor | None = None
    advantages: Advantages | None = None

    @property
    def candidate_weight(self) -> Tensor:
        """Sum of the behaviour probabilities of the candidates that count."""
        return self.behavior.log_probs.exp()[self.behavior.candidates.mask].sum()


class Totals(NamedTuple):
    """What the losses of a mini-batch are divided by, over all processes.

    Args:
        tokens: response tokens.
        candidate_weight: sum of the behaviour probabilities of counted candidates.
        candidates: their number.
    """

    tokens: Tensor
    candidate_weight: Tensor
    candidates: Tensor


def to_dataset(groups: Sequence[Group]) -> TrajectoryDataset:
    """The responses of all groups, one after the other, as trajectories; a group is a prompt of this step."""
    return TrajectoryDataset(
        Example(
            [*group.prompt.input_ids, *attempt.input_ids],
            len(group.prompt.input_ids),
            group=str(number),
            outcome=attempt.outcome,
            metadata={"id": group.prompt.id},
        )
        for number, group in enumerate(groups)
        for attempt in group.attempts
    )


def plan_mini_batches(dataset: TrajectoryDataset, *, count: int, max_tokens: int, processes: int) -> list[MicroBatches]:
    """Rows of each micro-batch of each mini-batch; process r computes micro-batches r, r + processes, ...

    Args:
        dataset: of the step; at least one response for every process.
        count: mini-batches that are asked for, see `mini_batch_rows`.
        max_tokens: rows times longest row of a micro-batch, at most, where that leaves each process equally many.
        processes: each mini-batch has a multiple of so many micro-batches.
    """
    plans = []
    for rows in mini_batch_rows(dataset, count, processes):
        batches = batches_for_processes([[row] for row in rows], dataset.lengths, max_tokens, processes)
        plans.append([rows_of(batch) for batch in batches])
    return plans


def mini_batch_rows(dataset: TrajectoryDataset, count: int, processes: int) -> list[list[int]]:
    """Rows of each mini-batch; the responses of a prompt are in one, so that its statistics are whole.

    Args:
        dataset: of the step.
        count: mini-batches that are asked for; fewer where prompts, or responses for every process, would be wanting.
            The second is warned of, for it depends on the number of processes.
        processes: of the run.
    """
    wanted = min(count, len(dataset.groups))
    for number in range(wanted, 0, -1):
        parts = [[row for row, group in enumerate(dataset.group_ids) if group % number == n] for n in range(number)]
        if min(map(len, parts)) >= processes or number == 1:
            if number < wanted:
                rank_zero_warn(
                    f"{number} mini-batches in place of {wanted}: with more, one would have fewer responses than there"
                    f" are processes ({processes})"
                )
            return parts
    return []


def stack_rows(parts: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """Tensors [b, ...] of any sizes below each other, padded with zeros to [sum of b, *shape]."""
    rows = sum(part.shape[0] for part in parts)
    result = parts[0].new_zeros(rows, *shape)
    start = 0
    for part in parts:
        place = (slice(start, start + part.shape[0]), *map(slice, part.shape[1:]))
        result[place] = part
        start += part.shape[0]
    return result


def set_advantages(
    scored: Sequence[ScoredBatch], processes: Processes, compute: Callable[[Tensor, Tensor, Tensor, Tensor], Advantages]
) -> None:
    """Give every micro-batch its advantages, computed from the whole mini-batch: the rows of all processes.

    Args:
        scored: this process's micro-batches of the mini-batch.
        processes: of the run.
        compute: advantages from candidate TD [R, T, K], outcomes [R], group ids [R] and mask [R, T].
    """
    td = [_td_advantages(part) for part in scored]
    own = sum(len(part) for part in td)
    rows, length, width = processes.largest([own, max(t.shape[1] for t in td), max(t.shape[2] for t in td)])

    def everywhere(parts: Sequence[Tensor], *shape: int) -> Tensor:
        # rows that only make the processes equal have no position that counts, and belong to no prompt
        stacked = stack_rows(parts, shape)
        return processes.rows(torch.cat([stacked, stacked.new_zeros(rows - own, *shape)]))

    outcomes = everywhere([required(part.batch.outcomes) for part in scored])
    groups = everywhere([required(part.batch.group_ids) + 1 for part in scored])
    mask = everywhere([part.mask.long() for part in scored], length).bool()
    whole = compute(everywhere(td, length, width), outcomes, groups, mask)
    first = processes.rank * rows
    for part, values in zip(scored, td, strict=True):
        count, positions, candidates = values.shape
        tokens, others = (advantages[first : first + count, :positions] for advantages in whole)
        part.advantages = Advantages(tokens, others[..., :candidates])
        first += count


def totals(scored: Sequence[ScoredBatch], processes: Processes) -> Totals:
    """What a mini-batch's losses are divided by."""
    tokens = torch.stack([part.mask.sum() for part in scored]).sum()
    weight = torch.stack([part.candidate_weight for part in scored]).sum()
    candidates = torch.stack([part.behavior.candidates.mask.sum() for part in scored]).sum()
    return Totals(processes.total(tokens), processes.total(weight), processes.total(candidates))


def sampled_log_probs(scored: Sequence[ScoredBatch], size: int, processes: Processes, *, sft: bool = False) -> Tensor:
    """Log-probabilities of the sampled tokens of all responses of the step, put together from the processes, [R, T].

    Args:
        scored: this process's micro-batches.
        size: R.
        processes: of the run.
        sft: under the supervised model, not under the policy that sampled them.
    """
    longest = processes.largest([max(part.mask.shape[1] for part in scored)])[0]
    table = scored[0].behavior.log_probs.new_zeros(size, longest)
    for part in scored:
        values = required(part.sft_log_probs) if sft else part.behavior.log_probs
        table[part.batch.index, : values.shape[1]] = values[..., 0]
    return processes.total(table)


def required(value: Tensor | None) -> Tensor:
    """A field that batches of this module always carry."""
    assert value is not None
    return value


def _td_advantages(part: ScoredBatch) -> Tensor:
    return torch.zeros_like(part.behavior.log_probs) if part.td_advantages is None else part.td_advantages
