"""How these benchmarks measure: every variant in a process of its own, in turns; medians, ratios and peak memory."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Found = dict[str, list[dict[str, Any]]]
#: Not where results are kept: what a trial on another machine finds must not take their place.
RESULTS = Path(__file__).parent.parent / "outputs" / "benchmarks"


class Peak:
    """Highest anonymous memory of this process from now on, MiB, looked at every 5 milliseconds."""

    def __init__(self) -> None:
        self._anonymous = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def mebibytes(self) -> float:
        """On a GPU the allocator's maximum, else the highest `RssAnon`."""
        import torch

        return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else self._anonymous

    def _watch(self) -> None:
        while True:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    self._anonymous = max(self._anonymous, int(line.split()[1]) / 1024)
            time.sleep(0.005)


class Clock:
    """Seconds of each step; the first one, which allocates, is not counted."""

    def __init__(self) -> None:
        self._seconds: list[float] = []

    @property
    def seconds(self) -> list[float]:
        """Of every step after the first."""
        return self._seconds[1:]

    def start(self) -> None:
        """A step begins."""
        self._began = time.perf_counter()

    def stop(self) -> None:
        """A step has ended, on the device too."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._seconds.append(time.perf_counter() - self._began)


def compare(
    parser: argparse.ArgumentParser,
    name: str,
    variants: Sequence[str],
    measure: Callable[[argparse.Namespace, Path], dict[str, Any]],
    make_table: Callable[[Found, argparse.Namespace], list[str]],
    *,
    rounds: int = 2,
) -> None:
    """The main function of a benchmark: run every variant in turns and keep the table, or measure one of them.

    Args:
        parser: with the benchmark's own arguments; `--variants`, `--rounds`, `--out` and `--variant` are added.
        name: of the result, which may name arguments: `"rl_step_{shape}"`.
        variants: that there are; all of them run unless `--variants` says otherwise.
        measure: gives the numbers of `arguments.variant`, seconds and memory among them, in a folder for its files.
        make_table: lines of the result.
        rounds: default of `--rounds`.
    """
    names = ", ".join(repr(name) for name in variants)
    parser.add_argument(
        "--variants", nargs="+", default=list(variants), choices=variants, metavar="NAME", help=f"default: {names}"
    )
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--out", default=str(RESULTS))
    parser.add_argument("--variant", choices=variants, metavar="NAME", help="measure one and print its numbers as JSON")
    arguments = parser.parse_args()
    if arguments.variant is None:
        found: Found = {}
        failed: dict[str, str] = {}
        name = name.format(**vars(arguments))
        for _ in in_turns(sys.argv[0], arguments.variants, arguments.rounds, found, failed):
            lines = [*make_table(found, arguments), *(f"\n{one}: failed, {reason}" for one, reason in failed.items())]
            write(name, lines, arguments)  # what has been measured is not lost to what comes next
        if not found:
            sys.exit("nothing could be measured")
        keep(name, lines, arguments)
        sys.exit(1 if failed else 0)
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(arguments, Path(folder))))


def in_turns(script: str, variants: Sequence[str], rounds: int, found: Found, failed: dict[str, str]) -> Iterator[None]:
    """Run `script --variant NAME` with this process's other arguments; each prints its numbers as a line of JSON.

    Args:
        script: file of the benchmark.
        variants: in each round one after the other.
        rounds: turns of each; one that has failed gets no more.
        found: filled with the numbers.
        failed: filled with the last line of what went wrong, as where a card has too little memory.

    Yields:
        After each run, once there are numbers.
    """
    for _ in range(rounds):
        for name in (name for name in variants if name not in failed):
            command = [sys.executable, script, *sys.argv[1:], "--variant", name]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{name} failed:\n{done.stderr[-3000:]}", file=sys.stderr, flush=True)
                failed[name] = (done.stderr.splitlines() or [f"status {done.returncode}"])[-1][:300]
            else:
                found.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{name}: {found[name][-1]}", file=sys.stderr, flush=True)
            if found:
                yield


def seconds_of(found: Found, name: str) -> float:
    """Median over the steps of all rounds."""
    return statistics.median(second for run in found[name] for second in run["seconds"])


def memory_of(found: Found, name: str) -> float:
    """Median over the rounds, MiB."""
    return statistics.median(run["memory"] for run in found[name])


def ratio(measure: Callable[[Found, str], float], found: Found, name: str, other: str, places: int = 2) -> str:
    """What `measure` finds of one variant over what it finds of another; empty where that one was not run."""
    return f"{measure(found, name) / measure(found, other):.{places}f}" if other in found else ""


def spread_of(found: Found, name: str) -> float:
    """Slowest over fastest step of all rounds."""
    every = [second for run in found[name] for second in run["seconds"]]
    return max(every) / min(every)


def counted(number: int, noun: str) -> str:
    """So many of something, in words: 1 round, 2 rounds."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, as lines."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def versions() -> dict[str, Any]:
    """Of the packages that matter."""
    from ipvrm_lightning.callbacks.run_record import run_facts

    found: dict[str, Any] = run_facts()["versions"]
    return found


def write(name: str, lines: Sequence[str], arguments: argparse.Namespace) -> str:
    """Write a result to `<out>/<name>.md`, with the command and versions that made it, and return it."""
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    text = "\n".join([*lines, "", f"`{command}`", "", f"{versions()}"]) + "\n"
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(text, encoding="utf-8")
    return text


def keep(name: str, lines: Sequence[str], arguments: argparse.Namespace) -> None:
    """Write a result, and print it."""
    print(write(name, lines, arguments))
