"""`PolicyModule`: answer prompts with a policy and judge the answers; what training a policy builds on."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule

from ipvrm_lightning.data.prompts import PromptModule
from ipvrm_lightning.metrics import AverageAtK, AverageAtKReport
from ipvrm_lightning.models.language_model import LanguageModelFactory
from ipvrm_lightning.models.logprobs import check_positions, check_vocabulary
from ipvrm_lightning.models.output_head import base_language_model
from ipvrm_lightning.models.product_precision import shorten_for
from ipvrm_lightning.models.reference import base_fingerprint
from ipvrm_lightning.models.roles import build_roles, check_repeats
from ipvrm_lightning.models.sharding import gathered, placed
from ipvrm_lightning.modules.averages import leave_frozen
from ipvrm_lightning.modules.processes import Processes
from ipvrm_lightning.progress import lines
from ipvrm_lightning.rollouts.ends import end_token_ids
from ipvrm_lightning.rollouts.groups import Group, answer_prompts
from ipvrm_lightning.rollouts.sources import Sampling
from ipvrm_lightning.rollouts.verifiers import Verifier
from ipvrm_lightning.strategies import check_fit
from ipvrm_lightning.types import PromptBatch, PromptExample

#: Where a data source's name stands in the log, for the numbers over all prompts.
ALL = "all"


class PolicyModule(LightningModule):
    """A policy, judged by the outcomes of its responses: `validate` and `test` report avg@k and pass@k.

    Args:
        language_model: builds the policy and its tokenizer; nothing is loaded before `configure_model`.
        verifier: says which responses are right.
        evaluation: how responses are sampled to judge the policy; its `group_size` is k.
        eval_batch_size: responses sampled at one time.
        stop_tokens: tokens that end a response besides the tokenizer's and the model's own.
    """

    #: Arguments, dotted within others, that change no result but for rounding: a fit may go on with other ones.
    incidental: ClassVar[frozenset[str]] = frozenset(
        {"eval_batch_size", "language_model.init_args.gradient_checkpointing"}
    )

    def __init__(
        self,
        *,
        language_model: LanguageModelFactory,
        verifier: Verifier,
        evaluation: Sampling = Sampling(),  # noqa: B008  (frozen)
        eval_batch_size: int = 256,
        stop_tokens: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.strict_loading = False
        self.language_model = language_model
        self.verifier = verifier
        self.evaluation = evaluation
        self.eval_batch_size = eval_batch_size
        self.stop_tokens = stop_tokens or []
        self.roles: Any = None
        self.base: str | None = None
        self.judge = AverageAtK()
        self.evaluated: list[dict[str, Any]] = []
        self.loaded_step: int | None = None

    @property
    def policy_version(self) -> int:
        """Optimiser steps that the policy has seen, those before the checkpoint that is judged too."""
        return self.trainer.global_step if self.loaded_step is None else self.loaded_step

    @property
    def processes(self) -> Processes:
        """The processes of the run."""
        return Processes(self.global_rank, self.trainer.world_size, self.device)

    def setup(self, stage: str) -> None:
        """Refuse a strategy, weights or answers that cannot be worked with, before a model is built.

        Raises:
            ValueError: says which pair cannot work, what is wrong with the weights, or names the prompt or data source.
        """
        check_fit(self.trainer.strategy, self)
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, PromptModule):
            found = "a loader alone" if data is None else type(data).__name__
            raise ValueError(
                f"{type(self).__name__} answers prompts, and {found} has none: use a PromptModule"
                " (ipvrm_lightning.data)"
            )
        if stage == "fit":
            self.language_model.check_stored()
            leave_frozen(self.trainer)
        self._check_sources()
        self.verifier.check(self._prompts())

    def configure_model(self) -> None:
        """Build the policy; called by the strategy, after the data was checked."""
        if self.roles is None:
            self.roles = build_roles(placed(self.language_model, self.device_mesh))
            self.tokenizer = self.language_model.build_tokenizer()
            with self.roles.use("policy") as model:
                prompts = self._prompts()
                check_vocabulary(model, max((max(prompt.input_ids) for prompt in prompts), default=-1))
                longest = max((len(prompt.input_ids) for prompt in prompts), default=0)
                check_positions(model, longest + self._max_new_tokens)
                self.base = base_fingerprint(model)
                if self._trainer is not None and self.trainer.state.fn == "fit":
                    check_repeats(model)
                if self._trainer is not None:
                    shorten_for(self.trainer, model)

    def answer(self, prompts: list[PromptExample], sampling: Sampling, *, seed: int, batch_size: int) -> list[Group]:
        """Sample the policy's responses to prompts and verify them."""
        # processes decode for different numbers of steps, and an all-gather in each would cost more than the step
        with self.roles.use("policy") as model, gathered(base_language_model(model)):
            return answer_prompts(
                model,
                self.tokenizer,
                self.verifier,
                prompts,
                sampling,
                end_token_ids=end_token_ids(self.tokenizer, model, self.stop_tokens),
                batch_size=batch_size,
                seed=seed,
                on_progress=lines(len(prompts) * sampling.group_size, "sampling responses"),
            )

    def answer_together(
        self, prompts: list[PromptExample], sampling: Sampling, *, seed: int, batch_size: int
    ) -> list[Group]:
        """The same by all processes together, each with its share of the prompts; the same result on each."""
        processes = self.processes
        own = self.answer(prompts[processes.rank :: processes.count], sampling, seed=seed, batch_size=batch_size)
        shares = [iter(share) for share in processes.objects(own)]
        return [next(shares[number % processes.count]) for number in range(len(prompts))]

    def on_train_start(self) -> None:
        """From here on the trainer counts."""
        self.loaded_step = None

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Answer prompts and judge the answers."""
        self._evaluate(batch)

    def test_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Answer prompts and judge the answers."""
        self._evaluate(batch)

    def on_validation_epoch_start(self) -> None:
        """Forget an earlier evaluation."""
        self._forget()

    def on_test_epoch_start(self) -> None:
        """Forget an earlier evaluation."""
        self._forget()

    def on_validation_epoch_end(self) -> None:
        """Log avg@k and pass@k of every data source, `val/...`."""
        self.log_dict(scalars(self.judge.compute(), "val/"), sync_dist=True)

    def on_test_epoch_end(self) -> None:
        """Reduce the judgement over processes; the results table prints and saves it."""
        report = self.judge.compute()
        self.log_dict(scalars(report, "test/"), sync_dist=True)
        self.test_report = {"average_at_k": report}

    def teardown(self, stage: str) -> None:
        """Stop the verifier's workers."""
        self.verifier.close()

    @property
    def _max_new_tokens(self) -> int:
        return self.evaluation.max_new_tokens

    def _prompts(self) -> list[PromptExample]:
        """The run's prompts, none where they are not known beforehand."""
        data = None if self._trainer is None else getattr(self.trainer, "datamodule", None)
        parts = [getattr(data, name, []) for name in ("train_prompts", "val_prompts", "test_prompts")]
        return [prompt for part in parts for prompt in part]

    def _check_sources(self) -> None:
        """Refuse a data source whose numbers those over all prompts would hide."""
        data = getattr(self.trainer, "datamodule", None)
        for name in ("val_prompts", "test_prompts"):
            sources = {prompt.data_source for prompt in getattr(data, name, [])}
            if ALL in sources and len(sources) > 1:
                raise ValueError(
                    f"{name}: a data source is named {ALL!r}, as the numbers over all prompts are: rename it"
                )

    def _forget(self) -> None:
        self.judge.reset()
        self.evaluated = []

    def _evaluate(self, batch: PromptBatch) -> None:
        sampling = self.evaluation
        groups = self.answer(batch.prompts, sampling, seed=sampling.seed, batch_size=self.eval_batch_size)
        attempts = [(group.prompt, attempt) for group in groups for attempt in group.attempts]
        self.judge.update(
            self._tensor([attempt.outcome for _, attempt in attempts]),
            [prompt.id for prompt, _ in attempts],
            [prompt.data_source for prompt, _ in attempts],
            finished=self._tensor([attempt.finished for _, attempt in attempts]),
            lengths=self._tensor([len(attempt.input_ids) for _, attempt in attempts]),
        )
        self.evaluated += [response_record(group, self.policy_version) for group in groups]

    def _tensor(self, values: list[Any]) -> torch.Tensor:
        return torch.tensor(values, device=self.device)


def scalars(report: AverageAtKReport, prefix: str) -> dict[str, float]:
    """avg@k and pass@k of each data source and over all prompts, for the log.

    Args:
        report: of an evaluation.
        prefix: of the names.
    """
    values = {}
    for name, result in {**report.sources, ALL: report.micro}.items():
        if len(report.sources) == 1 and name != ALL:
            continue
        values[f"{prefix}{name}/avg@{result.max_responses}"] = result.average.share
        values |= {f"{prefix}{name}/pass@{k}": found.share for k, found in result.pass_at.items() if k > 1}
        values[f"{prefix}{name}/cut_off"] = result.cut_off
        values[f"{prefix}{name}/response_tokens"] = result.mean_length
    return values


def response_record(group: Group, policy_version: int) -> dict[str, Any]:
    """A group in the form that `TrajectoryDataModule` reads, with what the verifier said.

    Args:
        group: of one prompt.
        policy_version: optimiser steps that the policy had seen.
    """
    prompt, attempts = group
    return {
        "id": prompt.id,
        "data_source": prompt.data_source,
        "prompt": prompt.prompt,
        "ground_truth": prompt.ground_truth,
        "responses": [attempt.text for attempt in attempts],
        "scores": [attempt.outcome for attempt in attempts],
        "answers": [attempt.answer for attempt in attempts],
        "problems": [attempt.problem for attempt in attempts],
        "finished": [attempt.finished for attempt in attempts],
        "response_tokens": [len(attempt.input_ids) for attempt in attempts],
        "policy_version": policy_version,
    }
