"""Processes that tests start: real ones, with memory, signals and an end of their own, that import nothing anew.

On Linux they are forked from a server that has imported the libraries and has done nothing else; elsewhere, and with a
PyTorch that knows CUDA, which no fork survives, each starts from scratch, as is usual.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from multiprocessing import context
from pathlib import Path
from typing import Any

import torch

#: What a fit imports before its first step: 9 seconds of CPU.
LIBRARIES = [
    "pytest",
    "ipvrm_lightning.lightning_cli",
    "ipvrm_lightning.rollout_cli",
    "ipvrm_lightning.data",
    "ipvrm_lightning.models.language_model",
    "ipvrm_lightning.modules",
    "ipvrm_lightning.rollouts",
    "ipvrm_lightning.worlds.arithmetic",
    "lightning.pytorch.loggers.tensorboard",
    "peft",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen3.modeling_qwen3",
]


class _Environment:
    """Pickled here, it is this process's environment; unpickled, it is set there."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[dict[str, str]]]:
        return _set_environment, (dict(os.environ),)


def _set_environment(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def _fork(process: Any) -> Any:
    """In place of `SpawnProcess._Popen`."""
    process.environment = _Environment()  # a server's own is that of its start
    return context.ForkServerProcess._Popen(process)  # type: ignore[attr-defined]


def start_quickly() -> None:
    """From now on what is spawned, by Lightning too, is forked from a server where that is safe."""
    if sys.platform == "linux" and torch.version.cuda is None:
        multiprocessing.set_forkserver_preload(LIBRARIES)
        context.SpawnProcess._Popen = staticmethod(_fork)  # type: ignore[attr-defined]


class Started:
    """A function in a process, and a process group, of its own; the rest is as of `subprocess.Popen`.

    Args:
        target: of a module that can be imported; what it prints and says is kept.
        args: its arguments.
    """

    def __init__(self, target: Callable[..., object], *args: Any) -> None:
        descriptor, self._messages = tempfile.mkstemp()
        os.close(descriptor)
        self._process = multiprocessing.get_context("spawn").Process(target=_run, args=(self._messages, target, args))
        self._process.start()
        self.pid = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        """Exit status, or minus the signal that ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float = 500) -> int:
        self._process.join(timeout)
        assert self.returncode is not None, "still running"
        return self.returncode

    def kill(self) -> None:
        self._process.kill()

    def said(self) -> str:
        """All that it has printed so far, errors too."""
        return Path(self._messages).read_text()

    def communicate(self) -> tuple[None, bytes]:
        self.wait()
        return None, self.said().encode()


def _run(messages: str, target: Callable[..., object], args: Sequence[Any]) -> None:
    os.setsid()
    with open(messages, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    try:
        target(*args)
    finally:
        atexit._run_exitfuncs()  # which a process of multiprocessing leaves out
