"""Folders of runs: their names, which of them has not ended yet, and whether a command is its continuation.

A run's `run.json` holds a fingerprint of its whole config. A fit that is started again with the same config goes on
with the newest run of that fingerprint that has not ended and has a whole checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import IO, Any, Literal

from ipvrm_lightning.models.checkpoints import newest_in, read_checkpoint
from ipvrm_lightning.whole_files import write_atomically

RECORD = "run.json"
#: Settings that say how a run is started, not what it computes.
_HOW = ("ckpt_path", "config", "resume", "checkpoint_minutes")
#: Names of arguments, of callbacks of one's own say, that no service is to be told.
_SECRET = re.compile(
    r"(^|_)(token|secret|password|passwd|credentials?|(api|access|private|secret)_?key)$", re.IGNORECASE
)


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
    """Hash of what a config says, 16 hexadecimal digits.

    Args:
        config: as plain values.
    """
    kept = {name: value for name, value in config.items() if name not in _HOW}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]


def logged_settings(config: dict[str, Any]) -> dict[str, Any]:
    """What loggers are told of a config: all but how the run is started, who logs it, and secrets.

    Args:
        config: as plain values.
    """
    trainer = {name: value for name, value in (config.get("trainer") or {}).items() if name != "logger"}
    kept = {name: value for name, value in config.items() if name not in _HOW}
    return _without_secrets({**kept, "trainer": trainer})


def _without_secrets(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_secrets(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {name: _without_secrets(one) for name, one in value.items() if not _SECRET.search(name)}


def unfinished_run(root: Path, fingerprint: str) -> Path | None:
    """The folder of the newest run with this config, None where that has ended or there is none.

    Args:
        root: `default_root_dir` of the runs.
        fingerprint: of the config.
    """
    for record in sorted(root.glob(f"*/{RECORD}"), reverse=True):
        facts = _read(record)
        if facts.get("config") == fingerprint:
            return None if facts.get("ended") else record.parent
    return None


def checkpoint_to_resume(run: Path) -> Path | None:
    """The newest whole checkpoint of a run that has not ended, None where training can go on from none yet.

    Those of weights alone (`save_weights_only`) are left out.

    Args:
        run: its folder.
    """
    folder = run / "checkpoints"
    newest_first = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
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


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
