"""Folders of runs: their names, which of them has not ended yet, and whether a command is its continuation.

A run's `run.json` holds a fingerprint of its config, but for keys that change no result: how it is started, and how its
work is divided. A fit that is started again with the same config goes on with the newest run of that fingerprint that
has not ended and has a whole checkpoint; its `config.yaml` is then that of the later command, and `run.json` lists
which keys were otherwise before.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import IO, Any, Literal

import yaml

from ipvrm_lightning.config_keys import flatten, incidental_keys, without_secrets
from ipvrm_lightning.models.checkpoints import newest_in, read_checkpoint
from ipvrm_lightning.whole_files import write_atomically

RECORD = "run.json"
#: Settings that say how a run is started, not what it computes.
_HOW = ("ckpt_path", "config", "resume", "checkpoint_minutes", "weights_only")
#: A config that differs in more keys is taken for another experiment.
_FEW = 3


def new_run(root: Path, command: str) -> Path:
    """A folder under `root`, named by time and command; made at once, for others may start in the same second."""
    root.mkdir(parents=True, exist_ok=True)
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{command}"
    for number in count(1):
        folder = root / (name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError("numbers do not end")


def config_fingerprint(config: dict[str, Any]) -> str:
    """Hash of what a config says that may change a result by more than rounding, 16 hexadecimal digits.

    Args:
        config: as plain values.
    """
    incidental = incidental_keys(config)
    kept = {key: value for key, value in flatten(config).items() if key not in incidental and not _says_how(key)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _says_how(key: str) -> bool:
    return key.partition(".")[0] in _HOW


def changed_divisions(run: Path, config: dict[str, Any]) -> dict[str, list[Any]]:
    """What a config says otherwise of how work is divided than the one that a run has kept: was and is, by dotted key.

    Args:
        run: its folder.
        config: as plain values.
    """
    incidental = incidental_keys(config)
    return {key: both for key, both in (_changed(run, config) or {}).items() if key in incidental}


def _changed(run: Path, config: dict[str, Any]) -> dict[str, list[Any]] | None:
    """What a config says otherwise than the one that a run has kept: was and is, by dotted key; loggers aside.

    Args:
        run: its folder.
        config: as plain values.

    Returns:
        None where the config that it has kept cannot be read.
    """
    with suppress(OSError, ValueError, yaml.YAMLError, AttributeError, RecursionError):
        earlier = flatten(_without_nulls(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))))
        own = flatten(_without_nulls(config))
        keys = [key for key in {**earlier, **own} if not _says_how(key) and not key.startswith("trainer.logger")]
        both = {key: [earlier.get(key), own.get(key)] for key in keys}
        return {key: [was, now] for key, (was, now) in both.items() if json.dumps(was) != json.dumps(now)}  # 1 and 1.0
    return None


def _without_nulls(value: Any) -> Any:
    """A config without keys that are null, which the kept one has and one that was just read may lack."""
    if isinstance(value, list):
        return [_without_nulls(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {name: _without_nulls(one) for name, one in value.items() if one is not None}


def similar_run(root: Path, config: dict[str, Any]) -> tuple[Path, list[str]] | None:
    """The newest run of a fit, where it has not ended and differs in a few keys or none, and these keys.

    Those that only divide the work, and loggers, are left aside.

    Args:
        root: `default_root_dir` of the runs.
        config: as plain values.
    """
    fits = (record.parent for record in root.glob(f"*/{RECORD}") if _is_of_fit(record.parent))
    newest = max(fits, key=_started, default=None)
    if newest is None or _read(newest / RECORD).get("ended"):
        return None
    if (changed := _changed(newest, config)) is None:
        return None
    incidental = incidental_keys(config)
    keys = [key for key in changed if key not in incidental]
    return (newest, keys) if len(keys) <= _FEW else None


def _is_of_fit(run: Path) -> bool:
    return (run / "checkpoints").is_dir()


def logged_settings(config: dict[str, Any]) -> dict[str, Any]:
    """What loggers are told of a config: all but how the run is started, who logs it, and secrets.

    Args:
        config: as plain values.
    """
    trainer = {name: value for name, value in (config.get("trainer") or {}).items() if name != "logger"}
    kept = {name: value for name, value in config.items() if name not in _HOW}
    return without_secrets({**kept, "trainer": trainer})


def unfinished_run(root: Path, fingerprint: str) -> Path | None:
    """The folder of the newest run with this config, None where that has ended or there is none.

    Args:
        root: `default_root_dir` of the runs.
        fingerprint: of the config.
    """
    for run in sorted((record.parent for record in root.glob(f"*/{RECORD}")), key=_started, reverse=True):
        facts = _read(run / RECORD)
        if facts.get("config") == fingerprint:
            return None if facts.get("ended") else run
    return None


def checkpoint_to_resume(run: Path) -> Path | None:
    """The newest whole checkpoint of a run that has not ended, None where training can go on from none yet.

    Those of weights alone (`save_weights_only`) are left out.

    Args:
        run: its folder.
    """
    folder = run / "checkpoints"
    newest_first = sorted(folder.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return newest_in(folder, "resume-*.ckpt") or next(filter(holds_training, newest_first), None)


def holds_training(checkpoint: Path) -> bool:
    """Whether training can go on from a checkpoint: it holds more than weights (`save_weights_only`).

    Args:
        checkpoint: a file, or the folder of a strategy that writes shards.
    """
    return checkpoint.is_dir() or "optimizer_states" in read_checkpoint(checkpoint, mmap=True)


def hold(run: Path, how: Literal["alone", "look"] = "alone") -> IO[str]:
    """Keep other commands from writing to a run's folder, while this process lives and the file is open.

    Args:
        run: folder that exists.
        how: `look` shuts out only those who write: all processes of a run may ask so before its first one writes.

    Raises:
        ValueError: another process writes there.
    """
    file = (run / "run.lock").open("a+")
    try:
        import fcntl

        # unlike flock's, this lock goes with its process, even if workers that it had forked outlive a kill
        fcntl.lockf(file, fcntl.LOCK_NB | (fcntl.LOCK_EX if how == "alone" else fcntl.LOCK_SH))
    except (BlockingIOError, PermissionError):
        file.close()
        raise ValueError(
            f"{run}: this run is still going on in another process; --resume never starts a second one"
        ) from None
    except (ImportError, OSError):
        pass  # Windows, or a file system without locks
    return file


def write_record(folder: Path, facts: dict[str, Any]) -> None:
    """Add facts to a run's record."""
    path = folder / RECORD
    write_atomically(path, json.dumps({**_read(path), **facts}, indent=2) + "\n")


def add_change(folder: Path, change: dict[str, Any]) -> None:
    """Add to what a run's record says of keys that were otherwise before it went on."""
    write_record(folder, {"changes": [*_read(folder / RECORD).get("changes", []), change]})


def _started(run: Path) -> tuple[str, str]:
    """When a run began or last went on, in UTC, and its name, which has the time of where it ran."""
    return str(_read(run / RECORD).get("time") or ""), run.name


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
