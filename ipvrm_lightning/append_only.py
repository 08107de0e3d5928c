"""`AppendOnlyFile`: finished work as lines of JSON, so that a run may be killed at any moment and loses none of it.

A line is written whole and forced to the disk. One that was being written is dropped when the file is opened again, and
everything before it stays. One process at a time writes; a file never holds work that was done with two settings.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

F = TypeVar("F", bound="AppendOnlyFile")


class StoreError(ValueError):
    """A file that cannot be added to; its message is one line."""


class AppendOnlyFile(ABC):
    """Adds lines; a context manager that holds the lock.

    Args:
        path: of the file; made where it is absent.
        lock: file whose lock says that somebody writes.
        hash_field: field of a line with the hash of what was worked on; its `id` says what that was called.

    Raises:
        StoreError: on entering: another process writes to it, it was made with other settings, or it is broken.
    """

    def __init__(self, path: Path, *, lock: Path, hash_field: str) -> None:
        from filelock import FileLock

        self.path = path
        self._lock = FileLock(lock)
        self._hash_field = hash_field
        self._finished: dict[str, str] = {}
        self._file: BinaryIO | None = None

    @abstractmethod
    def check_settings(self, *, used: bool) -> None:
        """Compare with what made the file; write that down where it is not `used` yet.

        Raises:
            StoreError: it was made with other settings, or nothing says with which.
        """

    def __enter__(self: F) -> F:
        from filelock import Timeout

        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise StoreError(f"{self.path}: another process is writing to it") from None
        try:
            self.check_settings(used=self.path.exists() and self.path.stat().st_size > 0)
            self._drop_torn_line()
            self._finished = {str(record["id"]): record[self._hash_field] for record in self.records()}
            self._file = self.path.open("ab")
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lock.release()

    def __len__(self) -> int:
        return len(self._finished)

    def records(self) -> Iterator[dict[str, Any]]:
        """The lines, in the order they were finished.

        Raises:
            StoreError: a line is broken, which no killed run leaves behind.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    record = json.loads(line)
                    record["id"], record[self._hash_field]
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise StoreError(f"{self.path}, row {number}: broken line ({error})") from error
                yield record

    def finished_hash(self, name: str) -> str | None:
        """Hash of what was worked on under an id, None where that is not finished."""
        return self._finished.get(name)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a line; it is on the disk when this returns.

        Args:
            record: JSON, with `id` and the hash.

        Raises:
            ValueError: the file is not open, or the id is finished.
        """
        if self._file is None or str(record["id"]) in self._finished:
            raise ValueError(f"{self.path}: not open, or {record['id']!r} is finished")
        self._file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._finished[str(record["id"])] = record[self._hash_field]

    def _drop_torn_line(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb+") as file:
            kept = end = file.seek(0, os.SEEK_END)
            found = -1
            while kept and found < 0:
                start = max(0, kept - 65536)
                file.seek(start)
                found = file.read(kept - start).rfind(b"\n")
                kept = start + found + 1
            if kept < end:
                file.truncate(kept)
                os.fsync(file.fileno())
