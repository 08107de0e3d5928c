"""The value of a solution's prefixes, with its steps and its labelled first wrong step.

    ipvrm predict --config configs/ipvrm_arithmetic.yaml --ckpt_path last
    python benchmarks/value_plot.py outputs/ipvrm_arithmetic/*-predict/predictions.jsonl --id ID --out value.png

Without `--id`, the first solution of the file that has a first wrong step after its second step is drawn.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions")
    parser.add_argument("--id")
    parser.add_argument("--out", default="value.png")
    arguments = parser.parse_args()
    records = [json.loads(line) for line in Path(arguments.predictions).read_text(encoding="utf-8").splitlines()]
    draw(choose(records, arguments.id), Path(arguments.out))


def choose(records: list[dict[str, Any]], name: str | None) -> dict[str, Any]:
    """The record asked for, or the first whose error comes after its second step."""
    for record in records:
        if "steps" in record and (record["id"] == name if name else record.get("step_label", -1) >= 2):
            return record
    raise SystemExit(f"no such solution with steps: {name or 'with a first wrong step after the second'}")


def draw(record: dict[str, Any], target: Path) -> None:
    """Probability of ending right after each token; the labelled first wrong step is shaded."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    probability = [1 / (1 + math.exp(-value)) for value in record["values"]]
    ends = [max(i for i, step in enumerate(record["step_ids"]) if step == s) for s in range(len(record["steps"]))]
    figure, axes = pyplot.subplots(figsize=(9, 4.2), layout="constrained")
    axes.plot(range(len(probability)), probability, color="#1f4e79", linewidth=1.8)
    axes.set(ylim=(-0.02, 1.02), xlim=(0, len(probability) - 1), ylabel="P(ends right), from the value of the prefix")
    label, start = record["step_label"], -1
    for number, end in enumerate(ends):
        if number == label:
            axes.axvspan(start + 0.5, end + 0.5, color="#c0392b", alpha=0.18, label="labelled first wrong step")
        axes.axvline(end + 0.5, color="#bbbbbb", linewidth=0.6)
        start = end
    centres = [(a + b) / 2 + 0.5 for a, b in zip([-1, *ends[:-1]], ends, strict=True)]
    axes.set_xticks(centres, record["steps"], rotation=35, ha="right", fontsize=8)
    axes.legend(loc="lower left")
    figure.savefig(target, dpi=150)


if __name__ == "__main__":
    main()
