"""What data modules that tokenise share, and those of tokenised trajectories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lightning.pytorch import LightningDataModule

from ipvrm_lightning.data.batching import EvalLoader, WindowLoader
from ipvrm_lightning.data.dataset import TrajectoryDataset
from ipvrm_lightning.pretrained import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from typing_extensions import Self


class TokenizerDataModule(LightningDataModule):
    """Tokenizer, seed and process numbers of a data module.

    Args:
        tokenizer: name or folder; None for that of the module it is used with.
        seed: of everything random in the data.

    Attributes:
        layout: how it lays out problems and steps, where its arguments do not say so, for `ipvrm export`: fields of
            `models.exported.Layout`, as {"step_template": "{step}", "separator": " "}.
    """

    layout: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, *, tokenizer: str | None = None, seed: int = 0) -> None:
        super().__init__()
        self.tokenizer, self.seed = tokenizer, seed
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def with_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Use this tokenizer, whatever the arguments said; returns the module itself."""
        self._tokenizer = tokenizer
        return self

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer given, named, or of the module that is being trained.

        Raises:
            ValueError: there is none of these.
        """
        if self._tokenizer is None:
            if self.tokenizer is not None:
                self._tokenizer = load_tokenizer(self.tokenizer)
            else:
                module = None if self.trainer is None else self.trainer.lightning_module
                model: Any = getattr(module, "language_model", None)
                if model is None:
                    raise ValueError(
                        f"{type(self).__name__} needs a tokenizer: give `tokenizer`, or a module that has one"
                    )
                self._tokenizer = model.build_tokenizer()
        return self._tokenizer

    @property
    def rank(self) -> int:
        """This process."""
        return 0 if self.trainer is None else self.trainer.global_rank

    @property
    def world_size(self) -> int:
        """Processes."""
        return 1 if self.trainer is None else self.trainer.world_size


class TokenizedDataModule(TokenizerDataModule):
    """Loaders of a data module of tokenised trajectories.

    Subclasses fill `train_set`, `val_set` and `test_sets` in `setup`.

    Args:
        batch_size: examples (or pairs) per optimiser step over all processes.
        max_tokens: rows times longest row of one forward pass, at most.
        tokenizer: name or folder; None for that of the module it is used with.
        seed: of everything random in the data.
        num_workers: processes that build batches ahead; 0 builds them in the training process.
    """

    #: Constructor arguments that change no result but for rounding: a fit may go on with other ones.
    incidental: ClassVar[frozenset[str]] = frozenset({"max_tokens", "num_workers"})

    def __init__(
        self,
        *,
        batch_size: int = 64,
        max_tokens: int = 16384,
        tokenizer: str | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(tokenizer=tokenizer, seed=seed)
        self.batch_size, self.max_tokens, self.num_workers = batch_size, max_tokens, num_workers
        self.train_set: TrajectoryDataset | None = None
        self.val_set: TrajectoryDataset | None = None
        self.test_sets: list[TrajectoryDataset] = []
        self.train_pairs: list[tuple[int, int]] | None = None

    def train_dataloader(self) -> WindowLoader:
        """Windows, resumable in the middle of an epoch.

        Raises:
            ValueError: nothing to train on, or too little for the processes.
        """
        if self.train_set is None:
            raise ValueError(f"{type(self).__name__} has no training data: call setup, or give it some")
        return WindowLoader(
            self.train_set,
            batch_size=self.batch_size,
            max_tokens=self.max_tokens,
            pairs=self.train_pairs,
            seed=self.seed,
            rank=self.rank,
            world_size=self.world_size,
            num_workers=self.num_workers,
            # a run that is to learn a few windows by heart needs the same ones in every epoch
            reshuffle=not getattr(self.trainer, "overfit_batches", 0),
        )

    def evaluation_loader(self, dataset: TrajectoryDataset, rows: Sequence[int] | None = None) -> EvalLoader:
        """Every example, or those of some rows, once over all processes."""
        return EvalLoader(
            dataset,
            max_tokens=self.max_tokens,
            rank=self.rank,
            world_size=self.world_size,
            num_workers=self.num_workers,
            rows=rows,
        )

    def val_dataloader(self) -> list[EvalLoader]:
        """The validation set's loader; none where there is no validation set."""
        return [] if self.val_set is None else [self.evaluation_loader(self.val_set)]

    def test_dataloader(self) -> list[EvalLoader]:
        """One loader per test set."""
        return [self.evaluation_loader(dataset) for dataset in self.test_sets]

    def predict_dataloader(self) -> list[EvalLoader]:
        """The same as for testing."""
        return self.test_dataloader()
