"""What a user is told when a command fails: one line. `--debug` shows the traceback instead.

Errors that say what is wrong with the input are raised where it is known (file, row, field, key) and only printed here.
Anything else is a defect, or a machine that gave out: the line says so and names a file with the traceback, so that
nothing is lost of a run that took a day.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import select
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import NoReturn

_LONGEST = 600
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

#: Errors whose message is meant for whoever wrote the input; some by name, for their libraries load slowly.
_EXPECTED = (ValueError, OSError, FloatingPointError, argparse.ArgumentError)
_EXPECTED_NAMES = frozenset({"MisconfigurationException", "OutOfMemoryError"})
#: What torch.distributed raises where another process is gone; gloo has no class of its own for it.
_LOST_NAMES = frozenset({"DistBackendError", "DistNetworkError", "DistStoreError"})
_LOST_BY_GLOO = "/gloo/transport/"

#: Lines of jsonargparse that say nothing about the mistake.
_NOISE = re.compile(
    r"Does not validate against any|Subtypes: |Errors:$|Expected a <class 'NoneType'>"
    r"|Given value type|Given value: (?:NestedArg|Namespace|\{|\[)"
    r"|Not a valid subclass of \w+\. Got value: \[|Subclass types expect one of|a class path \(str\)|a dict with"
    r"|Expected a path but .* either not accessible or invalid"
)
#: What it says of text that YAML has read as something else, and what there is to do about it.
_NO_TEXT = "Expected a <class 'str'>"
_TEXT = "expected text: in quotes in a config file; what has ': ' in it or starts with '- ' cannot be typed here"
#: What it says of a word that is no number, where an object could stand as well; and of one that names no class.
_NO_NUMBER = re.compile(r"(Expected a <class '(?:int|float|bool)'>); Expected a dot import path string: [^;]*")
_NO_CLASS = re.compile(r"Expected a dot import path string: ([^;]*)(?:; Given value: \1)?")
#: An option of a class that is not named yet.
_NO_CONFIG = re.compile(r"Problem with given class_path 'lightning\S*\.Lightning\w+': (Option '\S+') is not accepted")
_CALLABLE = re.compile(r"Type \S+\[.*?\] expects a function or a callable class: ")
_GOT_CLASS = re.compile(r"\. Got value: Namespace\(.*")
#: A class that imports what is not there; Lightning's own say it by a requirement.
_NOT_INSTALLED = re.compile(
    r"Problem with given class_path '((?:\w+\.)*)(\w+)': (?:Requirement '([^']+)' not met|No module named '(\w+)).*"
)


class OneLineParser(argparse.ArgumentParser):
    """A parser whose mistakes are raised, so that they are told as every other failure is."""

    def error(self, message: str) -> NoReturn:
        """Raise in place of printing the usage.

        Args:
            message: what is wrong.

        Raises:
            ArgumentError: always.
        """
        raise argparse.ArgumentError(None, message)


def failure_line(command: str, error: BaseException) -> str:
    """The line that tells of an error.

    Args:
        command: of `ipvrm`.
        error: that ended it.
    """
    if isinstance(error, argparse.ArgumentError):
        return f"ipvrm {command}: {one_line(mistakes(str(error)))} (see --help)"
    if isinstance(error, _EXPECTED) or type(error).__name__ in _EXPECTED_NAMES:
        return f"ipvrm {command}: {one_line(str(error)) or type(error).__name__}"
    if type(error).__name__ in _LOST_NAMES or _LOST_BY_GLOO in str(error):
        reason = one_line(str(error), 300)
        return f"ipvrm {command}: another process of this run has ended, or does not answer ({reason})"
    kept = _keep_traceback(command, error)
    return f"ipvrm {command}: unexpected {type(error).__name__}: {one_line(str(error))} (traceback in {kept})"


def exit_status(error: BaseException) -> int:
    """2 for arguments and configs that cannot be parsed, 1 for everything else."""
    return 2 if isinstance(error, argparse.ArgumentError) else 1


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Whatever a library raises within, as a ValueError that says what could not be done, with the reason in brackets.

    For calls that take nothing but the user's input, so that the input is at fault whichever kind of error it is.

    Args:
        what: could not be done, to what; begins the message.

    Raises:
        ValueError: in place of any error.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what} ({type(error).__name__}: {one_line(str(error), 400)})") from error


@contextmanager
def names_full_disk(place: str | os.PathLike[str]) -> Iterator[None]:
    """A disk that is full says so without a word of which: within, the error names the place that is written to.

    Args:
        place: file or folder.

    Raises:
        OSError: no space is left, with the place.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(place)) from error


def reader_left() -> bool:
    """Whether whoever read the output has hung up, as `head` does when it has seen enough; then no more is written."""
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    # what is left in the buffer goes nowhere, or Python would complain of it when it ends
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def tell_in_one_line(failed: threading.ExceptHookArgs) -> None:
    """What a thread ended with, in a line: a writer of logs on a full disk, say, where the command ends in a line too.

    Args:
        failed: as `threading.excepthook` is given it.
    """
    name = failed.thread.name if failed.thread else "a thread"
    print(f"{name} ended: {failed.exc_type.__name__}: {one_line(str(failed.exc_value))}", file=sys.stderr)


def one_line(text: str, longest: int = _LONGEST) -> str:
    """A text without line breaks and control characters, its middle left out where it is long.

    Args:
        text: anything, also from files that mean harm to a terminal.
        longest: characters kept, at most.
    """
    text = " ".join(text.split())
    if len(text) > longest:
        text = f"{text[: longest // 2]} ... {text[-longest // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def mistakes(message: str) -> str:
    """What jsonargparse says in a paragraph of nested reasons, as one sentence.

    Args:
        message: of its error, on parsing or on building what was parsed.
    """
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    kept = [_GOT_CLASS.sub("", line.rstrip(".")) for line in lines if not _NOISE.match(line)]
    text = re.sub(r":\W*; ", ": ", "; ".join(kept)).replace("Parser key ", "key ").rstrip(": ")
    text = _NOT_INSTALLED.sub(_not_installed, text).replace(_NO_TEXT, _TEXT)
    text = _NO_CONFIG.sub(r"\1 comes before the config that names its class: give that one first", text)
    return _NO_CLASS.sub(_no_class, _NO_NUMBER.sub(r"\1", _CALLABLE.sub("", text)))


def _not_installed(found: re.Match[str]) -> str:
    """Which package a class needs; a module that is the class's own is one that was not found."""
    place, kind, requirement, module = found.groups()
    if module is not None and place.startswith(f"{module}."):
        return found[0]
    return f"{kind} needs {requirement or module}, which is not installed"


def _no_class(found: re.Match[str]) -> str:
    """That a word names no class, with the nearest of this package's that does: of modules the parser has loaded."""
    own = [vars(module) for name, module in list(sys.modules.items()) if name.startswith("ipvrm_lightning.")]
    classes = {name for names in own for name, value in names.items() if isinstance(value, type)}
    near = get_close_matches(found[1], sorted(classes), n=1)
    return f"{found[1]} is no class here; " + (
        f"did you mean {near[0]}?" if near else "give its whole path, a.module.Class"
    )


def _keep_traceback(command: str, error: BaseException) -> str:
    handle, name = tempfile.mkstemp(prefix=f"ipvrm-{re.sub(r'[^a-z]', '', command)}-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(traceback.format_exception(error))
    return name
