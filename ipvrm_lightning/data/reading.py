"""Rows of parquet, JSON and JSONL files, folders and hub data sets, each with its place."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, Protocol, TypeVar

from ipvrm_lightning.data.schema import DataError
from ipvrm_lightning.progress import progress

log = logging.getLogger(__name__)

SUFFIXES = (".json", ".jsonl", ".parquet")
#: What file names call a split, as the hub reads them.
_SPLIT_WORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "dev", "val"},
    "test": {"test", "testing", "eval", "evaluation"},
}
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?")

Row = tuple[str, int, dict[str, Any]]
OnBadRows = Literal["error", "skip"]
Paths = str | Path | Sequence[str | Path]
Form = TypeVar("Form")
Checked = TypeVar("Checked")
Text = TypeVar("Text")

_CHUNK = 512


class Placed(Protocol):
    """What was read from a row."""

    @property
    def source(self) -> str:
        """File or hub data set."""

    @property
    def row(self) -> int:
        """Row in it, from 1."""


AnyPlaced = TypeVar("AnyPlaced", bound=Placed)


@dataclass
class LeftOut:
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
            raise error from None
        self.counts[f"skipped: {error.reason}"] += 1

    def warn(self, name: str) -> None:
        """One warning with everything that was left out or cut."""
        if self.counts:
            text = "; ".join(f"{count} {reason}" for reason, count in self.counts.most_common())
            log.warning("%s: %s", name, text)


def render_chunks(
    rows: Iterable[AnyPlaced], render: Callable[[AnyPlaced], Text], left_out: LeftOut
) -> Iterator[list[tuple[AnyPlaced, Text]]]:
    """Rows and their texts, in lists for one call of the tokenizer each: enough for its threads, little memory.

    Args:
        rows: checked.
        render: the text of one.
        left_out: takes those that cannot be rendered.
    """
    remaining = iter(rows)
    with progress(len(rows) if isinstance(rows, Sized) else None, "tokenising", "row") as bar:
        while chunk := list(islice(remaining, _CHUNK)):
            rendered = []
            for row in chunk:
                try:
                    rendered.append((row, render(row)))
                except DataError as error:
                    left_out.bad_row(error.at(row.source, row.row))
            yield rendered
            bar.update(len(chunk))


def is_hub_name(path: str) -> bool:
    """Whether a path is no local file and looks like owner/name, or owner/name:configuration, on the hub."""
    return not Path(path).exists() and bool(_HUB_NAME.fullmatch(path)) and not path.endswith(SUFFIXES)


def find_files(path: str | Path, split: str | None = None) -> list[Path]:
    """A file itself, or the supported files in a folder, or else in the folder's `data`, sorted by name.

    Args:
        path: of a file or a folder.
        split: where the names of a folder's files tell splits apart, as in `train-00000-of-00002.parquet` and
            `test.jsonl`, only the files of this one; None for all files.

    Raises:
        DataError: there is nothing there, nothing that can be read, or no such split.
    """
    given, path = str(path), Path(path)
    if not path.exists():
        raise DataError("no such file or folder (and no owner/name on the hub)", source=given)
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise DataError(f"unknown kind of file '{path.suffix}'; known are {', '.join(SUFFIXES)}", source=str(path))
        return [path]
    files = _readable_files(path) or _readable_files(path / "data")
    if not files:
        within = [folder.name for folder in sorted(path.iterdir()) if _readable_files(folder)]
        hint = f"; give one of its folders: {', '.join(within)}" if within else ""
        raise DataError(f"folder holds no {', '.join(SUFFIXES)} file{hint}", source=str(path))
    return files if split is None else _files_of_split(files, split)


def _readable_files(folder: Path) -> list[Path]:
    # a manifest, such as that of `ipvrm rollout`, says what the other files are
    return sorted(
        file
        for file in (folder.iterdir() if folder.is_dir() else ())
        if file.suffix in SUFFIXES and not file.name.startswith(".") and file.name != "manifest.json"
    )


def _files_of_split(files: list[Path], split: str) -> list[Path]:
    splits = {file: _split_of(file) for file in files}
    names = {name for name in splits.values() if name is not None}
    if len(names) < 2:
        return files
    if split not in names:
        problem = f"folder has the splits {', '.join(sorted(names))}, none of the name '{split}'"
        raise DataError(problem, source=str(files[0].parent))
    kept = [file for file in files if splits[file] == split]
    log.warning("%s: %d of %d files are read, those of the split '%s'", kept[0].parent, len(kept), len(files), split)
    return kept


def _split_of(file: Path) -> str | None:
    """The split that a file's name tells, as the hub reads names; None where it tells none."""
    shard = _SHARD.fullmatch(file.stem)
    name = shard[1] if shard else file.stem
    words = set(re.split(r"[-._ 0-9]+", name.lower()))
    return next((split for split, known in _SPLIT_WORDS.items() if words & known), name if shard else None)


def read_rows(paths: Paths, *, split: str = "train") -> Iterator[Row]:
    """Source, row number and record of every row, in order.

    Rows count from 1; in JSONL the number is that of the line.

    Args:
        paths: a file, a folder, or owner/name of a hub data set where no such path exists (owner/name:configuration
            where it has several); or a list of these.
        split: of hub data sets, and of folders whose file names tell splits apart.

    Raises:
        DataError: nothing there, broken JSON or parquet, a record that is no mapping; names file and row.
    """
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        if is_hub_name(str(path)):
            yield from read_hub(str(path), split)
            continue
        for file in find_files(path, split):
            yield from read_file(file)


def read_checked(
    paths: Paths,
    left_out: LeftOut,
    recognise: Callable[[Mapping[str, Any]], Form],
    check: Callable[[Mapping[str, Any], Form, str, int], Checked],
    *,
    split: str = "train",
) -> Iterator[Checked]:
    """What a check makes of every row, in order.

    Args:
        paths: see `read_rows`.
        left_out: takes bad rows.
        recognise: the form of a file or hub data set, from its first row.
        check: of row, form, source and row number; its errors name the field.
        split: see `read_rows`.

    Raises:
        DataError: a file of no known form (always), a bad row (unless skipped).
    """
    form: Form
    place = ""
    for source, number, row in read_rows(paths, split=split):
        try:
            if source != place:
                form, place = recognise(row), source
        except DataError as error:
            raise error.at(source, number) from None
        try:
            yield check(row, form, source, number)
        except DataError as error:
            left_out.bad_row(error.at(source, number))


def read_file(file: Path) -> Iterator[Row]:
    """Rows of one file; see `read_rows`."""
    if file.suffix == ".parquet":
        rows = _read_parquet(file)
    elif file.suffix == ".json" and _first_character(file) != "{":
        rows = _read_array(file)
    else:
        rows = _read_lines(file)
    for number, record in rows:
        if not isinstance(record, dict):
            raise DataError("record is not a mapping of columns", found=record, source=str(file), row=number)
        yield str(file), number, record


def read_hub(name: str, split: str) -> Iterator[Row]:
    """Rows of a hub data set, downloaded once and read from the cache of `datasets`.

    Raises:
        DataError: the hub has no such data set or split, or cannot be reached.
    """
    from datasets import load_dataset

    path, _, configuration = name.partition(":")
    try:
        rows = load_dataset(path, configuration or None, split=split)
    except Exception as error:  # the kinds differ by cause and version; all of them mean that there are no rows
        reason = shorten(" ".join(str(error).split()), 300, placeholder=" ...")
        problem = f"no such local path, and the hub gave no split '{split}' ({type(error).__name__}: {reason})"
        raise DataError(problem, source=name) from error
    for number, record in enumerate(rows, 1):
        yield name, number, dict(record)


def _read_parquet(file: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(1000):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except Exception as error:  # Arrow's own, and those of Python for what is not text, not a date, not a file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        problem = f"not readable as parquet after row {number} ({reason})"
        raise DataError(problem, source=str(file)) from error


def _read_lines(file: Path) -> Iterator[tuple[int, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError
                text = line.strip().decode(errors="replace")
                problem = f"broken JSON ({error})"
                if number == 1 and file.suffix == ".json":
                    problem = f"neither a list of records nor one record a line ({error})"
                raise DataError(problem, found=text, source=str(file), row=number) from error
            yield number, record


def _read_array(file: Path) -> Iterator[tuple[int, Any]]:
    try:
        records = json.loads(file.read_bytes())
    except json.JSONDecodeError as error:
        raise DataError(f"broken JSON in line {error.lineno} ({error.msg})", source=str(file)) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"broken JSON ({error})", source=str(file)) from error
    if not isinstance(records, list):
        raise DataError("neither a list of records nor one record a line", found=records, source=str(file))
    yield from enumerate(records, 1)


def _first_character(file: Path) -> str:
    with file.open("rb") as stream:
        return stream.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1].decode(errors="replace")
