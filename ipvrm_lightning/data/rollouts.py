"""Checked rollouts from files, their split by prompt, pairs, and their tokens."""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Literal

from ipvrm_lightning.data.chat import PromptLayout, encode, render
from ipvrm_lightning.data.dataset import TrajectoryDataset
from ipvrm_lightning.data.forms import Rollout, check_row, recognise
from ipvrm_lightning.data.reading import LeftOut, Paths, read_checked, render_chunks
from ipvrm_lightning.data.schema import DataError, group_of
from ipvrm_lightning.data.templates import Rendered
from ipvrm_lightning.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from typing_extensions import Unpack

log = logging.getLogger(__name__)

OverLength = Literal["drop", "truncate"]


def read_rollouts(paths: Paths, left_out: LeftOut, *, split: str = "train") -> Iterator[Rollout]:
    """Checked rollouts of all rows; see `read_checked`."""
    return chain.from_iterable(read_checked(paths, left_out, recognise, check_row, split=split))


def tokenize_rollouts(
    rollouts: Iterable[Rollout],
    tokenizer: PreTrainedTokenizerBase,
    left_out: LeftOut,
    *,
    max_length: int,
    over_length: OverLength = "drop",
    **layout: Unpack[PromptLayout],
) -> TrajectoryDataset:
    """Rollouts as token ids.

    Args:
        rollouts: checked.
        tokenizer: a fast one.
        left_out: bad rows, and how many were dropped or truncated.
        max_length: tokens of prompt and response, at most.
        over_length: "drop" leaves longer ones out, "truncate" cuts the end of the response off (and its end of turn).
            A prompt that leaves no room for a response is left out either way.
        layout: see `chat.render`.

    Returns:
        A data set whose `pairs` are the rows' own pairs, where both halves were kept; None where rows are no pairs.

    Raises:
        DataError: a row's text cannot be rendered (unless skipped).
    """
    halves: dict[object, list[int]] = defaultdict(list)
    kept = 0

    def text_of(rollout: Rollout) -> Rendered:
        return render(tokenizer, rollout.prompt, rollout.response, finished=rollout.finished, **layout)

    def examples() -> Iterator[Example]:
        nonlocal kept
        for rendered in render_chunks(rollouts, text_of, left_out):
            texts = encode(tokenizer, [text for _, text in rendered])
            for (rollout, _), encoded in zip(rendered, texts, strict=True):
                if isinstance(encoded, DataError):
                    left_out.bad_row(encoded.at(rollout.source, rollout.row))
                    continue
                ids, start = encoded.input_ids, encoded.response_start
                if len(ids) > max_length:
                    if over_length == "drop" or start >= max_length:
                        what = "prompt alone is longer" if start >= max_length else "longer"
                        left_out.counts[f"dropped: {what} than {max_length} tokens"] += 1
                        continue
                    left_out.counts[f"truncated to {max_length} tokens"] += 1
                    ids = ids[:max_length]
                if rollout.pair is not None:
                    halves[rollout.pair].append(kept)
                kept += 1
                group = group_of(rollout.prompt)
                yield Example(ids, start, group, rollout.outcome, metadata={**rollout.metadata, "prompt": group})

    dataset = TrajectoryDataset(examples())
    if halves:
        # in the order of `check_row`, chosen before rejected
        dataset.pairs = [(rows[0], rows[1]) for rows in halves.values() if len(rows) == 2]
        if broken := len(halves) - len(dataset.pairs):
            left_out.counts["pairs lost: one half was dropped"] += broken
    return dataset


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
