"""Outcome-labelled trajectories for training and validation."""

from __future__ import annotations

import logging
from typing import Any, Literal

from ipvrm_lightning.data.chat import PromptFormat
from ipvrm_lightning.data.dataset import TrajectoryDataset
from ipvrm_lightning.data.forms import Rollout
from ipvrm_lightning.data.reading import LeftOut, OnBadRows
from ipvrm_lightning.data.rollouts import OverLength, build_pairs, read_rollouts, tokenize_rollouts
from ipvrm_lightning.data.schema import check_choice, check_limit
from ipvrm_lightning.data.splits import Sources, Splits
from ipvrm_lightning.data.tokenized import TokenizedDataModule

log = logging.getLogger(__name__)

Keep = Literal["all", "right"]


class TrajectoryDataModule(TokenizedDataModule):
    """Rollouts with outcomes from files, folders or the hub.

    Forms are recognised by their columns: `conversation`+`label`; `chosen`+`rejected`; `prompt`+`chosen`+`rejected`;
    `prompt`+`responses`+`scores`; `prompt`+`completions`+`correctness`; `prompt`+`completion`+`label`. Prompts are text
    or chat messages. Where a grouped row has `finished`, a list of true and false, a response that was cut off (false)
    gets no end-of-turn token. A prompt is on one side of the split, by a seeded hash of its text: adding data moves
    none.

    Args:
        train: parquet, JSON or JSONL file, a folder of them, owner/name of a hub data set, or a list of these.
        validation: the same, for validation; its prompts are taken out of training. None to split `train`.
        validation_fraction: share of prompts held out where `validation` is None.
        test: the same, for testing; its prompts are taken out of training too. None for the validation rollouts.
        split: of hub data sets, and of folders whose file names tell splits apart (train.jsonl, test.jsonl).
        keep: "all" rollouts, or only those that are "right", for fine-tuning on them.
        pairwise: windows of pairs, a right and a wrong response to one prompt: the rows' own, and of rows that are no
            pairs those that can be built. Rows in no pair are left out and counted.
        max_pairs_per_prompt: pairs built per prompt, at most.
        batch_size: examples (or pairs) per optimiser step over all processes.
        max_tokens: rows times longest row of one forward pass, at most.
        max_length: tokens of prompt and response, at most.
        over_length: "drop" longer ones or "truncate" the end of their response; counted in either case.
        on_bad_rows: "error" stops at the first row that cannot be used, "skip" counts them by reason.
        prompt_format: "chat" by the tokenizer's template, "plain" text, or "auto" for chat where there is a template.
        system_prompt: put before prompts that have no system message.
        chat_template_kwargs: what else the template is told, such as `enable_thinking: false`.
        tokenizer: name or folder; None for that of the module it is used with.
        seed: of split, pairs and order.
        num_workers: processes that build batches ahead; 0 builds them in the training process.
        max_prompts: use so many prompts of `train` only (drawn with the seed); None for all.

    Raises:
        ValueError: an argument that cannot work; says which.
    """

    def __init__(
        self,
        *,
        train: str | list[str],
        validation: str | list[str] | None = None,
        validation_fraction: float = 0.05,
        test: str | list[str] | None = None,
        split: str = "train",
        keep: Keep = "all",
        pairwise: bool = False,
        max_pairs_per_prompt: int = 8,
        batch_size: int = 64,
        max_tokens: int = 16384,
        max_length: int = 2560,
        over_length: OverLength = "drop",
        on_bad_rows: OnBadRows = "error",
        prompt_format: PromptFormat = "auto",
        system_prompt: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        seed: int = 0,
        num_workers: int = 0,
        max_prompts: int | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size, max_tokens=max_tokens, tokenizer=tokenizer, seed=seed, num_workers=num_workers
        )
        self.sources = Sources(
            train=train, validation=validation, validation_fraction=validation_fraction, test=test, split=split,
            max_prompts=max_prompts, seed=seed,
        )  # fmt: skip
        for name, value, kind in (
            ("keep", keep, Keep),
            ("over_length", over_length, OverLength),
            ("on_bad_rows", on_bad_rows, OnBadRows),
            ("prompt_format", prompt_format, PromptFormat),
        ):
            check_choice(name, value, kind)
        check_limit("max_pairs_per_prompt", max_pairs_per_prompt)
        if keep == "right" and pairwise:
            raise ValueError("keep: right leaves no wrong response to make pairs of; set pairwise: false")
        self.keep = keep
        self.pairwise, self.max_pairs_per_prompt = pairwise, max_pairs_per_prompt
        self.max_length, self.over_length, self.on_bad_rows = max_length, over_length, on_bad_rows
        self.prompt_format, self.system_prompt = prompt_format, system_prompt
        self.chat_template_kwargs = chat_template_kwargs
        self.report: dict[str, int] = {}
        self._judges = False

    def prepare_data(self) -> None:
        """Download hub data sets once per machine."""
        self.sources.download()

    def setup(self, stage: str | None = None) -> None:
        """Read, check, split and tokenise; runs once, before any model is built. Only a fit wants the training part.

        Raises:
            DataError: names file, row and field.
            ValueError: no usable training example, or no pair for pairwise training.
        """
        fitting = stage in (None, "fit")
        if self.train_set is not None or (self._judges and not fitting):
            return
        left_out = LeftOut(self.on_bad_rows)
        splits = self.sources.read(read_rollouts, left_out, fitting=fitting)
        train_set = self._training_part(splits, left_out) if fitting else None
        val_set = self._tokenize(splits.validation, left_out)
        test_set = val_set if splits.test is None else self._tokenize(splits.test, left_out)
        if self.sources.test is not None and not len(test_set):
            raise ValueError(f"no usable test example in {self.sources.test}; left out: {dict(left_out.counts)}")
        if train_set is not None and self.pairwise:
            self.train_pairs = train_set.pairs
        self.val_set = val_set if len(val_set) else None
        self.test_sets = [test_set] if len(test_set) else []
        self.train_set, self._judges = train_set, True
        self.report = dict(left_out.counts)
        left_out.warn(type(self).__name__)

    def state_dict(self) -> dict[str, Any]:
        """What says which prompts are held out, for whoever judges a checkpoint."""
        return {"held_out": self.sources.held_out()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Say so where the run of the checkpoint has trained on what is judged here."""
        self.sources.warn_of_trained(state["held_out"], None if self.trainer is None else self.trainer.state.fn)

    def _training_part(self, splits: Splits[Rollout], left_out: LeftOut) -> TrajectoryDataset:
        if self.keep == "all":
            _warn_of_one_outcome(splits.train)
        train_set = self._tokenize(splits.train, left_out)
        if not len(train_set):
            if self.sources.validation is None and splits.validation:
                left_out.counts["held out for validation (validation_fraction)"] += len(splits.validation)
            raise ValueError(f"no usable training example in {self.sources.train}; left out: {dict(left_out.counts)}")
        return self._only_pairs(train_set, left_out) if self.pairwise else train_set

    def _tokenize(self, rollouts: list[Rollout], left_out: LeftOut) -> TrajectoryDataset:
        return tokenize_rollouts(
            [rollout for rollout in rollouts if self.keep == "all" or rollout.outcome == 1],
            self.load_tokenizer(),
            left_out,
            max_length=self.max_length,
            over_length=self.over_length,
            prompt_format=self.prompt_format,
            system_prompt=self.system_prompt,
            chat_template_kwargs=self.chat_template_kwargs,
        )

    def _only_pairs(self, dataset: TrajectoryDataset, left_out: LeftOut) -> TrajectoryDataset:
        """The rows of a data set that are in pairs, with these as its pairs."""
        built = build_pairs(dataset, max_pairs_per_prompt=self.max_pairs_per_prompt, seed=self.seed)
        pairs = [*(dataset.pairs or ()), *built]
        if not pairs:
            reason = f"no pair in {self.sources.train}: no prompt has both a right and a wrong response"
            raise ValueError(f"{reason}; left out: {dict(left_out.counts)}" if left_out.counts else reason)
        rows = sorted({row for pair in pairs for row in pair})
        if unused := len(dataset) - len(rows):
            left_out.counts["left out: in no pair"] += unused
        place = {row: number for number, row in enumerate(rows)}
        return TrajectoryDataset(
            (dataset[row] for row in rows), [(place[chosen], place[rejected]) for chosen, rejected in pairs]
        )


def _warn_of_one_outcome(rollouts: list[Rollout]) -> None:
    outcomes = {rollout.outcome for rollout in rollouts}
    if len(outcomes) == 1:
        name, other = ("right", "wrong") if outcomes == {1} else ("wrong", "right")
        log.warning(
            "all %d training responses are %s: a reward model needs %s ones as well%s",
            *(len(rollouts), name, other, " (fine-tuning needs none: keep: right)" if name == "right" else ""),
        )
