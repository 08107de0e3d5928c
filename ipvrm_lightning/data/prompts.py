"""Prompts with ground truths, for reinforcement learning, for sampling rollouts and for judging policies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ipvrm_lightning.data.chat import PromptFormat, encode_prompts, render_prompt, with_system_prompt
from ipvrm_lightning.data.prompt_loading import PromptEvalLoader, PromptLoader
from ipvrm_lightning.data.prompt_rows import PromptRow, read_prompts
from ipvrm_lightning.data.reading import LeftOut, OnBadRows, render_chunks
from ipvrm_lightning.data.schema import DataError, check_choice
from ipvrm_lightning.data.splits import Sources
from ipvrm_lightning.data.tokenized import TokenizerDataModule
from ipvrm_lightning.types import PromptExample

if TYPE_CHECKING:
    import torch


class PromptModule(TokenizerDataModule):
    """Loaders of a data module of prompts.

    Subclasses fill `train_prompts`, `val_prompts` and `test_prompts` in `setup`.

    Args:
        batch_size: prompts per optimiser step over all processes.
        eval_batch_size: prompts of an evaluation batch of one process, at most.
        tokenizer: name or folder; None for that of the module it is used with.
        seed: of everything random in the data.
    """

    #: Constructor arguments that change no result but for rounding: a fit may go on with other ones.
    incidental: ClassVar[frozenset[str]] = frozenset({"eval_batch_size"})

    def __init__(
        self, *, batch_size: int = 64, eval_batch_size: int = 64, tokenizer: str | None = None, seed: int = 0
    ) -> None:
        super().__init__(tokenizer=tokenizer, seed=seed)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.train_prompts: list[PromptExample] = []
        self.val_prompts: list[PromptExample] = []
        self.test_prompts: list[PromptExample] = []
        self._train_loader: PromptLoader | None = None
        self._resume: dict[str, Any] = {}

    def train_dataloader(self) -> PromptLoader:
        """Hands each step the stream of prompts, the same on every process; resumable in the middle of an epoch.

        Raises:
            ValueError: there is nothing to train on, or the same batches are asked for again and again.
        """
        if not self.train_prompts:
            raise ValueError(f"{type(self).__name__} has no training prompts: call setup, or give it some")
        if getattr(self.trainer, "overfit_batches", 0):
            raise ValueError("overfit_batches fits no stream of prompts: train on a few prompts instead (max_prompts)")
        if getattr(self.trainer, "reload_dataloaders_every_n_epochs", 0):
            raise ValueError("reload_dataloaders_every_n_epochs would begin the stream of prompts anew: leave it out")
        self._train_loader = PromptLoader(self.train_prompts, batch_size=self.batch_size, seed=self.seed)
        if self._resume:
            self._train_loader.load_state_dict(self._resume)
        return self._train_loader

    def state_dict(self) -> dict[str, Any]:
        """The training loader's, once more: Lightning gives a loader none back where an epoch had ended.

        The stream of prompts runs on through epochs, so that it would begin anew there.
        """
        return {} if self._train_loader is None else self._train_loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep for the training loaders of this fit; there is one more where a schedule asks how long the run is."""
        self._resume = state

    def teardown(self, stage: str) -> None:
        """Let another fit start from the beginning."""
        self._resume = {}

    def val_dataloader(self) -> list[PromptEvalLoader]:
        """Every validation prompt once over all processes; no loader where there are none."""
        return self._evaluation_loaders(self.val_prompts)

    def test_dataloader(self) -> list[PromptEvalLoader]:
        """Every test prompt once over all processes."""
        return self._evaluation_loaders(self.test_prompts)

    def predict_dataloader(self) -> list[PromptEvalLoader]:
        """The same as for testing."""
        return self.test_dataloader()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Prompts hold no tensors; Lightning would copy them field by field, and refuses frozen ones."""
        return batch

    def _evaluation_loaders(self, prompts: list[PromptExample]) -> list[PromptEvalLoader]:
        if not prompts:
            return []
        return [PromptEvalLoader(prompts, batch_size=self.eval_batch_size, rank=self.rank, world_size=self.world_size)]


class PromptDataModule(PromptModule):
    """Prompts and ground truths from files, folders or the hub.

    The prompt is in the column `prompt`, `problem` or `question`, as text or chat messages; the ground truth in
    `reward_model.ground_truth`, `ground_truth`, `answer` or `solution`, as text or a number. `data_source`, `dataset`
    or `subset` name the part of a benchmark, else the file's name does. A prompt's tokens are those that a response is
    generated after. A prompt is on one side of the split, by a seeded hash of its text: adding data moves none.

    Args:
        train: parquet, JSON or JSONL file, a folder of them, owner/name of a hub data set, or a list of these; None to
            evaluate only.
        validation: the same, for validation; its prompts are taken out of training. None to split `train`.
        validation_fraction: share of prompts held out where `validation` is None.
        test: the same, for testing; its prompts are taken out of training too. None for the validation prompts.
        split: of hub data sets, and of folders whose file names tell splits apart (train.jsonl, test.jsonl).
        batch_size: prompts per optimiser step over all processes.
        eval_batch_size: prompts of an evaluation batch of one process, at most.
        max_prompt_length: tokens of a prompt, at most.
        over_length: "drop" longer prompts and count them, or stop with an "error". Never truncated.
        on_bad_rows: "error" stops at the first row that cannot be used, "skip" counts them by reason.
        prompt_format: "chat" by the tokenizer's template, "plain" text, or "auto" for chat where there is a template.
        system_prompt: put before prompts that have no system message.
        chat_template_kwargs: what else the template is told, such as `enable_thinking: false`.
        tokenizer: name or folder; None for that of the module it is used with.
        seed: of split and order.
        max_prompts: use so many prompts of `train` only (drawn with the seed); None for all.

    Raises:
        ValueError: an argument that cannot work; says which.
    """

    def __init__(
        self,
        *,
        train: str | list[str] | None = None,
        validation: str | list[str] | None = None,
        validation_fraction: float = 0.0,
        test: str | list[str] | None = None,
        split: str = "train",
        batch_size: int = 64,
        eval_batch_size: int = 64,
        max_prompt_length: int = 1024,
        over_length: Literal["drop", "error"] = "drop",
        on_bad_rows: OnBadRows = "error",
        prompt_format: PromptFormat = "auto",
        system_prompt: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        seed: int = 0,
        max_prompts: int | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, tokenizer=tokenizer, seed=seed)
        self.sources = Sources(
            train=train, validation=validation, validation_fraction=validation_fraction, test=test, split=split,
            max_prompts=max_prompts, seed=seed,
        )  # fmt: skip
        if over_length not in ("drop", "error"):
            raise ValueError(f"over_length must be drop or error, not {over_length}: a cut prompt is another question")
        check_choice("on_bad_rows", on_bad_rows, OnBadRows)
        check_choice("prompt_format", prompt_format, PromptFormat)
        self.max_prompt_length, self.over_length, self.on_bad_rows = max_prompt_length, over_length, on_bad_rows
        self.prompt_format, self.system_prompt = prompt_format, system_prompt
        self.chat_template_kwargs = chat_template_kwargs
        self.report: dict[str, int] = {}
        self._is_set_up = False

    def prepare_data(self) -> None:
        """Download hub data sets once per machine."""
        self.sources.download()

    def setup(self, stage: str | None = None) -> None:
        """Read, check, split and tokenise; runs once, before any model is built.

        Raises:
            DataError: names file, row and field.
            ValueError: no usable prompt.
        """
        if self._is_set_up:
            return
        left_out = LeftOut(self.on_bad_rows)
        given = self.sources
        rows = given.read(read_prompts, left_out, fitting=stage in (None, "fit"))
        self.train_prompts = self._tokenize(rows.train, left_out)
        self.val_prompts = self._tokenize(rows.validation, left_out)
        self.test_prompts = self.val_prompts if rows.test is None else self._tokenize(rows.test, left_out)
        if not (self.train_prompts if given.train is not None else self.val_prompts or self.test_prompts):
            paths = given.train or given.validation or given.test or "train, validation and test: none is given"
            raise ValueError(f"no usable prompt in {paths}; left out: {dict(left_out.counts)}")
        self.report = dict(left_out.counts)
        left_out.warn(type(self).__name__)
        self._is_set_up = True

    def state_dict(self) -> dict[str, Any]:
        """Where the stream of prompts is, and what says which of them are held out."""
        return {**super().state_dict(), "held_out": self.sources.held_out()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the stream; say so where the run of the checkpoint has trained on what is judged here."""
        stream = {name: value for name, value in state.items() if name != "held_out"}
        if "held_out" in state:  # not in checkpoints of earlier versions
            self.sources.warn_of_trained(state["held_out"], None if self.trainer is None else self.trainer.state.fn)
        super().load_state_dict(stream)

    def _tokenize(self, rows: Sequence[PromptRow], left_out: LeftOut) -> list[PromptExample]:
        examples: list[PromptExample] = []
        for rendered in render_chunks(rows, self._render, left_out):
            texts = [text for _, text in rendered]
            tokens = encode_prompts(self.load_tokenizer(), texts, prompt_format=self.prompt_format)
            examples += [
                PromptExample(
                    ids, with_system_prompt(row.prompt, self.system_prompt), row.ground_truth, row.data_source, row.id
                )
                for (row, _), ids in zip(rendered, tokens, strict=True)
                if self._fits(row, len(ids), left_out)
            ]
        return examples

    def _render(self, row: PromptRow) -> str:
        return render_prompt(
            self.load_tokenizer(),
            row.prompt,
            prompt_format=self.prompt_format,
            system_prompt=self.system_prompt,
            chat_template_kwargs=self.chat_template_kwargs,
        )

    def _fits(self, row: PromptRow, length: int, left_out: LeftOut) -> bool:
        if length <= self.max_prompt_length:
            return True
        if self.over_length == "error":
            problem = f"prompt is longer than max_prompt_length {self.max_prompt_length}; raise it or drop such prompts"
            raise DataError(problem, field="prompt", found=length).at(row.source, row.row)
        left_out.counts[f"dropped: prompt is longer than {self.max_prompt_length} tokens"] += 1
        return False
