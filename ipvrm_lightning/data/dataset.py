"""Tokenised trajectories in compact arrays, and rows of them as one padded batch."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ipvrm_lightning.types import Example, TrajectoryBatch

_UNKNOWN_OUTCOME = -1
_UNKNOWN_LABEL = -2


class TrajectoryDataset(Dataset[Example]):
    """Tokenised trajectories in flat arrays: four bytes a token, and what `metadata` takes, half a kilobyte a row.

    Args:
        examples: any iterable, read once; may be a generator.
        pairs: rows (chosen, rejected) where the data came as pairs.

    Attributes:
        lengths: tokens of each example, [N].
        response_starts: its first response token, [N].
        response_lengths: its response tokens, [N].
        group_ids: its place in `groups`, which holds prompt keys, [N].
        outcomes: 1 right, 0 wrong, [N]; None where they are not known.
        step_labels: first wrong step, -1 for none, [N]; None where they are not known.

    Raises:
        ValueError: an example has no prompt or no response token, a per-token field of the wrong length, or an outcome
            that is neither 0 nor 1, or only some examples carry `outcome`, `step_ids` or `step_label`.
    """

    def __init__(self, examples: Iterable[Example], pairs: Sequence[tuple[int, int]] | None = None) -> None:
        ids, starts, outcomes, labels = array("i"), array("i"), array("b"), array("i")
        steps, values, offsets = array("i"), array("f"), array("q", [0])
        numbers: dict[str, int] = {}
        self._metadata: list[dict[str, Any]] = []
        groups, with_steps, response_tokens = array("i"), 0, 0
        for row, example in enumerate(examples):
            _check(example, row)
            ids.extend(example.input_ids)
            offsets.append(len(ids))
            starts.append(example.response_start)
            outcomes.append(_UNKNOWN_OUTCOME if example.outcome is None else int(example.outcome))
            labels.append(_UNKNOWN_LABEL if example.step_label is None else example.step_label)
            groups.append(numbers.setdefault(example.group, len(numbers)))
            with_steps += example.step_ids is not None
            steps.extend(example.step_ids or ())
            response_tokens += example.response_length
            if example.true_values is not None:  # those of examples without are not known
                values.extend([math.nan] * (response_tokens - example.response_length - len(values)))
                values.extend(example.true_values)
            self._metadata.append(example.metadata)
        self.pairs = None if pairs is None else [(int(chosen), int(rejected)) for chosen, rejected in pairs]
        self._ids = _to_numpy(ids, np.int32)
        self._offsets = _to_numpy(offsets, np.int64)
        self._fingerprint: str | None = None
        self.response_starts = _to_numpy(starts, np.int32)
        self.lengths = np.diff(self._offsets)
        self.group_ids, self.groups = _to_numpy(groups, np.int32), list(numbers)
        self.response_lengths = self.lengths - self.response_starts
        self._response_offsets = np.concatenate([[0], np.cumsum(self.response_lengths)])
        size = len(self)
        self.outcomes = _all_or_none(_to_numpy(outcomes, np.int8), _UNKNOWN_OUTCOME, "outcome")
        self.step_labels = _all_or_none(_to_numpy(labels, np.int32), _UNKNOWN_LABEL, "step_label")
        if with_steps not in (0, size):
            raise ValueError(f"{with_steps} of {size} examples have step_ids: give them to all or none")
        self._step_ids = _to_numpy(steps, np.int32) if with_steps else None
        if values:
            values.extend([math.nan] * (response_tokens - len(values)))
        self._true_values = _to_numpy(values, np.float32) if values else None

    def __len__(self) -> int:
        return len(self._metadata)

    def __getitem__(self, index: int) -> Example:
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        index %= len(self)
        steps, values = self.response_field(index, "step_ids"), self.response_field(index, "true_values")
        return Example(
            input_ids=self.input_ids(index).tolist(),
            response_start=int(self.response_starts[index]),
            group=self.groups[self.group_ids[index]],
            outcome=None if self.outcomes is None else int(self.outcomes[index]),
            step_ids=None if steps is None else steps.tolist(),
            step_label=None if self.step_labels is None else int(self.step_labels[index]),
            true_values=None if values is None else values.tolist(),
            metadata=self._metadata[index],
        )

    @property
    def largest_id(self) -> int:
        """The largest token id, -1 where there is none: what a model's vocabulary has to hold."""
        return int(self._ids.max(initial=-1))

    def input_ids(self, index: int) -> np.ndarray:
        """Token ids of one example, [L]."""
        return self._ids[self._offsets[index] : self._offsets[index + 1]]

    def response_field(self, index: int, name: str) -> np.ndarray | None:
        """`step_ids` or `true_values` of one example, [T], None where the data set has none."""
        values = self._step_ids if name == "step_ids" else self._true_values
        return None if values is None else values[self._response_offsets[index] : self._response_offsets[index + 1]]

    def metadata(self, index: int) -> dict[str, Any]:
        """What reports need to know of one example."""
        return self._metadata[index]

    def fingerprint(self) -> str:
        """Hash of tokens, response starts and outcomes: equal for equal data, in the same order."""
        if self._fingerprint is None:
            digest = hashlib.blake2b(digest_size=16)
            for values in (self._ids, self._offsets, self.response_starts, self.outcomes):
                digest.update(b"none" if values is None else np.ascontiguousarray(values).data)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def _to_numpy(values: array[Any], dtype: Any) -> np.ndarray:
    return np.asarray(values, dtype=dtype)  # without a copy where the type is the array's


def _check(example: Example, row: int) -> None:
    if not 1 <= example.response_start < len(example.input_ids):
        raise ValueError(
            f"example {row}: response_start {example.response_start} of {len(example.input_ids)} tokens leaves"
            " no prompt or no response"
        )
    if example.outcome not in (0, 1, None):
        raise ValueError(f"example {row}: outcome must be 0, 1 or None, found {example.outcome!r}")
    for name in ("step_ids", "true_values"):
        values = getattr(example, name)
        if values is not None and len(values) != example.response_length:
            raise ValueError(f"example {row}: {len(values)} {name} for {example.response_length} response tokens")


def _all_or_none(values: np.ndarray, unknown: int, name: str) -> np.ndarray | None:
    missing = int((values == unknown).sum())
    if missing == len(values):
        return None
    if missing:
        raise ValueError(f"{missing} of {len(values)} examples have no {name}: give it to all or none")
    return values


def collate(
    dataset: TrajectoryDataset, indices: Sequence[int], pairs: Sequence[tuple[int, int]] | None = None
) -> TrajectoryBatch:
    """Rows of a data set, padded on the right with id 0 (lengths, never ids, say what is padding).

    Args:
        dataset: where the rows come from.
        indices: rows of the batch, [B].
        pairs: (chosen, rejected) as positions in `indices`, not as rows of the data set.

    Returns:
        A batch whose optional fields are those that the data set has.
    """
    rows = torch.as_tensor(np.asarray(indices, dtype=np.int64))
    lengths = torch.from_numpy(dataset.lengths[rows.numpy()].astype(np.int64))
    starts = torch.from_numpy(dataset.response_starts[rows.numpy()].astype(np.int64))
    input_ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for position, row in enumerate(indices):
        ids = dataset.input_ids(row)
        input_ids[position, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
    outcomes, labels = dataset.outcomes, dataset.step_labels
    return TrajectoryBatch(
        input_ids=input_ids,
        lengths=lengths,
        response_starts=starts,
        index=rows,
        outcomes=None if outcomes is None else torch.from_numpy(outcomes[rows.numpy()].astype(np.float32)),
        group_ids=torch.from_numpy(dataset.group_ids[rows.numpy()].astype(np.int64)),
        pairs=None if pairs is None else torch.tensor(pairs, dtype=torch.long).reshape(-1, 2),
        step_ids=_pad_field(dataset, indices, "step_ids", -1, torch.long),
        step_labels=None if labels is None else torch.from_numpy(labels[rows.numpy()].astype(np.int64)),
        true_values=_pad_field(dataset, indices, "true_values", float("nan"), torch.float32),
    )


def collate_pairs(dataset: TrajectoryDataset, pairs: Sequence[tuple[int, int]]) -> TrajectoryBatch:
    """The rows that some pairs (chosen, rejected) use, each once, with the pairs as positions among them."""
    rows = list(dict.fromkeys(row for pair in pairs for row in pair))
    place = {row: position for position, row in enumerate(rows)}
    return collate(dataset, rows, [(place[chosen], place[rejected]) for chosen, rejected in pairs])


def _pad_field(
    dataset: TrajectoryDataset, indices: Sequence[int], name: str, padding: float, dtype: torch.dtype
) -> Tensor | None:
    fields = [dataset.response_field(index, name) for index in indices]
    if any(field is None for field in fields):
        return None
    values = [torch.tensor(field, dtype=dtype) for field in fields]
    return torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=padding)
