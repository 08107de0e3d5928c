"""Checked rollouts from files, their split by prompt, pairs, and their tokens."""

from __future__ import annotations

import hashlib
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from ipvrm_lightning.data.chat import PromptFormat, Rendered, encode, render
from ipvrm_lightning.data.dataset import TrajectoryDataset
from ipvrm_lightning.data.forms import Rollout, check_row, recognise
from ipvrm_lightning.data.reading import chunks, read_rows
from ipvrm_lightning.data.schema import DataError, Prompt, prompt_key, question_key
from ipvrm_lightning.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

OnBadRows = Literal["error", "skip"]
OverLength = Literal["drop", "truncate"]


class Prompted(Protocol):
    """What has a prompt: a rollout, or a prompt to be answered."""

    @property
    def prompt(self) -> Prompt:
        """Text or messages."""


AnyPrompted = TypeVar("AnyPrompted", bound=Prompted)


@dataclass
class Report:
    """What was left out, by reason.

    Args:
        on_bad_rows: "error" raises the first error, "skip" counts it.
        counts: reason to number of rows or examples.
    """

    on_bad_rows: OnBadRows = "error"
    counts: Counter[str] = field(default_factory=Counter)

    def bad_row(self, error: DataError) -> None:
        """Raise or count.

        Raises:
            DataError: the error itself, unless bad rows are skipped.
        """
        if self.on_bad_rows == "error":
            raise error
        self.counts[f"skipped: {error.reason}"] += 1

    def warn(self, name: str) -> None:
        """One warning with everything that was left out or cut."""
        if self.counts:
            text = "; ".join(f"{count} {reason}" for reason, count in self.counts.most_common())
            log.warning("%s: %s", name, text)


def read_rollouts(
    paths: str | Path | Sequence[str | Path], report: Report, *, split: str = "train"
) -> Iterator[Rollout]:
    """Checked rollouts of all rows; the form is recognised at the first row of each file.

    Args:
        paths: see `read_rows`.
        report: what to do with bad rows.
        split: of hub data sets, and of folders whose file names tell splits apart.

    Raises:
        DataError: a file of no known form (always), a bad row (unless skipped).
    """
    place, columns = "", ()  # type: str, tuple[str, ...]
    for source, number, row in read_rows(paths, split=split):
        if source != place:
            place, columns = source, _recognise(source, number, row)
        try:
            yield from check_row(row, columns, source, number, Path(source).stem)
        except DataError as error:
            report.bad_row(error)


def _recognise(source: str, number: int, row: dict[str, Any]) -> tuple[str, ...]:
    try:
        return recognise(row)
    except DataError as error:
        raise error.at(source, number) from None


def group_of(prompt: Prompt) -> str:
    """Short key of a prompt: a hash of its normalised text."""
    return _short(prompt_key(prompt))


def question_of(prompt: Prompt) -> str:
    """The same, whatever the system message says."""
    return _short(question_key(prompt))


def _short(key: str) -> str:
    return hashlib.blake2b(key.encode(), digest_size=8).hexdigest()


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


def tokenize_rollouts(
    rollouts: Iterable[Rollout],
    tokenizer: PreTrainedTokenizerBase,
    report: Report,
    *,
    max_length: int,
    over_length: OverLength = "drop",
    prompt_format: PromptFormat = "auto",
    system_prompt: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> TrajectoryDataset:
    """Rollouts as token ids.

    Args:
        rollouts: checked.
        tokenizer: a fast one.
        report: bad rows, and how many were dropped or truncated.
        max_length: tokens of prompt and response, at most.
        over_length: "drop" leaves longer ones out, "truncate" cuts the end of the response off (and its end of turn).
            A prompt that leaves no room for a response is left out either way.
        prompt_format: see `chat.render`.
        system_prompt: see `chat.render`.
        chat_template_kwargs: see `chat.render`.

    Returns:
        A data set whose `pairs` are the rows' own pairs, where both halves were kept; None where rows are no pairs.

    Raises:
        DataError: a row's text cannot be rendered (unless skipped).
    """
    layout = {
        "prompt_format": prompt_format,
        "system_prompt": system_prompt,
        "chat_template_kwargs": chat_template_kwargs,
    }
    halves: dict[object, list[int]] = defaultdict(list)
    kept = 0

    def examples() -> Iterator[Example]:
        nonlocal kept
        for chunk in chunks(rollouts):
            for rollout, ids, start in _encode_chunk(chunk, tokenizer, report, layout):
                if len(ids) > max_length:
                    if over_length == "drop" or start >= max_length:
                        what = "prompt alone is longer" if start >= max_length else "longer"
                        report.counts[f"dropped: {what} than {max_length} tokens"] += 1
                        continue
                    report.counts[f"truncated to {max_length} tokens"] += 1
                    ids = ids[:max_length]
                if rollout.pair is not None:
                    halves[rollout.pair].append(kept)
                kept += 1
                group = group_of(rollout.prompt)
                yield Example(ids, start, group, rollout.outcome, metadata={**rollout.metadata, "prompt": group})

    dataset = TrajectoryDataset(examples())
    if halves:
        # check_row puts the chosen response of a row before the rejected one
        dataset.pairs = [(rows[0], rows[1]) for rows in halves.values() if len(rows) == 2]
        if broken := len(halves) - len(dataset.pairs):
            report.counts["pairs lost: one half was dropped"] += broken
    return dataset


def _encode_chunk(
    chunk: list[Rollout],
    tokenizer: PreTrainedTokenizerBase,
    report: Report,
    layout: Mapping[str, Any],
) -> Iterator[tuple[Rollout, list[int], int]]:
    usable: list[tuple[Rollout, Rendered]] = []
    for rollout in chunk:
        try:
            text = render(tokenizer, rollout.prompt, rollout.response, finished=rollout.finished, **layout)
        except DataError as error:
            report.bad_row(error.at(rollout.source, rollout.row))
        else:
            usable.append((rollout, text))
    for (rollout, _), encoded in zip(usable, encode(tokenizer, [text for _, text in usable]), strict=True):
        if isinstance(encoded, DataError):
            report.bad_row(encoded.at(rollout.source, rollout.row))
        else:
            yield rollout, encoded.input_ids, encoded.response_start


def build_pairs(dataset: TrajectoryDataset, *, max_pairs_per_prompt: int, seed: int) -> list[tuple[int, int]]:
    """Rows (chosen, rejected): every right response of a prompt with every wrong one, at most so many per prompt.

    Args:
        dataset: with outcomes; rows that came as pairs are left as they are.
        max_pairs_per_prompt: drawn with the seed where there are more.
        seed: of the draw; a prompt's pairs do not depend on the other prompts.
    """
    taken = {row for pair in dataset.pairs or () for row in pair}
    if dataset.outcomes is None:
        raise ValueError("pairs need outcomes, and these trajectories have none")
    by_group: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    labelled = zip(dataset.group_ids.tolist(), dataset.outcomes.tolist(), strict=True)
    for row, (group, outcome) in enumerate(labelled):
        if row not in taken:
            by_group[group][0 if outcome == 1 else 1].append(row)
    pairs: list[tuple[int, int]] = []
    names = dataset.groups
    for group, (right, wrong) in by_group.items():
        total = len(right) * len(wrong)
        draw = random.Random(f"{seed}-{names[group]}")
        chosen = sorted(draw.sample(range(total), min(total, max_pairs_per_prompt)))
        pairs += [(right[number // len(wrong)], wrong[number % len(wrong)]) for number in chosen]
    return pairs
