"""Classes of one's own: an objective, a metric with its callback, a data module (tutorial 3), a reference (tutorial 6).

Nothing in the package knows this file. A config names its classes by `class_path`; Python has to find the file, so its
folder must be on the path: `PYTHONPATH=tutorials ipvrm fit --config ...`.
"""

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ipvrm_lightning import functional
from ipvrm_lightning.data import DataError, TokenizedDataModule, TrajectoryDataset, encode_example
from ipvrm_lightning.models import LanguageModelFactory, PretrainedLanguageModel, Reference
from ipvrm_lightning.models.logprobs import response_scores
from ipvrm_lightning.models.output_head import DEFAULT_CHUNK_SIZE
from ipvrm_lightning.objectives import Objective
from ipvrm_lightning.types import Example, TrajectoryBatch


class BrierValues(Objective):
    """Every prefix is trained on the squared difference of its probability and the outcome.

    With z = V/t as in IPVRM, a response's loss is the mean over its prefixes of (sigmoid(z) - outcome)^2. There is no
    margin: a value that is right already is not pushed further, and the best value of a prefix is the true probability.

    Args:
        beta: scale of the log-ratios.
    """

    unit = "sequences"  # the loss is a mean over responses, however many tokens each has
    score_source = "log_ratio"  # it reads log p_model - log p_reference of each token

    def __init__(self, *, beta: float = 10.0) -> None:
        super().__init__()
        self.beta = beta  # under the argument's own name: checkpoints keep it, and refuse another

    def forward(self, scores: Tensor, mask: Tensor, batch: TrajectoryBatch) -> Tensor:
        """Mean over the responses of the batch; scores and mask are [B, T]."""
        squares = (self.prefix_logits(scores, mask).sigmoid() - batch.outcomes[:, None]).square()
        return functional.masked_mean(squares, mask, dim=-1).mean()

    def prefix_logits(self, scores: Tensor, mask: Tensor) -> Tensor:
        """The logit that a prefix ends right, [B, T]: validation, calibration and best-of-n read this."""
        return functional.normalized_values(scores, mask, beta=self.beta)


class PairAccuracy(Metric):
    """Share of pairs, a right and a wrong response to the *same* prompt, in which the right one has the higher value.

    The AUROC compares responses of different prompts too, and so rewards a model that knows which prompts are easy.
    This does not. Equal values count one half. States are gathered from all processes before the share is computed.
    """

    full_state_update = False
    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("values", "outcomes", "groups"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, values: Tensor, outcomes: Tensor, groups: Tensor) -> None:
        """Add responses: final value, 1 right or 0 wrong, and the number of the prompt, [B] each."""
        self.values.append(values.detach())
        self.outcomes.append(outcomes)
        self.groups.append(groups)

    def compute(self) -> Tensor:
        """The share; NaN where no prompt has both outcomes."""
        values, outcomes, groups = (dim_zero_cat(state) for state in (self.values, self.outcomes, self.groups))
        right, wrong = outcomes > 0.5, outcomes < 0.5
        same_prompt = groups[right][:, None] == groups[wrong][None, :]
        difference = values[right][:, None] - values[wrong][None, :]
        wins = (difference > 0).float() + 0.5 * (difference == 0).float()
        return wins[same_prompt].mean()


class ValidationMetric(Callback):
    """Feeds a metric with every validation batch and logs it.

    A callback needs no change of the module. It costs one more forward pass of the validation data.

    Args:
        metric: updated with final values, outcomes and prompt numbers.
        name: to log it under.
    """

    def __init__(self, *, metric: Metric, name: str = "val/own") -> None:
        self.metric, self.name = metric, name

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew, on the device of the module."""
        self.metric.to(pl_module.device).reset()

    @torch.no_grad()
    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: TrajectoryBatch, *args: Any
    ) -> None:
        """Add the value of each whole response."""
        scores, mask = pl_module.token_scores(batch)
        values = pl_module.objective.prefix_logits(scores, mask)
        finals = values.gather(1, (batch.response_lengths - 1)[:, None]).squeeze(1)
        self.metric.update(finals, batch.outcomes, batch.group_ids)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the metric; `compute` has gathered all processes already."""
        pl_module.log(self.name, self.metric.compute(), sync_dist=True)


class CSVRollouts(TokenizedDataModule):
    """Rollouts from a spreadsheet: one response a row, with its question and whether it is correct.

    `TokenizedDataModule` makes loaders of what `setup` puts into `train_set` and `val_set`.

    Args:
        path: CSV file with a header.
        prompt_column: of the question.
        response_column: of the response.
        correct_column: of the outcome, "yes" or "no".
        validation_prompts: the first so many questions are held out.
        batch_size: responses per optimiser step over all processes.
        max_tokens: rows times longest row of one forward pass, at most.
        tokenizer: name or folder; None for that of the module it is used with.
        seed: of the order.
    """

    OUTCOMES = {"yes": 1, "no": 0}  # noqa: RUF012

    def __init__(
        self,
        *,
        path: str,
        prompt_column: str = "question",
        response_column: str = "response",
        correct_column: str = "correct",
        validation_prompts: int = 10,
        batch_size: int = 32,
        max_tokens: int = 8192,
        tokenizer: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, max_tokens=max_tokens, tokenizer=tokenizer, seed=seed)
        self.path = path
        self.columns = (prompt_column, response_column, correct_column)
        self.validation_prompts = validation_prompts

    def setup(self, stage: str | None = None) -> None:
        """Read, check and tokenise; Lightning calls it more than once, so it runs the first time alone.

        Raises:
            DataError: names file, row and column; `ipvrm` prints it as one line.
        """
        if self.train_set is not None:
            return
        by_prompt: dict[str, list[Example]] = defaultdict(list)
        with Path(self.path).open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.DictReader(file), start=2):  # row 1 is the header
                example = self._example(row, number)
                by_prompt[example.group].append(example)
        groups = list(by_prompt.values())
        held_out, rest = groups[: self.validation_prompts], groups[self.validation_prompts :]
        self.val_set = TrajectoryDataset(example for group in held_out for example in group)
        self.test_sets = [self.val_set]
        self.train_set = TrajectoryDataset(example for group in rest for example in group)

    def _example(self, row: dict[str, str], number: int) -> Example:
        for column in self.columns:
            if not row.get(column):
                raise DataError("missing or empty", field=column, source=self.path, row=number)
        prompt, response, correct = (row[column] for column in self.columns)
        if correct not in self.OUTCOMES:
            raise DataError("neither yes nor no", field=self.columns[2], found=correct, source=self.path, row=number)
        # applies the chat template where there is one, and says where the response begins
        input_ids, response_start = encode_example(self.load_tokenizer(), prompt, response)
        metadata = {"id": f"row-{number}", "subset": Path(self.path).stem, "prompt": prompt}
        return Example(input_ids, response_start, group=prompt, outcome=self.OUTCOMES[correct], metadata=metadata)


class AnotherModel(Reference):
    """A reference that is a model of its own, for pairs that were trained elsewhere (tutorial 6).

    Args:
        name: repository on the hub, or a folder.
    """

    def __init__(self, *, name: str) -> None:
        self.language_model = PretrainedLanguageModel(name=name)
        self._model: list[Any] = []  # in a list, so that it is no part of the module and of its checkpoints

    def setup(self, factory: LanguageModelFactory, model: torch.nn.Module) -> None:
        """Refuse a pair with different tokenizers: a token id would mean two things.

        Raises:
            ValueError: names both.
        """
        own, other = (one.build_tokenizer().get_vocab() for one in (factory, self.language_model))
        if own != other:
            raise ValueError(
                f"the tokenizer of {self.language_model.name} is another one than that of"
                f" {getattr(factory, 'name', type(factory).__name__)}"
            )

    @torch.no_grad()
    def log_probs(self, batch: TrajectoryBatch, *, chunk_size: int = DEFAULT_CHUNK_SIZE) -> Tensor:
        """Log-probabilities of the response tokens, 0 at padding, [B, T]; the model is loaded on first use."""
        if not self._model:
            built: Any = self.language_model.build_model()
            self._model = [built.requires_grad_(False).eval().to(batch.input_ids.device)]
        return response_scores(self._model[0], batch, chunk_size=chunk_size).log_probs

    def release(self) -> None:
        """Drop the model."""
        self._model = []
