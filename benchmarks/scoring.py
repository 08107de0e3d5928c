"""Scoring solutions of ProcessBench against the plain way, and the search for the best threshold; time and memory.

    python benchmarks/scoring.py --processbench FOLDER --rows 40

Two models of a shape with random weights, and a tokenizer trained on the solutions. "Plain" is what evaluation scripts
do: batches of two in the order of the file, one model after the other, logits of all positions, log_softmax, and the
prefix of each step tokenised again to find where it ends. Both read the file, build both models and end with a score
per step; the package goes through its data module and `Trainer.predict`, which gives all four protocols. What the
libraries take to import is not counted.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from measuring import Clock, Found, Peak, compare, counted, memory_of, ratio, seconds_of, table

VARIANTS = ("plain", "ipvrm_lightning")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processbench", required=True, help="folder of its JSON files")
    parser.add_argument("--subset", default="math")
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--shape", default="qwen3-tiny", help="a key of shapes.SHAPES")
    compare(parser, "scoring", VARIANTS, measure, make_table)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds for all rows, peak memory, and the scores, which both ways must agree on."""
    from shapes import TextModel

    rows = json.loads((Path(arguments.processbench) / f"{arguments.subset}.json").read_text(encoding="utf-8"))
    rows = random.Random(0).sample(rows, arguments.rows)
    (folder / f"{arguments.subset}.json").write_text(json.dumps(rows), encoding="utf-8")
    factory = TextModel(arguments.shape, [text for row in rows for text in (row["problem"], *row["steps"])])
    for library in (
        "lightning.pytorch",
        "transformers.models.qwen3",
        "ipvrm_lightning.data",
        "ipvrm_lightning.modules",
    ):
        importlib.import_module(library)
    peak = Peak()
    score = plain if arguments.variant == "plain" else ours
    began = time.perf_counter()
    scores = score(factory, rows, folder, arguments.subset)
    seconds = time.perf_counter() - began
    return {"seconds": [seconds], "memory": peak.mebibytes, "scores": scores}


def ours(factory: Any, rows: list[dict[str, Any]], folder: Path, subset: str) -> list[float]:
    """Through the data module and the trainer; step sums of all rows."""
    from trainers import bare_trainer

    from ipvrm_lightning.data import ProcessBenchDataModule
    from ipvrm_lightning.models import FrozenCopy, LanguageModelFactory
    from ipvrm_lightning.modules import IPVRMModule

    class Pair(LanguageModelFactory):
        """Gives one model and then, for the reference, another."""

        has_adapters, built = False, 0

        def build_model(self) -> Any:
            factory.seed, self.built = self.built, self.built + 1
            return factory.build_model()

        def build_tokenizer(self) -> Any:
            return factory.build_tokenizer()

    module = IPVRMModule(language_model=Pair(), reference=FrozenCopy())
    data = ProcessBenchDataModule(path=str(folder), subsets=[subset], prompt_format="plain", max_tokens=8192)
    predictions = bare_trainer(Clock()).predict(module, datamodule=data)
    found = {record["index"]: record["step_scores"]["step_sum"] for batch in predictions or [] for record in batch}
    beta = module.objective.beta
    return [score / beta for index in sorted(found) for score in found[index]]


def plain(factory: Any, rows: list[dict[str, Any]], folder: Path, subset: str) -> list[float]:
    """Batches of two, one model after the other, all logits, prefixes tokenised again."""
    import torch

    tokenizer = factory.build_tokenizer()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    prefixes = []
    for row in rows:
        steps = [f"Step {number}: {step}\n\n" for number, step in enumerate(row["steps"], 1)]
        steps[-1] = steps[-1].rstrip("\n")
        texts = [row["problem"] + "".join(steps[:count]) for count in range(len(steps) + 1)]
        prefixes.append([tokenizer(text)["input_ids"] for text in texts])
    sums = []
    for seed in (0, 1):
        factory.seed = seed
        model = factory.build_model().eval().to(device)
        log_probs = []
        for number in range(0, len(rows), 2):
            batch = [ids[-1] for ids in prefixes[number : number + 2]]
            longest = max(map(len, batch))
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch], device=device)
            attends = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch], device=device)
            with torch.no_grad():
                logits = model(input_ids=ids, attention_mask=attends).logits
                log_probs += list(logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1))
        sums.append(log_probs)
    scores = []
    for own, reference, ids in zip(*sums, prefixes, strict=True):
        ratios = own - reference
        ends = [len(prefix) - 1 for prefix in ids]
        scores += [float(ratios[start:end].sum()) for start, end in pairwise(ends)]
    return scores


def threshold_search() -> float:
    """Median milliseconds of the exact search over 3,400 solutions of 4 to 16 steps."""
    from ipvrm_lightning.functional import best_threshold

    draw = random.Random(0)
    scores = [[draw.gauss(0, 1) for _ in range(draw.randrange(4, 17))] for _ in range(3400)]
    labels = [draw.randrange(-1, len(row)) for row in scores]
    times = []
    for _ in range(9):
        began = time.perf_counter()
        best_threshold(scores, labels)
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def make_table(found: Found, arguments: argparse.Namespace) -> list[str]:
    """Seconds and memory, with ratios to the plain way."""
    rows = [
        [
            name, f"{seconds_of(found, name):.1f}", ratio(seconds_of, found, name, "plain"),
            f"{memory_of(found, name):.0f}", ratio(memory_of, found, name, "plain"),
        ]
        for name in found
    ]  # fmt: skip
    lines = [
        f"{arguments.shape}, random weights; {arguments.rows} solutions of ProcessBench {arguments.subset}, all of it"
        f" from file to scores; {counted(arguments.rounds, 'round')}.",
        "",
        *table(["", "seconds", "time ratio", "peak MiB", "memory ratio"], rows),
        "",
    ]
    if len(found) == 2:
        apart = [abs(a - b) for a, b in zip(*(runs[0]["scores"] for runs in found.values()), strict=True)]
        differ = sum(difference > 1e-3 for difference in apart)
        why = ": where a step's prefix, tokenised alone, has other tokens at its end" if differ else ""
        lines += [
            f"Of {len(apart)} step scores, {differ} differ by more than 1e-3 (median difference"
            f" {statistics.median(apart):.1e}){why}.",
            "",
        ]
    return [*lines, f"The exact best threshold of 3,400 solutions takes {threshold_search():.0f} ms."]


if __name__ == "__main__":
    main()
