"""Runs the command line on an input and says what became of it: accepted, refused in one line, or failed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

# the libraries are loaded here, so that no case is charged for them
import ipvrm_lightning.lightning_cli
import ipvrm_lightning.rollout_cli  # noqa: F401
from ipvrm_lightning.cli import main

TIME_LIMIT = 120.0  # a case takes less than a second of a free processor

#: What Lightning and tqdm say while they work.
_PROGRESS = re.compile(r"Seed set|GPU available|TPU available|💡|`Trainer|Restor|Loaded|.*\d+%\||.*it/s\]|\s*$")
_RESULTS = {"scores.jsonl", "results.json", "predictions.jsonl", "responses.jsonl"}


@dataclass(frozen=True)
class Case:
    """An input and the command that is to read it.

    Args:
        kind: row of the table.
        label: what was done to the input, for whoever reads a failure.
        files: path below the case's folder to content; None makes a folder.
        command: arguments of `ipvrm`; `{here}` stands for the case's folder, `{out}` for that of outputs.
        mentions: one of these has to stand in the line that refuses it.
        valid: nothing was done to the input, so that refusing it is a failure.
    """

    kind: str
    label: str
    files: dict[str, bytes | None]
    command: tuple[str, ...]
    mentions: tuple[str, ...] = ()
    valid: bool = False


@dataclass(frozen=True)
class Result:
    """What became of a case.

    Args:
        verdict: accepted, refused in one clear line, or anything else.
        text: the line, or what is wrong.
        case: the case.
    """

    verdict: Literal["accepted", "refused", "failed"]
    text: str
    case: Case = field(repr=False)


class _TooLong(BaseException):
    pass


def run_case(case: Case, folder: Path) -> Result:
    """Run a case in an empty folder, which is emptied again.

    Args:
        case: to run.
        folder: made where it is absent.
    """
    here = folder / "a" / "b" / "c"  # deep, so that ../../.. of a name in the data would still be seen
    out, home = here / "out", Path.cwd()
    shutil.rmtree(folder, ignore_errors=True)
    write_files(case.files, here)
    before = _contents(folder)
    try:
        os.chdir(here)
        with _captured() as stderr, _time_limit(TIME_LIMIT):
            status, raised = _call([fill(word, here) for word in case.command])
        complaint = _complaint(case, status, raised, stderr.getvalue(), here)
        changed = [name for name, content in _contents(folder).items() if before.get(name) != content]
        complaint = complaint or _misplaced(changed) or _half_written(out, refused=status != 0)
        line = (_said(stderr.getvalue()) or [""])[0]
    finally:
        os.chdir(home)
        shutil.rmtree(folder, ignore_errors=True)
    if complaint:
        return Result("failed", complaint, case)
    return Result("refused" if status else "accepted", line, case)


def write_files(files: dict[str, bytes | None], folder: Path) -> None:
    """Write a case's files below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)


def fill(word: str, here: Path) -> str:
    """A word of a command with its folders."""
    return word.replace("{here}", str(here)).replace("{out}", str(here / "out"))


def _call(command: Sequence[str]) -> tuple[Any, str]:
    try:
        main(list(command))
    except SystemExit as error:
        return error.code or 0, ""
    except _TooLong:
        return None, f"no end within {TIME_LIMIT:g} s"
    except BaseException as error:
        return None, f"{type(error).__name__}: {error}"
    return 0, ""


def _complaint(case: Case, status: Any, raised: str, stderr: str, folder: Path) -> str:
    """What is wrong with how the command ended; empty where nothing is."""
    lines = _said(stderr)
    if raised:
        return f"not answered: {raised}"
    if status == 0:
        return f"succeeded, but said: {lines}" if any(line.startswith("ipvrm ") for line in lines) else ""
    if case.valid:
        return f"refused though nothing is wrong: {lines}"
    if len(lines) != 1 or not lines[0].startswith(f"ipvrm {case.command[0]}: "):
        return f"not one line: {lines}"
    if "unexpected " in lines[0] and "traceback in" in lines[0]:
        kept = Path(lines[0].rpartition("traceback in ")[2].rstrip(")"))
        text = "\n".join(kept.read_text().splitlines()[-6:])
        kept.unlink()
        return f"an error nobody expected: {lines[0]}\n{text}"
    if not lines[0].isprintable() or len(lines[0]) > 700:
        return f"too long or not printable: {lines[0]!r}"
    if case.mentions and not any(fill(word, folder) in lines[0] for word in case.mentions):
        return f"names none of {case.mentions}: {lines[0]}"
    return ""


def _said(stderr: str) -> list[str]:
    return [line for line in re.split(r"[\r\n]+", stderr) if not _PROGRESS.match(line)]


def _misplaced(changed: list[str]) -> str:
    outside = [name for name in changed if not name.startswith("a/b/c/out/")]
    return f"written outside of the output folder: {outside}" if outside else ""


def _half_written(out: Path, *, refused: bool) -> str:
    for file in sorted(path for path in out.rglob("*") if path.is_file()):
        if file.suffix in {".part", ".new", ".tmp"} or (file.name.startswith(".") and file.name != ".lock"):
            return f"left behind: {file.name}"
        if refused and (file.name in _RESULTS or file.suffix == ".ckpt"):
            return f"refused, but left {file.name}"
        try:
            text = file.read_text(encoding="utf-8") if file.suffix in {".json", ".jsonl", ".yaml"} else ""
            if file.suffix == ".yaml":
                yaml.safe_load(text)
            for part in [text] if file.suffix == ".json" else text.splitlines() if file.suffix == ".jsonl" else []:
                json.loads(part)
        except ValueError as error:
            return f"half written: {file.name} ({error})"
    return ""


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextlib.contextmanager
def _captured() -> Iterator[io.StringIO]:
    """Standard error, filled at the end; streams as strict as a terminal's, where not every text can be printed."""
    streams = []
    for errors in ("strict", "backslashreplace"):
        streams.append(io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors, write_through=True))
    text = io.StringIO()
    stdin = sys.stdin
    sys.stdin = io.StringIO("")
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(streams[0]),
            contextlib.redirect_stderr(streams[1]),
        ):
            warnings.simplefilter("ignore")
            yield text
    finally:
        sys.stdin = stdin
        text.write(streams[1].buffer.getvalue().decode())  # type: ignore[attr-defined]


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _TooLong

    handler = signal.signal(signal.SIGALRM, stop)
    remaining, _ = signal.setitimer(signal.ITIMER_REAL, seconds)  # pytest-timeout's
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, remaining)
        signal.signal(signal.SIGALRM, handler)
