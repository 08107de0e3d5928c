"""The reward model that a DistRL run starts from: a checkpoint of `ipvrm fit`, or what `ipvrm export` made of one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from ipvrm_lightning.models.checkpoints import check_same_settings, newest_checkpoint, origin, read_checkpoint
from ipvrm_lightning.models.exported import CONFIG_NAME, read_exported_config
from ipvrm_lightning.models.language_model import LanguageModelFactory
from ipvrm_lightning.models.roles import Roles
from ipvrm_lightning.objectives import Objective
from ipvrm_lightning.pretrained import add_content, check_place, find_file, local_folder


class InitialReward(NamedTuple):
    """A trained reward model whose weights are not loaded yet.

    Args:
        name: what errors call it.
        origin: says what was taken, for whoever named a folder.
        files: its weights.
        objective: that trained it, as it described itself.
        settings: of its run, as far as they are known: `language_model`, and `base` for the weights that it began with.
        place: loads its weights into the roles of a run.
        stamps: of the files when they were found; they may be written anew before they are loaded or hashed.
    """

    name: str
    origin: str
    files: Sequence[Path]
    objective: Mapping[str, Any]
    settings: Mapping[str, Any]
    place: Callable[[Roles], None]
    stamps: list[tuple[int, ...]]

    def check(self, objective: Objective, factory: LanguageModelFactory) -> None:
        """Refuse another objective than a run's, and other settings of the language model.

        Args:
            objective: of the run's reward model.
            factory: of its policy.

        Raises:
            ValueError: names the first thing that differs.
        """
        own, trained_by = objective.describe(), self.objective
        trained = (trained_by["class_path"], trained_by["init_args"].get("beta"))
        if trained != (own["class_path"], own["init_args"].get("beta")):
            raise ValueError(
                f"{self.name} was trained by {trained[0]} with beta {trained[1]},"
                f" reward.objective is {own['class_path']} with beta {own['init_args'].get('beta')}"
            )
        known = {key: value for key, value in self.settings.items() if key == "language_model"}
        check_same_settings({"language_model": factory.describe()}, known, what=self.name)

    def load(self, roles: Roles, base: str | None) -> None:
        """Load the weights.

        Args:
            roles: of the run; hold a reward model.
            base: hash of the weights that policy and reward model begin with.

        Raises:
            ValueError: it was trained from other weights, does not fit the model, or was written anew meanwhile.
        """
        if self.settings.get("base", base) != base:  # its log-ratios would hold the difference of the two models
            raise ValueError(
                f"{self.name} was trained from other weights than those that the policy starts from: give both runs the"
                " same language_model"
            )
        self.place(roles)
        rank_zero_info(f"reward.checkpoint: {self.origin}")

    def identity(self) -> str:
        """Name and hash of the weights' files.

        Raises:
            ValueError: they were written anew since they were found.
        """
        digest = hashlib.blake2b(digest_size=8)
        for path in self.files:
            add_content(digest, path)
        _check_unchanged(self.name, self.files, self.stamps)
        return f"{self.files[0].name} {digest.hexdigest()}"


def _check_unchanged(name: str, files: Sequence[Path], stamps: list[tuple[int, ...]]) -> None:
    if _stamps(files) != stamps:
        raise ValueError(f"{name} was written anew while this run began: start it again, once that is done")


def _stamps(files: Sequence[Path]) -> list[tuple[int, ...]]:
    # no inodes, which file systems over a network may number anew
    return [(found.st_size, found.st_mtime_ns) for found in map(Path.stat, files)]


def find_initial_reward(given: str) -> InitialReward:
    """What `reward.checkpoint` names.

    Args:
        given: a checkpoint, a folder of runs of `ipvrm fit`, or an export: a folder, or a repository on the hub.

    Raises:
        FileNotFoundError: there is no such thing.
        ValueError: it cannot be read, or is no reward model that `ipvrm fit` has trained.
    """
    try:
        check_place(given)
    except OSError as error:
        raise FileNotFoundError(f"reward.checkpoint: {error}; run `ipvrm fit` first") from error
    if find_file(given, CONFIG_NAME) is not None:
        return _of_export(given)
    path = Path(given)
    return _of_checkpoint(path if path.is_file() else newest_checkpoint(path, what="reward.checkpoint"))


def _of_checkpoint(path: Path) -> InitialReward:
    stamps = _stamps([path])
    stored = read_checkpoint(path, mmap=True)
    if "objective" not in stored:
        raise ValueError(f"reward.checkpoint {path}: is of no reward model that `ipvrm fit` has trained")
    return InitialReward(
        f"reward.checkpoint {path}",
        origin(path, stored),
        [path],
        stored["objective"],
        stored.get("settings", {}),
        lambda roles: roles.load_reward(stored["state_dict"]),
        stamps,
    )


def _of_export(given: str) -> InitialReward:
    folder, name = local_folder(given), f"reward.checkpoint {given}"
    files = sorted(folder.glob("*.safetensors"))
    stamps = _stamps(files)
    exported = read_exported_config(folder / CONFIG_NAME)
    if exported.objective is None or exported.part is not None:
        what = "supervised model" if exported.part is None else f"{exported.part} model of DistRL"
        raise ValueError(f"{name}: an export of a {what}, not of a reward model that `ipvrm fit` has trained")
    if not exported.settings:
        raise ValueError(f"{name}: does not say what it was trained from: export its checkpoint again")

    def place(roles: Roles) -> None:
        roles.load_exported_reward(folder)
        _check_unchanged(name, files, stamps)

    return InitialReward(
        name,
        f"from {given}",
        files,
        exported.objective,
        exported.settings,
        place,
        stamps,
    )
