"""Work that may hang, eat memory or crash: worker processes that are killed and replaced, one task at a time each.

The workers are fresh Python processes, neither forked (the parent may hold CUDA and threads) nor started through
`multiprocessing` (which would import the parent's main script, and refuses to run inside daemonic processes). POSIX
systems only.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, NamedTuple

TIME_LIMIT, MEMORY_LIMIT, WORKER_DIED = "time limit", "memory limit", "worker died"

_OUT_OF_MEMORY = 77
_ROOM = 4 * 2**20  # bytes that a worker must be able to take before its first task
_FAILED_STARTS = 3
_ENDING = 5.0  # seconds from a worker's last word to its exit code
_SLOWEST = 10.0  # seconds by the clock for one of processor time: workers share a machine, which may be busy


class Outcome(NamedTuple):
    """What became of a task: what the worker returned, or the problem that kept it from returning."""

    value: Any
    problem: str | None


class _Worker:
    """A process, the connection to it, and what it is busy with; it is starting until it has sent its first message."""

    def __init__(self, module: str, arguments: Sequence[str], start_limit: float) -> None:
        self.connection, theirs = Pipe()
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"from {module} import main; main()", str(theirs.fileno()), *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
            )
        self.started = False
        self.task: int | None = None
        self.deadline = time.monotonic() + start_limit

    def end(self, *, patience: float = 0.0) -> int:
        """Close the connection, kill the process if it lives, and return its exit code, negative for a signal.

        Args:
            patience: seconds that a process which is ending by itself is given, for its own exit code.
        """
        self.connection.close()
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(patience)
        self.process.kill()
        return self.process.wait()


def _end_all(workers: list[_Worker], owner: int) -> None:
    # the copy of a pool in a forked process must leave the workers alone
    if os.getpid() == owner:
        while workers:
            workers.pop().end()


class WorkerPool:
    """Workers that start when first needed, last until `close` or the end of this process, and are replaced when dead.

    Args:
        module: what the workers import; its `main` calls `serve`.
        size: worker processes.
        time_limit: seconds of processor time that a task may take, in all threads of its worker, before that is killed.
            By the clock, which a task that waits for something is ended by, it may take ten times as long.
        memory_limit: address space of a worker, MiB; none on macOS.
        start_limit: seconds a worker may take to start.
    """

    def __init__(
        self, *, module: str, size: int, time_limit: float, memory_limit: int, start_limit: float = 120.0
    ) -> None:
        self._module = module
        self._size = size
        self._time_limit = time_limit
        self._memory_limit = memory_limit
        self._start_limit = start_limit
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        self._lock = threading.Lock()
        self.owner = os.getpid()
        self.close = weakref.finalize(self, _end_all, self._workers, self.owner)

    @property
    def process_ids(self) -> list[int]:
        """Of the workers that were started and not replaced."""
        return [worker.process.pid for worker in self._workers]

    def run(self, tasks: Sequence[Any]) -> list[Outcome]:
        """Have every task done, in any order.

        A task whose worker died for a reason of its own (not a limit) is given to another worker once.

        Args:
            tasks: anything that pickles.

        Returns:
            Outcomes in the order of the tasks.

        Raises:
            RuntimeError: workers do not start.
        """
        with self._lock:
            try:
                return self._run(tasks)
            except BaseException:
                # workers are in the middle of tasks nobody waits for any more
                _end_all(self._workers, self.owner)
                raise

    def _run(self, tasks: Sequence[Any]) -> list[Outcome]:
        # one that died while idle must not cost a task its second chance
        for worker in [worker for worker in self._workers if worker.process.poll() is not None]:
            self._bury(worker)
        outcomes: dict[int, Outcome] = {}
        waiting, retried = deque(range(len(tasks))), set[int]()
        while len(outcomes) < len(tasks):
            for _ in range(min(self._size, len(tasks) - len(outcomes)) - len(self._workers)):
                arguments = [str(self._memory_limit), str(self._time_limit)]
                self._workers.append(_Worker(self._module, arguments, self._start_limit))
            for worker in self._workers:
                if worker.started and worker.task is None and waiting:
                    self._assign(worker, waiting.popleft(), tasks)
            for worker, outcome in self._finished():
                task, worker.task = worker.task, None
                if task is None:
                    continue
                if outcome.problem == WORKER_DIED and task not in retried:
                    retried.add(task)
                    waiting.appendleft(task)
                else:
                    outcomes[task] = outcome
        return [outcomes[task] for task in range(len(tasks))]

    def _assign(self, worker: _Worker, task: int, tasks: Sequence[Any]) -> None:
        worker.task, worker.deadline = task, time.monotonic() + _SLOWEST * self._time_limit
        # reading from a worker that has died says so
        with suppress(OSError):
            worker.connection.send(tasks[task])

    def _finished(self) -> list[tuple[_Worker, Outcome]]:
        """Wait until a busy or starting worker answers, dies or passes its deadline; dead ones leave the pool."""
        watched = [worker for worker in self._workers if worker.task is not None or not worker.started]
        first = min(worker.deadline for worker in watched)
        ready = wait([worker.connection for worker in watched], max(0.0, first - time.monotonic()))
        now = time.monotonic()
        finished = []
        for worker in watched:
            if worker.connection in ready:
                try:
                    value = worker.connection.recv()
                except (EOFError, OSError):
                    finished.append((worker, Outcome(None, self._bury(worker, patience=_ENDING))))
                    continue
                if worker.started:
                    finished.append((worker, Outcome(value, None)))
                worker.started, self._failed_starts = True, 0
            elif worker.deadline <= now:
                self._bury(worker)
                finished.append((worker, Outcome(None, TIME_LIMIT)))
        return finished

    def _bury(self, worker: _Worker, *, patience: float = 0.0) -> str:
        """Remove a worker and name what ended it.

        Raises:
            RuntimeError: several workers in a row ended before they had started.
        """
        self._workers.remove(worker)
        code = worker.end(patience=patience)
        if worker.started:
            limits = {_OUT_OF_MEMORY: MEMORY_LIMIT, -signal.SIGPROF: TIME_LIMIT, -signal.SIGALRM: TIME_LIMIT}
            return limits.get(code, WORKER_DIED)
        self._failed_starts += 1
        if self._failed_starts >= _FAILED_STARTS:
            raise RuntimeError(
                f"{self._module}: {self._failed_starts} workers in a row did not start, exit code {code}"
            )
        return WORKER_DIED


def serve(function: Callable[[Any], Any], trial: Any, expected: Any) -> None:
    """Do tasks for a `WorkerPool` until it closes or its process ends: the main loop of a worker.

    Args:
        function: task to result; both pickle.
        trial: a task done first, so that a memory limit too low for any is an error and not the tasks' problem.
        expected: its result; libraries that swallow a MemoryError give another one.
    """
    connection = Connection(int(sys.argv[1]))
    memory, time_limit = int(sys.argv[2]) * 2**20, float(sys.argv[3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # a parent's being ignored is handed down
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "darwin":  # which refuses a limit below what every process has mapped from the start
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    try:
        bytearray(_ROOM)  # a short trial may find room in what the process has already
        if function(trial) != expected:
            os._exit(_OUT_OF_MEMORY)
        connection.send(None)
        while True:
            task = connection.recv()
            # These alarms end the process, even in the middle of a product. A busy machine makes tasks take longer
            # by the clock: the pool looks at that, late, and this process where the pool is no more.
            signal.setitimer(signal.ITIMER_PROF, time_limit)
            signal.setitimer(signal.ITIMER_REAL, 2 * _SLOWEST * time_limit + 1)
            result = function(task)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(result)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)
