"""Finished prompts in a folder: `rollouts.jsonl`, one line a prompt, and `manifest.json`, what made them."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ipvrm_lightning.append_only import AppendOnlyFile, StoreError
from ipvrm_lightning.types import PromptExample
from ipvrm_lightning.whole_files import write_atomically

ROLLOUTS, MANIFEST, LOCK = "rollouts.jsonl", "manifest.json", ".lock"
_NOT_SET = "not set"


def prompt_hash(prompt: PromptExample) -> str:
    """Hash of prompt, its tokens and ground truth: the same question, asked in the same way."""
    content = json.dumps([prompt.prompt, prompt.input_ids, prompt.ground_truth], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


class RolloutStore(AppendOnlyFile):
    """Appends finished prompts; a context manager that holds the folder's lock.

    Args:
        folder: made where it is absent.
        settings: everything that decides which responses a prompt gets and how they are judged, as JSON; a store never
            holds rollouts of two settings. Which prompts there are is not part of it: more may be added.
        weights: hash of those that answer, which may be others under the same name; None where it is not known.

    Raises:
        StoreError: on entering: another process writes to the folder, it was made with other settings, or it is broken.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], *, weights: str | None = None) -> None:
        self.folder, self.weights = Path(folder), weights
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        super().__init__(self.folder / ROLLOUTS, lock=self.folder / LOCK, hash_field="prompt_hash")

    def holds(self, prompt: PromptExample) -> bool:
        """Whether this prompt is finished.

        Raises:
            StoreError: another prompt or ground truth was finished under its id.
        """
        found = self.finished_hash(prompt.id)
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
        self.write({"id": prompt.id, "prompt_hash": prompt_hash(prompt), **record})

    def check_settings(self, *, used: bool) -> None:
        """Compare with the manifest, or write it.

        Raises:
            StoreError: the folder was made with other settings, or nothing says with which.
        """
        path = self.folder / MANIFEST
        if not path.exists() or not used:  # a run that answered no prompt, for want of a model say, binds no other
            if used:
                raise StoreError(f"{self.folder} has {ROLLOUTS} but no {MANIFEST}: nothing says what made them")
            made = {"settings": self.settings, "weights": self.weights, "versions": [_versions()]}
            write_atomically(path, json.dumps(made, indent=2))
            return
        try:
            manifest = json.loads(path.read_bytes())
            before = _flat(manifest["settings"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreError(f"{path}: not a manifest ({error})") from error
        now = _flat(self.settings)
        for name in sorted(before.keys() | now.keys()):
            old, new = before.get(name, _NOT_SET), now.get(name, _NOT_SET)
            if old != new:
                raise StoreError(f"{self.folder} was made with {name} {old}, now it is {new}: use another folder")
        known = manifest.get("weights") or self.weights
        if self.weights is not None:
            # manifests of earlier versions have none, or no hash of configs
            if known not in (self.weights, self.weights.partition("-")[0]):
                raise StoreError(
                    f"{self.folder} was made with other weights of the same name, or another config beside them: use"
                    " another folder"
                )
            known = self.weights
        versions = manifest["versions"]
        if (now_running := _versions()) not in versions:
            versions = [*versions, now_running]
        if manifest != (updated := {**manifest, "weights": known, "versions": versions}):
            write_atomically(path, json.dumps(updated, indent=2))


def _flat(settings: Any, name: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    if not isinstance(settings, dict):
        return {name: settings}
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat.update(_flat(value, f"{name}.{key}" if name else key))
    return flat


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("ipvrm-lightning", "torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source folder that is not installed
            found[package] = "not installed"
    return found
