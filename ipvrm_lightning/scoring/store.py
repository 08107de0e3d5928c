"""Scores in a JSONL file that a run which was stopped goes on with; `FILE.settings.json` says what made them.

A line is written whole: one that a killed run left torn is dropped when the file is opened again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ipvrm_lightning.scoring.encoding import EncodedSolution
from ipvrm_lightning.scoring.results import SolutionScore


class ScoreFile:
    """Appends scores; a context manager that holds the file's lock.

    Args:
        path: of the file; made where it is absent.
        settings: everything that decides the numbers, as JSON; a file never holds scores of two settings.

    Raises:
        ValueError: on entering: another process writes to it, it was made with other settings, or it is broken.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._record = path.with_name(f"{path.name}.settings.json")
        self._scored: dict[str, str] = {}
        self._file: BinaryIO | None = None

    def __enter__(self) -> ScoreFile:
        from filelock import FileLock, Timeout

        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"{self.path}: another process is writing scores to it") from None
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]
            self._check_settings(bool(content))
            self._scored = self._read(whole)
            if len(whole) < len(content):
                os.truncate(self.path, len(whole))
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
        return len(self._scored)

    def holds(self, solution: EncodedSolution) -> bool:
        """Whether this solution is scored.

        Raises:
            ValueError: another one was scored under its id.
        """
        found = self._scored.get(str(solution.request.id))
        if found is not None and found != _digest(solution):
            raise ValueError(
                f"{self.path}: solution {solution.request.id!r} was scored with another text or other tokens; give it a"
                " new id, or another --out"
            )
        return found is not None

    def append(self, solution: EncodedSolution, score: SolutionScore) -> None:
        """Write a score.

        Raises:
            ValueError: the file is not open.
        """
        if self._file is None:
            raise ValueError(f"{self.path}: not open")
        line = {**score.to_dict(), "tokens_hash": (digest := _digest(solution))}
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        self._scored[str(solution.request.id)] = digest

    def _check_settings(self, used: bool) -> None:
        if not used:
            self._record.write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")
            return
        try:
            before = json.loads(self._record.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self.path}: no {self._record.name} beside it says what made it: use another --out"
            ) from error
        for name in sorted(before.keys() | self.settings.keys()):
            old, new = before.get(name, "not set"), self.settings.get(name, "not set")
            if old != new:
                raise ValueError(f"{self.path} was made with {name} {old}, now it is {new}: use another --out")

    def _read(self, content: bytes) -> dict[str, str]:
        scored = {}
        for number, line in enumerate(content.splitlines(), 1):
            try:
                record = json.loads(line)
                scored[str(record["id"])] = str(record["tokens_hash"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.path}, row {number}: not a score ({type(error).__name__}: {error})") from error
        return scored


def _digest(solution: EncodedSolution) -> str:
    """Hash of a solution's tokens and their steps: the same text, laid out in the same way."""
    example = solution.example
    content = json.dumps([example.input_ids, example.response_start, example.step_ids])
    return hashlib.blake2b(content.encode(), digest_size=12).hexdigest()
