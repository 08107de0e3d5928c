"""Finished prompts in a folder: `rollouts.jsonl`, one line a prompt, and `manifest.json`, what made them.

A line is written whole and forced to the disk, so that a run may be killed at any moment: the line that was being
written is dropped when the store is opened again, and everything before it stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ipvrm_lightning.types import PromptExample

ROLLOUTS, MANIFEST, LOCK = "rollouts.jsonl", "manifest.json", ".lock"
_NOT_SET = "not set"


class StoreError(ValueError):
    """A store that cannot be used; its message is one line."""


def prompt_hash(prompt: PromptExample) -> str:
    """Hash of prompt, its tokens and ground truth: the same question, asked in the same way."""
    content = json.dumps([prompt.prompt, prompt.input_ids, prompt.ground_truth], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


class RolloutStore:
    """Appends finished prompts; a context manager that holds the folder's lock.

    Args:
        folder: made where it is absent.
        settings: everything that decides which responses a prompt gets and how they are judged, as JSON; a store never
            holds rollouts of two settings. Which prompts there are is not part of it: more may be added.

    Raises:
        StoreError: on entering: another process writes to the folder, it was made with other settings, or it is broken.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        from filelock import FileLock

        self.folder = Path(folder)
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._lock = FileLock(self.folder / LOCK)
        self._file: BinaryIO | None = None
        self._finished: dict[str, str] = {}

    @property
    def path(self) -> Path:
        """The file of rollouts, in the form that `TrajectoryDataModule` reads."""
        return self.folder / ROLLOUTS

    def __enter__(self) -> RolloutStore:
        from filelock import Timeout

        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise StoreError(f"{self.folder}: another process is writing rollouts here") from None
        try:
            self._check_manifest()
            self._drop_torn_line()
            self._finished = {record["id"]: record["prompt_hash"] for record in self.records()}
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

    def holds(self, prompt: PromptExample) -> bool:
        """Whether this prompt is finished.

        Raises:
            StoreError: another prompt or ground truth was finished under its id.
        """
        found = self._finished.get(prompt.id)
        if found is not None and found != prompt_hash(prompt):
            raise StoreError(
                f"{self.path}: prompt {prompt.id!r} was finished with another text, other tokens or another ground"
                " truth; give it a new id, or start a new folder"
            )
        return found is not None

    def append(self, prompt: PromptExample, record: Mapping[str, Any]) -> None:
        """Write a finished prompt; it is on the disk when this returns.

        Args:
            prompt: what was answered.
            record: the rest of its line, JSON.

        Raises:
            ValueError: the store is not open, or holds the prompt.
        """
        if self._file is None or self.holds(prompt):
            raise ValueError(f"{self.path}: not open, or prompt {prompt.id!r} is finished")
        line = {"id": prompt.id, "prompt_hash": prompt_hash(prompt), **record}
        self._file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._finished[prompt.id] = line["prompt_hash"]

    def records(self) -> Iterator[dict[str, Any]]:
        """The finished prompts' lines, in the order they were finished.

        Raises:
            StoreError: a line is broken, which no killed run leaves behind.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    record = json.loads(line)
                    record["id"], record["prompt_hash"]
                except (ValueError, KeyError, TypeError) as error:
                    raise StoreError(f"{self.path}, row {number}: broken line ({error})") from error
                yield record

    def _check_manifest(self) -> None:
        path = self.folder / MANIFEST
        empty = not self.path.exists() or not self.path.stat().st_size
        if not path.exists() or empty:  # a run that answered no prompt, for want of a model say, binds no other
            if not empty:
                raise StoreError(f"{self.folder} has {ROLLOUTS} but no {MANIFEST}: nothing says what made them")
            _replace(path, {"settings": self.settings, "versions": [_versions()]})
            return
        try:
            manifest = json.loads(path.read_bytes())
            before = _flat(manifest["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path}: not a manifest ({error})") from error
        now = _flat(self.settings)
        for name in sorted(before.keys() | now.keys()):
            old, new = before.get(name, _NOT_SET), now.get(name, _NOT_SET)
            if old != new:
                raise StoreError(f"{self.folder} was made with {name} {old}, now it is {new}: use another folder")
        if _versions() not in manifest["versions"]:
            _replace(path, {**manifest, "versions": [*manifest["versions"], _versions()]})

    def _drop_torn_line(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb+") as file:
            end = file.seek(0, os.SEEK_END)
            kept = end
            while kept:
                start = max(0, kept - 65536)
                file.seek(start)
                found = file.read(kept - start).rfind(b"\n")
                kept = start + found + 1 if found >= 0 else start
                if found >= 0:
                    break
            if kept < end:
                file.truncate(kept)
                os.fsync(file.fileno())


def _flat(settings: Any, name: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    if not isinstance(settings, dict) or not settings:
        return {name: settings}
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat.update(_flat(value, f"{name}.{key}" if name else key))
    return flat


def _replace(path: Path, content: Mapping[str, Any]) -> None:
    """Write a whole JSON file or nothing."""
    temporary = path.with_suffix(".new")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("ipvrm-lightning", "torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source folder that is not installed
            found[package] = "not installed"
    return found
