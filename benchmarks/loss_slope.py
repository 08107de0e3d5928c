"""How hard IPVRM's loss pulls at the prefixes of a trained model, by margin.

    ipvrm predict --config configs/ipvrm_arithmetic.yaml --ckpt_path last
    python benchmarks/loss_slope.py outputs/ipvrm_arithmetic/RUN/predictions.jsonl

The loss of a prefix of normalised value z has the slope sigmoid(m - z) where the answer is right, and sigmoid(z + m)
where it is wrong (Eq. 9). Where that is the same for all prefixes, the loss is a straight line, and a prefix that is
told already counts as much as one that is not.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

MARGINS = (5.0, 1.0, 0.0)
SHARES = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path)
    rows = [json.loads(line) for line in parser.parse_args().predictions.read_text(encoding="utf-8").splitlines()]
    values = {
        name: torch.tensor([v for row in rows if row["final_answer_correct"] is right for v in row["values"]]).double()
        for name, right in (("right", True), ("wrong", False))
    }
    for name, own in values.items():
        print(f"{len(own)} prefixes of {name} solutions, 5th, 50th and 95th percentile: value {quantiles(own)}")
    for margin in MARGINS:
        right, wrong = (margin - values["right"]).sigmoid(), (values["wrong"] + margin).sigmoid()
        print(f"slope at margin {margin:g}: right {quantiles(right)}, wrong {quantiles(wrong)}")


def quantiles(values: Tensor) -> str:
    return ", ".join(f"{value:.3f}" for value in values.quantile(SHARES))


if __name__ == "__main__":
    main()
