"""How a training step grows with length, sequences, vocabulary and processes: time and memory, plotted.

    python benchmarks/growth.py            # needs matplotlib; writes growth.md and growth.png

IPVRM with its reference in the step, through data module, module and trainer, on random weights in the shape of a small
Qwen3. One setting changes at a time; all processes of a row have one thread each, so that two processes are two cores.
A step's sequences are of mixed lengths up to the longest, and a forward pass takes two of the longest at most.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import RESULTS, Clock, Peak, keep, table

BASE = {"longest": 512, "sequences": 8, "vocabulary": 38_000, "processes": 1}
AXES = {
    "longest": [256, 512, 1024, 2048],
    "sequences": [4, 8, 16, 32],
    "vocabulary": [19_000, 38_000, 76_000, 152_000],
    "processes": [1, 2],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen3-tiny", help="a key of shapes.SHAPES")
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES))
    parser.add_argument("--steps", type=int, default=2, help="that are timed")
    parser.add_argument("--point", type=json.loads, help="measure one setting and print its numbers as JSON")
    parser.add_argument("--out", default=str(RESULTS))
    arguments = parser.parse_args()
    if arguments.point is not None:
        measure(arguments)
        return
    found = {axis: [run({**BASE, axis: value}) for value in AXES[axis]] for axis in arguments.axes}
    draw(found, Path(arguments.out) / "growth.png")
    keep("growth", make_table(found, arguments), arguments)


def run(point: dict[str, int]) -> dict[str, float]:
    """Measure a setting in processes of its own."""
    command = [sys.executable]
    if point["processes"] > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(point["processes"])]
    command += [__file__, *sys.argv[1:], "--point", json.dumps(point)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{point} failed:\n{done.stderr[-3000:]}")
    line = next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{"))
    print(f"{point}: {line}", file=sys.stderr, flush=True)
    return json.loads(line)  # type: ignore[no-any-return]


def measure(arguments: argparse.Namespace) -> None:
    """One setting: median seconds of a step, and peak memory of the first process."""
    from shapes import WordModel, write_pairs
    from training_step import ours

    point, peak, clock = arguments.point, Peak(), Clock()
    factory = WordModel(arguments.shape, {"vocab_size": point["vocabulary"]})
    settings = argparse.Namespace(
        variant="IPVRM, reference in the step", longest=point["longest"], pairs=point["sequences"] // 2,
        steps=arguments.steps, budget=2,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        rows = Path(name) / "pairs.jsonl"
        write_pairs(rows, pairs=settings.pairs, longest=settings.longest, vocabulary=factory.words)
        ours(settings, factory, Path(name), clock)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps({"seconds": sorted(clock.seconds)[len(clock.seconds) // 2], "memory": peak.mebibytes}))


def exponent(values: list[int], costs: list[float]) -> float:
    """Slope of the cost over the value in logarithms, from first to last: 1 is linear."""
    return math.log(costs[-1] / costs[0]) / math.log(values[-1] / values[0])


def make_table(found: dict[str, list[dict[str, float]]], arguments: argparse.Namespace) -> list[str]:
    """A row per setting, and the exponents."""
    rows = []
    for axis, runs in found.items():
        for value, cost in zip(AXES[axis], runs, strict=True):
            ratios = [f"{cost[name] / runs[0][name]:.2f}" for name in ("seconds", "memory")]
            rows.append([axis, f"{value:,}", f"{cost['seconds']:.2f}", ratios[0], f"{cost['memory']:.0f}", ratios[1]])
    slopes = [
        f"{axis}: time {exponent(AXES[axis], [r['seconds'] for r in runs]):.2f}, memory"
        f" {exponent(AXES[axis], [r['memory'] for r in runs]):.2f}"
        for axis, runs in found.items()
    ]
    base = ", ".join(f"{name} {value:,}" for name, value in BASE.items())
    return [
        f"{arguments.shape}, random weights; otherwise {base}. Memory of the first process, its libraries included.",
        "",
        *table(["", "value", "seconds a step", "over the first", "peak MiB", "over the first"], rows),
        "",
        f"Exponents from first to last (1 is linear): {'; '.join(slopes)}.",
    ]


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Time and memory over each setting, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    # one scale for a row of plots, so that what does not grow is flat
    figure, axes = pyplot.subplots(2, len(found), figsize=(3.2 * len(found), 5.6), squeeze=False, sharey="row")
    for column, (axis, runs) in enumerate(found.items()):
        for row, (name, unit) in enumerate((("seconds", "seconds a step"), ("memory", "peak MiB"))):
            plot = axes[row][column]
            plot.plot(AXES[axis], [one[name] for one in runs], marker="o")
            plot.set_xscale("log", base=2)
            plot.set_yscale("log", base=2)
            plot.set_xticks(AXES[axis], [f"{value:,}" for value in AXES[axis]])
            plot.yaxis.set_major_locator(LogLocator(base=2, subs=(1, 1.5)))
            plot.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            plot.yaxis.set_minor_formatter(NullFormatter())
            plot.set_xlabel(axis)
            if column == 0:
                plot.set_ylabel(unit)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
