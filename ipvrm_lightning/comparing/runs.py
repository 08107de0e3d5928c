"""Test runs on disk: what each has found, and the settings that its model was trained with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ipvrm_lightning.config_keys import flatten
from ipvrm_lightning.failures import library_errors, one_line

RESULTS = "results.json"
CONFIG = "config.yaml"
#: What decides beside a model's weights what a test finds of it, by how keys begin.
_CONDITIONS = (
    *("data.", "trainer.precision", "model.init_args.language_model.init_args.dtype"),
    *("model.init_args.verifier.", "model.init_args.stop_tokens"),
)
#: The parser in C, ten times as fast, where PyYAML has it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Run(NamedTuple):
    """A test run.

    Args:
        path: its `results.json`.
        reports: as that file holds them.
        settings: of the training that made its model, by dotted key.
        trained_in: folder of that training; None where the model was tested as it starts, or the folder is unknown.
        note: what to know of where the settings come from.
    """

    path: Path
    reports: dict[str, Any]
    settings: dict[str, Any]
    trained_in: Path | None = None
    note: str | None = None


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """Read the runs that paths mean.

    Args:
        paths: `results.json`, the folder of a run, or a folder whose folders are runs.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: a path with no results, a file that holds none, or a file given twice.
    """
    found: dict[Path, Run] = {}
    for path in paths:
        for file in _results_at(path):
            if file.resolve() in found:
                raise ValueError(f"{file}: given twice, also as {found[file.resolve()].path}")
            found[file.resolve()] = read_run(file)
    return list(found.values())


def _results_at(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if not path.is_dir():
        return [path]
    if (path / RESULTS).is_file():
        return [path / RESULTS]
    if below := sorted(path.glob(f"*/{RESULTS}")):
        return below
    raise ValueError(f"{path}: neither {RESULTS} nor */{RESULTS} is there; `ipvrm test` writes them")


def read_run(path: Path) -> Run:
    """Read what a test run has found, and the config of the training whose checkpoint it loaded.

    Args:
        path: its `results.json`.

    Raises:
        ValueError: the file is none, or a config cannot be read; names the file.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({one_line(str(error), 200)})") from None
    if not isinstance(plain, dict) or not isinstance(plain.get("reports"), dict):
        raise ValueError(f"{path}: reports: missing; expected the {RESULTS} that `ipvrm test` writes")
    reports = plain["reports"]
    beside = path.absolute().parent / CONFIG
    if not beside.is_file():
        note = f"{path}: no {CONFIG} beside it, so its settings are unknown and it has a row of its own"
        return Run(path, reports, {"run": path.absolute().parent.name}, note=note)
    tested = _read_config(beside)
    conditions = {f"test.{key}": value for key, value in flatten(tested).items() if key.startswith(_CONDITIONS)}
    if not tested.get("ckpt_path"):
        return Run(path, reports, {**flatten(tested), **conditions, "trained": False})
    checkpoint = Path(str(tested["ckpt_path"]))
    named = _folder_of(checkpoint)
    # a relative path is one from where the test was run: a folder that its own run's lies in, rather than ours
    from_there = [] if named.is_absolute() else [above / named for above in path.absolute().parents[1:]]
    folders = (*from_there, named, path.absolute().parent.parent / named.name)
    folder = next((one for one in folders if (one / CONFIG).is_file()), None)
    if folder is None:
        note = f"{path}: {named / CONFIG}, of the run that wrote its checkpoint, is not there; settings are the test's"
        return Run(path, reports, {**flatten(tested), **conditions, "trained": True}, named.resolve(), note)
    # `ckpt_path` tells checkpoints of one training apart; how a policy is sampled for its test, the test says
    trained = flatten(_read_config(folder / CONFIG))
    loaded = checkpoint if checkpoint.is_absolute() else folder / checkpoint.relative_to(named)
    settings = {**trained, **conditions, "ckpt_path": str(loaded), "trained": True}
    settings |= {key: value for key, value in flatten(tested).items() if key.startswith("model.init_args.evaluation.")}
    moved = f"{path}: {named} is not there; settings are those of {folder / CONFIG}"
    return Run(path, reports, settings, folder.resolve(), None if folder in (*from_there, named) else moved)


def _folder_of(checkpoint: Path) -> Path:
    """The folder of the run that wrote a checkpoint; a name with a slash (`{val/auroc}`) puts it deeper."""
    return next((one.parent for one in checkpoint.parents if one.name == "checkpoints"), checkpoint.parent)


def _read_config(path: Path) -> dict[str, Any]:
    with library_errors(f"{path}: not the config of a run"):
        found: dict[str, Any] = dict(yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER))
    return found
