"""Where a data module's training, validation and test rows come from, read and kept apart by prompt."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from ipvrm_lightning.data.reading import LeftOut, Paths, is_hub_name, read_hub
from ipvrm_lightning.data.schema import Prompt, check_limit, group_of, question_of

log = logging.getLogger(__name__)


class Prompted(Protocol):
    """What has a prompt: a rollout, or a prompt to be answered."""

    @property
    def prompt(self) -> Prompt:
        """Text or messages."""


AnyPrompted = TypeVar("AnyPrompted", bound=Prompted)
Row = TypeVar("Row", bound=Prompted, covariant=True)


class Reader(Protocol[Row]):
    """Reads checked rows: `read_rollouts`, `read_prompts`."""

    def __call__(self, paths: Paths, left_out: LeftOut, *, split: str) -> Iterable[Row]:
        """Rows of all paths."""


@dataclass(frozen=True)
class Splits(Generic[AnyPrompted]):
    """Rows of each part; `test` is None where no source is named for it."""

    train: list[AnyPrompted]
    validation: list[AnyPrompted]
    test: list[AnyPrompted] | None


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Files, folders or hub data sets of each part.

    Args:
        train: paths or names; None where nothing is trained.
        validation: the same; None to split `train`.
        validation_fraction: share of prompts held out where `validation` is None.
        test: the same; None for none.
        split: of hub data sets, and of folders whose file names tell splits apart.
        max_prompts: use so many prompts of `train` only; None for all.
        seed: of what is held out and of which prompts are used.

    Raises:
        ValueError: a share that is none, or no prompt to use.
    """

    train: str | list[str] | None
    validation: str | list[str] | None
    validation_fraction: float
    test: str | list[str] | None
    split: str
    max_prompts: int | None
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be in [0, 1), not {self.validation_fraction}")
        check_limit("max_prompts", self.max_prompts)

    def download(self) -> None:
        """Download hub data sets."""
        for paths in (self.train, self.validation, self.test):
            for path in [paths] if isinstance(paths, str) else paths or []:
                if is_hub_name(path):
                    next(read_hub(path, self.split), None)

    def read(self, reader: Reader[AnyPrompted], left_out: LeftOut, *, fitting: bool = True) -> Splits[AnyPrompted]:
        """Rows of all parts. No prompt that is judged, in validation or test, stays in training.

        Args:
            reader: of rows.
            left_out: bad rows, and how many were taken out of training.
            fitting: training follows; else it was before, maybe of a run that did not know what is judged now.
        """
        train = [] if self.train is None else list(reader(self.train, left_out, split=self.split))
        train = limit_prompts(train, self.max_prompts, self.seed)
        if self.validation is None:
            train, validation = split_by_prompt(train, self.validation_fraction, self.seed)
            _warn_of_none_held_out(train, validation, self.validation_fraction)
        else:
            validation = list(reader(self.validation, left_out, split=self.split))
            train = _without(train, validation, "validation", left_out, fitting)
        if self.test is None:
            return Splits(train, validation, None)
        test = list(reader(self.test, left_out, split=self.split))
        return Splits(_without(train, test, "test", left_out, fitting), validation, test)

    def held_out(self) -> dict[str, Any]:
        """What says which prompts of `train` are held out, for checkpoints: primitives only."""
        fraction = self.validation_fraction if self.validation is None else 0.0
        return {"seed": self.seed, "validation_fraction": fraction}

    def warn_of_trained(self, fitted: Mapping[str, Any], command: str | None) -> None:
        """Say so where what is judged is held out by this split and was not by that of the fit.

        Args:
            fitted: `held_out` of the fit that a checkpoint is of.
            command: what is run on the checkpoint: `fit`, `validate`, `test` or `predict`; None where nothing is.
        """
        own = self.held_out()
        judged = command == "validate" or (command in ("test", "predict") and self.test is None)
        # a larger share of the same draw holds out all of a smaller one
        other = own["seed"] != fitted["seed"] or own["validation_fraction"] > fitted["validation_fraction"]
        if judged and own["validation_fraction"] and other:
            there, here = (", ".join(f"data.{name} {value}" for name, value in one.items()) for one in (fitted, own))
            log.warning(
                "the fit held out other prompts (%s; here %s): it has trained on some of what is judged", there, here
            )


def share(group: str, seed: int, purpose: str) -> float:
    """A number in [0, 1) that depends on prompt, seed and purpose alone: adding data moves no prompt."""
    digest = hashlib.blake2b(f"{purpose}-{seed}-{group}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def split_by_prompt(
    rollouts: Sequence[AnyPrompted], fraction: float, seed: int
) -> tuple[list[AnyPrompted], list[AnyPrompted]]:
    """Training and validation rollouts; all of a question on one side, whatever other questions there are."""
    train: list[AnyPrompted] = []
    validation: list[AnyPrompted] = []
    for rollout in rollouts:
        held_out = share(question_of(rollout.prompt), seed, "validation") < fraction
        (validation if held_out else train).append(rollout)
    return train, validation


def limit_prompts(rollouts: Sequence[AnyPrompted], count: int | None, seed: int) -> list[AnyPrompted]:
    """Rollouts of `count` prompts, drawn by a seeded hash; more prompts keep those drawn before."""
    if count is None:
        return list(rollouts)
    groups = sorted({group_of(rollout.prompt) for rollout in rollouts}, key=lambda group: share(group, seed, "limit"))
    kept = set(groups[:count])
    return [rollout for rollout in rollouts if group_of(rollout.prompt) in kept]


def _warn_of_none_held_out(train: Sequence[Prompted], validation: Sequence[Prompted], fraction: float) -> None:
    if fraction and train and not validation:
        prompts = len({question_of(row.prompt) for row in train})
        log.warning("no prompt was held out (%g of %d prompts); raise validation_fraction", fraction, prompts)


def _without(
    rows: list[AnyPrompted], held_out: list[AnyPrompted], name: str, left_out: LeftOut, fitting: bool
) -> list[AnyPrompted]:
    questions = {question_of(row.prompt) for row in held_out}
    kept = [row for row in rows if question_of(row.prompt) not in questions]
    if leaked := len(rows) - len(kept):
        reason = (
            f"taken out of training: prompt is in {name}"
            if fitting
            else f"of train with a prompt that is in {name}: a run that was fitted without data.{name} has seen it"
        )
        left_out.counts[reason] += leaked
    return kept
