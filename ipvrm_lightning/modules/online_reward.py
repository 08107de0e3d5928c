"""The reward model of a DistRL run: what it says of the step's tokens, and its update on the step's outcomes.

Its log-ratios are taken at the temperature that sampled the responses, like the policy's ratios.

Letters: B sequences of a micro-batch, R responses of the step, T response positions, K candidates per position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ipvrm_lightning.data.batching import TrajectoryDataset, collate
from ipvrm_lightning.data.planning import cut_by_tokens, pair_rows, split_to_multiple
from ipvrm_lightning.data.rollouts import build_pairs
from ipvrm_lightning.functional import balance_outcomes, td_advantages
from ipvrm_lightning.models.candidates import candidate_log_probs
from ipvrm_lightning.models.checkpoints import newest_checkpoint, read_checkpoint
from ipvrm_lightning.models.logprobs import response_scores
from ipvrm_lightning.models.roles import Roles
from ipvrm_lightning.modules.distrl_settings import RewardModel
from ipvrm_lightning.modules.experience import ScoredBatch, required
from ipvrm_lightning.modules.processes import Processes
from ipvrm_lightning.types import TrajectoryBatch


def load_checkpoint(roles: Roles, settings: RewardModel) -> None:
    """Start from a reward model that `ipvrm fit` trained.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is of another objective, or does not fit the model.
    """
    if settings.checkpoint is None:
        return
    path = Path(settings.checkpoint)
    path = path if path.is_file() else newest_checkpoint(path, what="reward.checkpoint")
    stored = read_checkpoint(path, mmap=True)
    own, other = settings.objective.describe(), stored.get("objective")
    if other is not None:
        trained = (other["class_path"], other["init_args"].get("beta"))
        if trained != (own["class_path"], own["init_args"].get("beta")):
            raise ValueError(
                f"reward.checkpoint {path} was trained by {trained[0]} with beta {trained[1]},"
                f" reward.objective is {own['class_path']} with beta {own['init_args'].get('beta')}"
            )
    roles.load_reward(stored["state_dict"])


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
            was_training = model.training
            model.eval()
            log_probs, _ = candidate_log_probs(
                model, part.batch, part.behavior.candidates, temperature=self.temperature, chunk_size=self.chunk_size
            )
            model.train(was_training)
        reference = part.behavior.log_probs if self.settings.reference == "behavior" else required(part.sft_log_probs)
        part.td_advantages = td_advantages(log_probs - reference, part.mask, beta=self.settings.objective.beta)

    def reference_rows(self, scored: Sequence[ScoredBatch], size: int, processes: Processes) -> Tensor:
        """Reference log-probabilities of the sampled tokens of all responses of the step, [R, T].

        Args:
            scored: this process's micro-batches.
            size: R.
            processes: of the run.
        """
        longest = processes.largest([max(part.mask.shape[1] for part in scored)])[0]
        table = scored[0].behavior.log_probs.new_zeros(size, longest)
        for part in scored:
            behavior = self.settings.reference == "behavior"
            values = part.behavior.log_probs if behavior else required(part.sft_log_probs)
            table[part.batch.index, : values.shape[1]] = values[..., 0]
        return processes.total(table)

    def losses(
        self,
        dataset: TrajectoryDataset,
        reference: Tensor,
        processes: Processes,
        to_device: Callable[[TrajectoryBatch], TrajectoryBatch],
        *,
        seed: int,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Each micro-batch's share of the objective's mean over the step, with gradient, and its rows [B].

        The shares add up to the mean.

        Backward belongs within the iteration: the reward model is active only until the next share is asked for.

        Args:
            dataset: responses of the step.
            reference: from `reference_rows`, [R, T].
            processes: of the run.
            to_device: moves a batch.
            seed: of the choice of pairs.
        """
        objective = self.settings.objective
        batches = [to_device(batch) for batch in self._batches(dataset, processes, seed)]
        count = processes.total(torch.tensor(float(sum(b.count(objective.unit) for b in batches)))).item()
        for batch in batches:
            with self.roles.use("reward") as model:
                own = response_scores(model, batch, temperature=self.temperature, chunk_size=self.chunk_size)
                scores = own.log_probs - reference[batch.index, : own.mask.shape[1]]
                share = batch.count(objective.unit) / count
                yield objective(scores, own.mask, self._balanced(batch, dataset)) * share, batch.index

    def _batches(self, dataset: TrajectoryDataset, processes: Processes, seed: int) -> list[TrajectoryBatch]:
        """This process's micro-batches, of rows or of pairs."""
        if not self.settings.objective.pairwise:
            items = [[row] for row in range(len(dataset))]
            return [collate(dataset, [items[i][0] for i in batch]) for batch in self._cut(items, dataset, processes)]
        pairs = build_pairs(dataset, max_pairs_per_prompt=self.settings.max_pairs_per_prompt, seed=seed)
        batches = []
        for chosen in self._cut([list(pair) for pair in pairs], dataset, processes):
            rows = pair_rows(pairs, chosen)
            place = {row: position for position, row in enumerate(rows)}
            batches.append(collate(dataset, rows, [(place[pairs[i][0]], place[pairs[i][1]]) for i in chosen]))
        return batches

    def _cut(self, items: list[list[int]], dataset: TrajectoryDataset, processes: Processes) -> list[list[int]]:
        order = sorted(range(len(items)), key=lambda i: -max(int(dataset.lengths[row]) for row in items[i]))
        cut = cut_by_tokens([items[i] for i in order], dataset.lengths, self.max_tokens)
        fitted = split_to_multiple(cut, dataset.lengths, processes.count)
        if fitted is None:
            raise ValueError(f"{len(items)} responses or pairs cannot be shared by {processes.count} processes")
        remaining = iter(order)  # cutting and splitting keep the order
        return [[next(remaining) for _ in batch] for batch in fitted][processes.rank :: processes.count]

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
        )
        batch.outcome_weights, batch.margins = (values.to(batch.index.device)[batch.index] for values in balance)
        return batch
