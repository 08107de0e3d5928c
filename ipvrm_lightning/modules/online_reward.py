"""The reward model of a DistRL run: what it says of the step's tokens, and its update on the step's outcomes.

Its log-ratios are taken at the temperature that sampled the responses, like the policy's ratios.

Letters: B sequences of a micro-batch, R responses of the step, T response positions, K candidates per position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ipvrm_lightning.data.dataset import TrajectoryDataset, collate, collate_pairs
from ipvrm_lightning.data.planning import batches_for_processes, rows_of
from ipvrm_lightning.data.rollouts import build_pairs
from ipvrm_lightning.functional import balance_outcomes, last_positions, td_advantages
from ipvrm_lightning.models.candidates import candidate_log_probs
from ipvrm_lightning.models.logprobs import response_scores
from ipvrm_lightning.models.roles import Roles
from ipvrm_lightning.modules.distrl_metrics import Values, reward_metrics
from ipvrm_lightning.modules.distrl_settings import RewardModel
from ipvrm_lightning.modules.experience import ScoredBatch, mini_batch_rows, required, sampled_log_probs
from ipvrm_lightning.modules.processes import Processes
from ipvrm_lightning.modules.updates import LossOf, LossOfRows
from ipvrm_lightning.types import TrajectoryBatch


class OnlineReward:
    """Scores and updates of the reward model within a step.

    Args:
        roles: of the run.
        settings: of the reward model.
        temperature: that samples the responses.
        chunk_size: response tokens whose logits exist at one time.
        max_tokens: rows times longest row of one forward pass, at most.
    """

    def __init__(
        self, roles: Roles, settings: RewardModel, *, temperature: float, chunk_size: int, max_tokens: int
    ) -> None:
        self.roles, self.settings = roles, settings
        self.temperature, self.chunk_size, self.max_tokens = temperature, chunk_size, max_tokens

    @torch.no_grad()
    def score(self, part: ScoredBatch) -> None:
        """Give a micro-batch its TD advantages: beta * log-ratio of sampled tokens and candidates (Eq. 10)."""
        with self.roles.use("reward") as model:
            log_probs, _ = candidate_log_probs(
                model, part.batch, part.behavior.candidates, temperature=self.temperature, chunk_size=self.chunk_size
            )
        reference = part.behavior.log_probs if self.settings.reference == "behavior" else required(part.sft_log_probs)
        part.td_advantages = td_advantages(log_probs - reference, part.mask, beta=self.settings.objective.beta)

    def metrics(
        self, scored: Sequence[ScoredBatch], dataset: TrajectoryDataset, processes: Processes
    ) -> dict[str, Tensor]:
        """What `reward_metrics` says of scored micro-batches: for a reward model that is not updated."""
        values = Values(len(dataset), processes.device)
        for part in scored:
            log_ratios = required(part.td_advantages)[..., 0] / self.settings.objective.beta
            values.add(part.batch.index, self._values(log_ratios, part.mask))
        return reward_metrics(values, dataset, processes)

    def update(
        self,
        dataset: TrajectoryDataset,
        scored: Sequence[ScoredBatch],
        processes: Processes,
        step: Callable[[Sequence[TrajectoryBatch], LossOf], tuple[Tensor, Tensor]],
        *,
        seed: int,
    ) -> dict[str, Tensor]:
        """Learn from the outcomes of a step's responses.

        Args:
            dataset: the responses.
            scored: this process's micro-batches of them.
            processes: of the run.
            step: of the optimiser, from a mini-batch's micro-batches; gives the loss over all processes and the
                gradient's norm.
            seed: of the choice of pairs.

        Returns:
            What is logged of it: what the model said before it learned. Nothing where there was nothing to learn from.
        """
        reference = sampled_log_probs(scored, len(dataset), processes, sft=self.settings.reference == "sft")
        plan = self.plan(dataset, processes, seed=seed)
        values, found = Values(len(dataset), processes.device), []
        for epoch in range(self.settings.epochs):
            for mini_batch in plan:
                taken = values if epoch == 0 else None
                found.append(step(mini_batch, self.loss_over(mini_batch, dataset, reference, processes, taken)))
        if not found:
            return {}
        losses, norms = (torch.stack(column) for column in zip(*found, strict=True))
        learned = {"reward/loss": losses.mean(), "reward/gradient_norm": norms.mean()}
        return learned | reward_metrics(values, dataset, processes)

    def _values(self, log_ratios: Tensor, mask: Tensor) -> Tensor:
        return (self.settings.objective.prefix_logits(log_ratios, mask) * last_positions(mask)).sum(-1)

    def plan(self, dataset: TrajectoryDataset, processes: Processes, *, seed: int) -> list[list[TrajectoryBatch]]:
        """This process's micro-batches, of rows or of pairs, of each mini-batch of the step.

        Mini-batches without a pair are left out. Where processes outnumber the pairs, each pair comes as often as there
        are processes: no process goes without one, and the mean stays what it is.

        Args:
            dataset: responses of the step.
            processes: of the run.
            seed: of the choice of pairs.
        """
        pairs = None
        if self.settings.objective.pairwise:
            pairs = build_pairs(dataset, max_pairs_per_prompt=self.settings.max_pairs_per_prompt, seed=seed)
        plans = []
        for rows in mini_batch_rows(dataset, self.settings.mini_batches, processes.count):
            if pairs is None:
                chosen = self._cut([[row] for row in rows], dataset, processes)
                plans.append([collate(dataset, rows_of(batch)) for batch in chosen])
                continue
            inside = set(rows)
            own = [list(pair) for pair in pairs if pair[0] in inside]
            if len(own) < processes.count:
                own *= processes.count
            if own:
                batches = self._cut(own, dataset, processes)
                plans.append([collate_pairs(dataset, [(c, r) for c, r in batch]) for batch in batches])
        return plans

    def loss_over(
        self,
        mini_batch: Sequence[TrajectoryBatch],
        dataset: TrajectoryDataset,
        reference: Tensor,
        processes: Processes,
        values: Values | None = None,
    ) -> LossOf:
        """What gives each micro-batch its share of the objective's mean over a mini-batch; the shares add up to it.

        Args:
            mini_batch: micro-batches of this process, from `plan`.
            dataset: responses of the step.
            reference: from `sampled_log_probs`, [R, T].
            processes: of the run.
            values: takes the values of the responses, before this update.
        """
        objective = self.settings.objective
        count = processes.total(torch.tensor(float(sum(b.count(objective.unit) for b in mini_batch)))).item()

        def loss_of(model: Any, batch: TrajectoryBatch) -> LossOfRows:
            own = response_scores(model, batch, temperature=self.temperature, chunk_size=self.chunk_size)
            scores = own.log_probs - reference[batch.index, : own.mask.shape[1]]
            if values is not None:
                values.add(batch.index, self._values(scores.detach(), own.mask))
            loss = objective(scores, own.mask, self._balanced(batch, dataset))
            return loss * (batch.count(objective.unit) / count), batch.index

        return loss_of

    def _cut(self, items: list[list[int]], dataset: TrajectoryDataset, processes: Processes) -> list[list[list[int]]]:
        """This process's share of items, longest first, in batches of its budget."""
        batches = batches_for_processes(items, dataset.lengths, self.max_tokens, processes.count)
        return batches[processes.rank :: processes.count]

    def _balanced(self, batch: TrajectoryBatch, dataset: TrajectoryDataset) -> TrajectoryBatch:
        """The batch with weights and margins by the difficulty of its prompts, which the whole step tells."""
        if not self.settings.objective.balanced:
            return batch
        assert dataset.outcomes is not None
        balance = balance_outcomes(
            torch.from_numpy(dataset.outcomes).float(),
            torch.from_numpy(dataset.group_ids),
            margin=getattr(self.settings.objective, "margin", 0.0),
            adaptive_difficulty_boundary=self.settings.adaptive_difficulty_boundary,
            dynamic_loss_weighting=self.settings.dynamic_loss_weighting,
            normalize=self.settings.normalize_outcome_weights,
        )
        batch.outcome_weights, batch.margins = (values.to(batch.index.device)[batch.index] for values in balance)
        return batch
