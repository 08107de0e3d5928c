"""Scores in a JSONL file that a run which was stopped goes on with; `FILE.settings.json` says what made them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ipvrm_lightning.append_only import AppendOnlyFile, StoreError
from ipvrm_lightning.scoring.encoding import EncodedSolution
from ipvrm_lightning.scoring.results import SolutionScore


def settings_file(path: Path) -> Path:
    """Where the settings of a score file are kept."""
    return path.with_name(f"{path.name}.settings.json")


class ScoreStore(AppendOnlyFile):
    """Appends scores; a context manager that holds the file's lock.

    Args:
        path: of the file; made where it is absent.
        settings: everything that decides the numbers, as JSON; a file never holds scores of two settings.

    Raises:
        ValueError: on entering: another process writes to it, it was made with other settings, or it is broken.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._record = settings_file(path)
        super().__init__(path, lock=path.with_name(f".{path.name}.lock"), hash_field="tokens_hash")

    def holds(self, solution: EncodedSolution) -> bool:
        """Whether this solution is scored.

        Raises:
            StoreError: another one was scored under its id.
        """
        found = self.finished_hash(str(solution.request.id))
        if found is not None and found != _digest(solution):
            raise StoreError(
                f"{self.path}: solution {solution.request.id!r} was scored with another text or other tokens; give it a"
                " new id, or another --out"
            )
        return found is not None

    def append(self, solution: EncodedSolution, score: SolutionScore) -> None:
        """Write a score.

        Raises:
            ValueError: the file is not open, or holds the solution.
        """
        self.write({**score.to_dict(), "tokens_hash": _digest(solution)})

    def check_settings(self, *, used: bool) -> None:
        """Compare with the settings beside the file, or write them.

        Raises:
            StoreError: the file was made with other settings, or nothing says with which.
        """
        if not used:
            self._record.write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")
            return
        try:
            before = dict(json.loads(self._record.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise StoreError(
                f"{self.path}: no {self._record.name} beside it says what made it: use another --out"
            ) from error
        for name in sorted(before.keys() | self.settings.keys()):
            old, new = before.get(name, "not set"), self.settings.get(name, "not set")
            if old != new:
                raise StoreError(f"{self.path} was made with {name} {old}, now it is {new}: use another --out")


def _digest(solution: EncodedSolution) -> str:
    """Hash of a solution's tokens and their steps: the same text, laid out in the same way."""
    example = solution.example
    content = json.dumps([example.input_ids, example.response_start, example.step_ids])
    return hashlib.blake2b(content.encode(), digest_size=12).hexdigest()
