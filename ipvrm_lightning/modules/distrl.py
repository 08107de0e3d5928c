"""`DistRLModule`: improve a policy with dense, counterfactual credit (arXiv:2604.13197, Sec. 3.2, 3.3).

Where it departs from the paper, in the manner of the reference code: the TD part has the coefficient 0.05 (Eq. 13
writes 1), and the candidates' clip is symmetric. Statistics are taken over a mini-batch, in which the responses of a
prompt stay together. Without a reward model, or with both of its coefficients at zero, the update is GRPO's.

One step: sample groups of responses, verify them, keep the prompts with both outcomes; one forward pass of the
behaviour policy and one of the reward model; update the reward model; update the policy on sampled and on likely
unsampled tokens. Sampling depends on (seed, step, prompt, number) alone and every statistic is taken over all
processes, so that neither batch sizes nor the number of processes change a result but for rounding, as long as a
mini-batch has a response for every process.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from ipvrm_lightning.data.dataset import TrajectoryDataset, collate
from ipvrm_lightning.models import checkpoints
from ipvrm_lightning.models.candidates import behavior_scores, candidate_log_probs
from ipvrm_lightning.models.initial_reward import InitialReward, find_initial_reward
from ipvrm_lightning.models.language_model import LanguageModelFactory
from ipvrm_lightning.models.logprobs import response_mask
from ipvrm_lightning.models.roles import Role, Roles
from ipvrm_lightning.models.sharding import is_sharded
from ipvrm_lightning.modules.alarms import Alarms
from ipvrm_lightning.modules.distrl_metrics import collection_metrics, score_metrics, timed
from ipvrm_lightning.modules.distrl_settings import (
    AdvantageSettings,
    Collecting,
    PolicyUpdate,
    RewardModel,
    check_sampling,
)
from ipvrm_lightning.modules.experience import (
    ScoredBatch,
    plan_mini_batches,
    sampled_log_probs,
    set_advantages,
    to_dataset,
    totals,
)
from ipvrm_lightning.modules.online_reward import OnlineReward
from ipvrm_lightning.modules.policy import PolicyModule
from ipvrm_lightning.modules.policy_loss import distance_moved, policy_loss
from ipvrm_lightning.modules.schedule import Schedule, planned_batches
from ipvrm_lightning.modules.updates import GuardedUpdates, LossOf, LossOfRows, check_optimizer
from ipvrm_lightning.rollouts.groups import Collection, Group, PromptSource, collect_mixed
from ipvrm_lightning.rollouts.sources import Sampling
from ipvrm_lightning.rollouts.verifiers import Verifier
from ipvrm_lightning.types import TrajectoryBatch


class DistRLModule(PolicyModule):
    """Policy optimisation on sampled and on likely unsampled tokens. GRPO where it has no reward model.

    With LoRA, policy and reward model are adapters on one base, whose bare weights are the supervised model; else each
    is a model of its own that starts from it. Dropout is off: with it, a policy's ratio to itself would not be 1.

    Args:
        language_model: builds the supervised model that policy, reward model and reference start from.
        verifier: says which responses are right.
        sampling: how a step's responses are drawn; its temperature enters all log-probabilities.
        reward: the implicit reward model; None for GRPO.
        collecting: which sampled prompts a step learns from.
        advantages: how outcomes and TD advantages add up.
        update: the policy's updates within a step.
        optimizer: called with the policy's parameters.
        scheduler: learning rate over the run's steps.
        evaluation: how responses are sampled to judge the policy; its `group_size` is k.
        eval_batch_size: responses sampled at one time to judge the policy.
        stop_tokens: tokens that end a response besides the tokenizer's and the model's own.
        step_separator: what separates the steps of a response, to count them.
        alarms: bounds beyond which the run says so.
        chunk_size: response tokens whose logits exist at one time.
    """

    incidental = PolicyModule.incidental | {"chunk_size", "collecting.batch_size", "update.max_tokens"}

    def __init__(
        self,
        *,
        language_model: LanguageModelFactory,
        verifier: Verifier,
        sampling: Sampling = Sampling(),  # noqa: B008  (frozen)
        reward: RewardModel | None = None,
        collecting: Collecting | None = Collecting(),  # noqa: B008  (frozen)
        advantages: AdvantageSettings | None = None,
        update: PolicyUpdate | None = PolicyUpdate(),  # noqa: B008
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: Schedule | None = None,
        evaluation: Sampling = Sampling(),  # noqa: B008
        eval_batch_size: int = 256,
        stop_tokens: list[str] | None = None,
        step_separator: str = "\n\n",
        alarms: Alarms | None = None,
        chunk_size: int = 256,
    ) -> None:
        super().__init__(
            language_model=language_model,
            verifier=verifier,
            evaluation=evaluation,
            eval_batch_size=eval_batch_size,
            stop_tokens=stop_tokens,
        )
        self.automatic_optimization = False
        self.sampling = sampling
        self.reward = reward
        self.collecting = collecting or Collecting()
        self.advantages = advantages or AdvantageSettings()
        self.update = update or PolicyUpdate()
        self.optimizer = optimizer
        self.scheduler = scheduler or Schedule()
        self.step_separator = step_separator
        self.alarms = alarms or Alarms()
        self.chunk_size = chunk_size
        self.online_reward: Any = None
        self.initial_reward: InitialReward | None = None
        self.reward_files: str | None = None
        self.steps_done = 0
        self.updates: dict[Role, GuardedUpdates] = {
            role: GuardedUpdates(self.update.max_skipped_updates) for role in ("policy", "reward")
        }
        check_sampling(sampling)
        if reward is None and self.update.distribution_coef:
            raise ValueError("update.distribution_coef needs a reward model: set reward, or the coefficient to 0")

    # -- models and optimisers

    def setup(self, stage: str) -> None:
        """Refuse what cannot be worked with before a model is built: besides a policy's, another reward model.

        Raises:
            FileNotFoundError: there is no `reward.checkpoint`.
            ValueError: it is of another objective or other settings; or see `PolicyModule.setup`.
        """
        super().setup(stage)
        if stage == "fit" and self.reward is not None and self.reward.checkpoint is not None:
            self.initial_reward = find_initial_reward(self.reward.checkpoint)
            self.initial_reward.check(self.reward.objective, self.language_model)

    def configure_model(self) -> None:
        """Build the policy and, where it is to be trained with one, the reward model."""
        super().configure_model()
        if self.reward is None or self.online_reward is not None or self.trainer.state.fn != "fit":
            return
        self.roles.add_reward()
        if self.initial_reward is not None:
            self.initial_reward.load(self.roles, self.base)
            if self.reward.update == "frozen":  # no other is to take its place when the run goes on
                self.reward_files = self.initial_reward.identity()
        self.online_reward = OnlineReward(self.roles, self.reward, max_tokens=self.update.max_tokens, **self._scoring)

    @property
    def _max_new_tokens(self) -> int:
        return max(self.sampling.max_new_tokens, self.evaluation.max_new_tokens)

    @property
    def updates_reward(self) -> bool:
        """Whether the reward model learns."""
        return self.reward is not None and self.reward.update != "frozen"

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters that optimisers update, by name."""
        roles: Roles = self.roles
        found = roles.trained("policy") | (roles.trained("reward") if self.updates_reward else {})
        return {f"roles.{name}": parameter for name, parameter in found.items()}

    def configure_optimizers(self) -> Any:
        """One for the policy, and one for the reward model where it learns; their rates change once per step."""
        steps = planned_batches(self.trainer, one_step_each=False)
        pairs = [(self.optimizer(self.roles.trained("policy").values()), self.scheduler)]
        if self.reward is not None and self.updates_reward:
            own = self.reward.optimizer(self.roles.trained("reward").values())
            pairs.append((own, self.reward.scheduler or Schedule()))
        optimizers = [check_optimizer(own) for own, _ in pairs]
        return optimizers, [schedule.build(own, steps) for own, schedule in pairs]

    # -- one step

    def training_step(self, stream: PromptSource, batch_idx: int) -> None:
        """Sample, verify, score, and update reward model and policy.

        Args:
            stream: of prompts.
            batch_idx: unused.

        Raises:
            FloatingPointError: too many updates in a row were not finite.
        """
        started = time.perf_counter()
        metrics: dict[str, Tensor | float] = {}
        with timed("sampling", metrics, self.device):
            collection = self.collect(stream)
        self.steps_done += 1
        metrics |= collection_metrics(collection, self.step_separator)
        learned = sum(len(group.attempts) for group in collection.kept) >= self.processes.count
        if learned:
            self._learn(collection.kept, metrics)
        else:
            rank_zero_info(
                f"step {self.steps_done}: {len(collection.kept)} of {len(collection.sampled)} prompts had both right"
                " and wrong responses; nothing was learned"
            )
        for name, scheduler in zip(("lr", "reward/lr"), self._as_list(self.lr_schedulers()), strict=False):
            metrics[name] = scheduler.get_last_lr()[0]
            scheduler.step()
        metrics["seconds/step"] = seconds = time.perf_counter() - started
        metrics["tokens_per_second"] = metrics["sampled_tokens"] / seconds
        self._log(metrics, skipped=not learned)

    def collect(self, stream: PromptSource) -> Collection:
        """Groups of responses, sampled and verified by all processes together, the same on each."""
        settings = self.collecting
        return collect_mixed(
            stream,
            partial(self.answer_together, sampling=self.sampling, seed=self._step_seed, batch_size=settings.batch_size),
            wanted=self.trainer.datamodule.batch_size,  # type: ignore[attr-defined]
            oversampling=settings.oversampling,
            max_refills=settings.max_refills,
        )

    def _learn(self, kept: list[Group], metrics: dict[str, Tensor | float]) -> None:
        processes = self.processes
        dataset = to_dataset(kept)
        plan = plan_mini_batches(
            dataset, count=self.update.mini_batches, max_tokens=self.update.max_tokens, processes=processes.count
        )
        with timed("scoring", metrics, self.device):
            mini_batches = [
                [self.score(dataset, rows) for rows in micro_batches[processes.rank :: processes.count]]
                for micro_batches in plan
            ]
        scored = [part for mini_batch in mini_batches for part in mini_batch]
        metrics |= score_metrics(scored, processes)
        when = None if self.reward is None else self.reward.update
        if when == "before":
            self._update_reward(dataset, scored, metrics)
        if when is not None:
            with timed("reward", metrics, self.device):
                for part in scored:
                    self.online_reward.score(part)
        for mini_batch in mini_batches:
            set_advantages(mini_batch, processes, self.advantages.compute)
        self._update_policy(dataset, mini_batches, metrics)
        if when == "after":
            self._update_reward(dataset, scored, metrics)
        if when == "frozen":
            metrics |= self.online_reward.metrics(scored, dataset, processes)

    def score(self, dataset: TrajectoryDataset, rows: list[int]) -> ScoredBatch:
        """One forward pass of the behaviour policy, and of the supervised model where something asks for it."""
        batch = self._to_device(collate(dataset, rows))
        with self.roles.use("policy") as model:
            behavior = behavior_scores(
                model, batch, top_k=self.update.width, min_probability=self.update.min_probability, **self._scoring
            )
        scored = ScoredBatch(batch, response_mask(batch), behavior)
        if self.update.uses_kl or (self.reward is not None and self.reward.reference == "sft"):
            with self.roles.use("reference") as model:
                scored.sft_log_probs, _ = candidate_log_probs(model, batch, behavior.candidates, **self._scoring)
        return scored

    def _update_policy(
        self, dataset: TrajectoryDataset, mini_batches: Sequence[Sequence[ScoredBatch]], metrics: dict[str, Any]
    ) -> None:
        sums: dict[str, Tensor] = {}
        norms = []
        with timed("policy", metrics, self.device):
            for mini_batch in [m for _ in range(self.update.epochs) for m in mini_batches]:
                loss_of = partial(self._policy_loss, divisors=totals(mini_batch, self.processes), sums=sums)
                norms.append(self._step_on("policy", mini_batch, loss_of, self.update.gradient_clip_val, dataset)[1])
        metrics |= {name: self.processes.total(value) / len(norms) for name, value in sums.items()}
        metrics["gradient_norm"] = torch.stack(norms).mean()
        before = sampled_log_probs([part for m in mini_batches for part in m], len(dataset), self.processes)
        with self.roles.use("policy") as model:
            metrics["approx_kl"] = distance_moved(
                model, dataset, before, self.processes, self._to_device, self.update, **self._scoring
            )

    def _policy_loss(self, model: Any, part: ScoredBatch, *, divisors: Any, sums: dict[str, Tensor]) -> LossOfRows:
        """A micro-batch's share of a mini-batch's loss, and its rows; what is logged is added to `sums`."""
        loss, values = policy_loss(model, part, divisors, self.update, **self._scoring)
        for name, value in values.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value
        return loss, part.batch.index

    def _update_reward(
        self, dataset: TrajectoryDataset, scored: Sequence[ScoredBatch], metrics: dict[str, Tensor | float]
    ) -> None:
        assert self.reward is not None
        clip = self.reward.gradient_clip_val

        def step(parts: Iterable[TrajectoryBatch], loss_of: LossOf) -> tuple[Tensor, Tensor]:
            return self._step_on("reward", map(self._to_device, parts), loss_of, clip, dataset)

        with timed("reward_update", metrics, self.device):
            metrics |= self.online_reward.update(dataset, scored, self.processes, step, seed=self._step_seed)

    @property
    def _scoring(self) -> dict[str, Any]:
        return {"temperature": self.sampling.temperature, "chunk_size": self.chunk_size}

    def _step_on(
        self, role: Role, parts: Iterable[Any], loss_of: LossOf, clip: float | None, dataset: TrajectoryDataset
    ) -> tuple[Tensor, Tensor]:
        """One step of a role's optimiser; the loss over all processes, and the gradient's norm."""
        losses: list[tuple[Tensor, Tensor]] = []
        for part in parts:
            with self.roles.use(role) as model:  # backward, which recomputes activations, wants the role active too
                loss, rows = loss_of(model, part)
                self._backward(loss, role)
            losses.append((loss.detach(), rows))
        optimizer = self._as_list(self.optimizers())[role == "reward"]
        if role == "reward":
            # Lightning's global step counts every optimiser that it sees stepping: it is to count the policy's alone
            optimizer._on_before_step = optimizer._on_after_step = lambda: None
        parameters = list(self.roles.trained(role).values())
        self.processes.add_gradients(parameters)
        norm = self.updates[role].step(optimizer, parameters, clip, self.processes, losses, dataset)
        return self.processes.total(torch.stack([loss for loss, _ in losses]).sum()), norm

    def _backward(self, loss: Tensor, role: Role) -> None:
        if is_sharded(next(iter(self.roles.trained(role).values()))):
            loss = loss * self.processes.count  # FSDP2 averages gradients over the processes in every backward pass
        # gradients are summed over the processes once, when all micro-batches are done
        with getattr(self.trainer.strategy, "block_backward_sync", nullcontext)():
            self.manual_backward(loss)

    def _log(self, metrics: dict[str, Tensor | float], *, skipped: bool) -> None:
        metrics["skipped_step"] = float(skipped)
        metrics["skipped_updates"] = float(sum(guard.skipped for guard in self.updates.values()))
        values = {name: float(value) for name, value in metrics.items()}
        for name, text in self.alarms.check(values).items():
            values[f"alarm/{name}"] = float(text is not None)
            if text is not None:
                rank_zero_warn(f"step {self.steps_done}: {text}")
        for name, value in values.items():
            self.log(f"train/{name}", value, prog_bar=name in ("outcome", "reward/accuracy"), batch_size=1)

    @property
    def _step_seed(self) -> int:
        return 1_000_003 * self.sampling.seed + self.steps_done

    def _to_device(self, batch: Any) -> Any:
        return self.transfer_batch_to_device(batch, self.device, 0)

    @staticmethod
    def _as_list(value: Any) -> list[Any]:
        return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]

    # -- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained, and where the run is."""
        checkpoints.keep_trained(checkpoint, {**self.trainable_parameters(), **checkpoints.own_buffers(self)})
        checkpoint["distrl"] = {
            "steps_done": self.steps_done,
            "updates": {role: guard.state_dict() for role, guard in self.updates.items()},
            "alarms": self.alarms.state,
        }
        checkpoint["settings"] = self.settings_to_keep()

    def settings_to_keep(self) -> dict[str, Any]:
        """What a checkpoint and a config must agree on: primitives only; optimiser and reward, to go on training."""
        kept: dict[str, Any] = {"language_model": self.language_model.describe(), "base": self.base}
        kept |= {"optimizer": checkpoints.optimizer_class(self.optimizer, self.roles.trained("policy")), "reward": None}
        if (reward := self.reward) is not None:
            kept["reward"] = {"objective": reward.objective.describe(), "update": reward.update}
            kept["reward"]["optimizer"] = checkpoints.optimizer_class(reward.optimizer, self.roles.trained("reward"))
            if reward.update == "frozen":  # its weights are in no checkpoint of this run
                kept["reward"]["checkpoint"] = self.reward_files
        return kept

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on where the run was.

        Raises:
            ValueError: the checkpoint is of another model or other settings; names the first thing that differs.
        """
        checkpoints.check_settings_of(checkpoint, self.settings_to_keep(), training=self.trainer.state.fn == "fit")
        own = {**self.trainable_parameters(), **checkpoints.own_buffers(self)}
        if self.trainer.state.fn != "fit":  # a policy is judged without the reward model
            checkpoint["state_dict"] = {name: w for name, w in checkpoint["state_dict"].items() if name in own}
        checkpoints.check_same_parameters(own, checkpoint["state_dict"], what="the checkpoint")
        checkpoints.add_frozen(checkpoint, self)
        state, self.loaded_step = checkpoint["distrl"], int(checkpoint["global_step"])
        self.steps_done = int(state["steps_done"])
        for role, guard in self.updates.items():
            guard.load_state_dict(state["updates"][role])
        self.alarms.state = {name: list(values) for name, values in state["alarms"].items()}
