"""Objectives on a real model and real rollouts, judged on ProcessBench: same responses, steps and settings for each.

    python benchmarks/real_model.py --model MODEL --rollouts pairwise.parquet --processbench FOLDER

One `ipvrm fit`, unless the objective needs none, and one `ipvrm test` per objective; finished ones are not repeated: a
stopped run goes on where it was.
`--model` is a hub name or a folder; `--gguf FILE` (with `--model FOLDER`) saves a GGUF file as safetensors first.
Writes `<out>/real_model.json` and `<out>/real_model.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
CHECKPOINT = "[{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {save_last: true}}]"
OBJECTIVES = ("ipvrm", "implicit_prm", "dpo_rm", "endo_rm")
UNTRAINED = "endo_rm"


def main() -> None:
    arguments = parse_arguments()
    work = Path(arguments.work)
    work.mkdir(parents=True, exist_ok=True)
    model = arguments.model if arguments.gguf is None else save_gguf(arguments.model, arguments.gguf, work / "model")
    rollouts = choose_rollouts(arguments, model, work / "rollouts.jsonl")
    for objective in arguments.objectives:
        run_objective(objective, arguments, model, rollouts, work / objective)
    collect(arguments, work)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--gguf")
    parser.add_argument(
        "--rollouts", required=True, help="chosen + rejected, so that every objective sees the same rows"
    )
    parser.add_argument("--processbench", required=True, help="folder with <subset>.json")
    parser.add_argument("--subsets", nargs="+", default=["gsm8k", "math", "olympiadbench"])
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES))
    parser.add_argument("--pairs", type=int, default=60, help="pairs of responses to train on")
    parser.add_argument("--max-length", type=int, default=640, help="tokens of a training response with its prompt")
    parser.add_argument("--limit", type=int, default=60, help="solutions per subset of ProcessBench")
    parser.add_argument("--judged-length", type=int, default=1024, help="longer solutions are left out and counted")
    parser.add_argument("--batch", type=int, default=8, help="responses per optimiser step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", default="outputs/real_model")
    parser.add_argument("--out", default=str(REPOSITORY / "benchmarks" / "results"))
    return parser.parse_args()


def save_gguf(folder: str, file: str, target: Path) -> str:
    """Dequantise once: reading a GGUF file takes half a minute each time."""
    if not (target / "config.json").exists():
        from ipvrm_lightning.models import PretrainedLanguageModel

        factory = PretrainedLanguageModel(name=folder, gguf_file=file)
        factory.build_tokenizer().save_pretrained(target)
        factory.build_model().save_pretrained(target)
    return str(target)


def choose_rollouts(arguments: argparse.Namespace, model: str, target: Path) -> Path:
    """Draw pairs whose two responses both fit, so that no objective loses rows that another keeps."""
    if target.exists():
        return target
    from transformers import AutoTokenizer

    from ipvrm_lightning.data import read_rows

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [row for _, _, row in read_rows(arguments.rollouts)]

    def fits(row: dict) -> bool:
        texts = [tokenizer.apply_chat_template(row[side], tokenize=False) for side in ("chosen", "rejected")]
        return all(len(tokenizer(text)["input_ids"]) <= arguments.max_length for text in texts)

    fitting = [row for row in rows if fits(row)]
    chosen = random.Random(arguments.seed).sample(fitting, min(arguments.pairs, len(fitting)))
    target.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    return target


def run_objective(objective: str, arguments: argparse.Namespace, model: str, rollouts: Path, work: Path) -> None:
    """Train and judge one objective, unless its results are there."""
    pairwise = objective in ("dpo_rm", "qrm")
    shared = [
        "--config", str(REPOSITORY / "configs" / "ipvrm_smollm2.yaml"),
        "--config", str(REPOSITORY / "configs" / "objective" / f"{objective}.yaml"),
        "--model.init_args.language_model.init_args.name", model,
        "--model.init_args.reference.init_args.cache_dir", str(work.parent / "reference"),
        "--seed_everything", str(arguments.seed),
        "--trainer.default_root_dir", str(work),
    ]  # fmt: skip
    fit = [
        "fit", *shared,
        "--data.train", str(rollouts), "--data.max_length", str(arguments.max_length),
        "--data.validation_fraction", "0",
        "--data.max_prompts", "null", "--data.batch_size", str(arguments.batch // (2 if pairwise else 1)),
        "--data.seed", str(arguments.seed),
        "--trainer.callbacks", CHECKPOINT,
    ]  # fmt: skip
    test = [
        "test", *shared, "--config", str(REPOSITORY / "configs" / "data" / "processbench.yaml"),
        "--data.path", arguments.processbench, "--data.subsets", json.dumps(arguments.subsets),
        "--data.limit", str(arguments.limit), "--data.max_tokens", "4096", "--data.seed", str(arguments.seed),
        "--data.max_length", str(arguments.judged_length), "--data.over_length", "drop",
    ]  # fmt: skip
    if objective != UNTRAINED:
        test += ["--ckpt_path", "last"]
    if objective != UNTRAINED and not list(work.glob("*/checkpoints/last.ckpt")):
        run(fit, work / "fit.json")
    if not list(work.glob("*-test/results.json")):
        run(test, work / "test.json")


def run(command: list[str], record: Path) -> None:
    """Run `ipvrm`, keep its command and wall-clock seconds."""
    started = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "ipvrm_lightning", *command], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"command": ["ipvrm", *command], "seconds": round(time.monotonic() - started, 1)}))


def collect(arguments: argparse.Namespace, work: Path) -> None:
    """One JSON and one Markdown table of all objectives."""
    results = {}
    for objective in arguments.objectives:
        (file,) = (work / objective).glob("*-test/results.json")
        commands = {name: work / objective / f"{name}.json" for name in ("fit", "test")}
        records = {name: json.loads(path.read_text()) for name, path in commands.items() if path.exists()}
        results[objective] = {**json.loads(file.read_text()), **records}
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    record = {"command": sys.argv, "settings": vars(arguments), "objectives": results}
    (out / "real_model.json").write_text(json.dumps(record, indent=1) + "\n")
    (out / "real_model.md").write_text(make_table(record), encoding="utf-8")
    print(make_table(record))


def make_table(record: dict[str, Any]) -> str:
    """Step F1 by subset, objective and protocol, with the floors of the same solutions."""
    objectives, settings = record["objectives"], record["settings"]
    protocols = ("step_sum", "prefix_sum", "prefix_mean", "step_mean")
    lines = [f"Step F1 in percent, oracle / cross-fitted threshold. Seed {settings['seed']}.", ""]
    lines += [f"| solutions | scorer | {' | '.join(protocols)} |", "| --- " * (len(protocols) + 2) + "|"]
    first = next(iter(objectives.values()))["reports"]["step_f1"]["subsets"]
    for subset, reference in first.items():
        where = f"{subset} ({reference['solutions']}, {reference['with_error']} with an error)"
        for name, result in objectives.items():
            report = result["reports"]["step_f1"]["subsets"][subset]
            cells = [
                both(report["protocols"][p]["oracle"]["f1"], report["protocols"][p]["cross_fitted"]["f1"])
                for p in protocols
            ]
            lines.append(f"| {where} | {name} | {' | '.join(cells)} |")
        random_floor, longest = reference["random"], reference["longest_step"]
        random_cell = both(random_floor["oracle_mean"], random_floor["cross_fitted_mean"])
        longest_cell = both(longest["oracle"]["f1"], longest["cross_fitted"]["f1"])
        lines.append(f"| {where} | *random scores (floor)* | {' | '.join([random_cell] * 4)} |")
        lines.append(f"| {where} | *longest step (floor)* | {' | '.join([longest_cell] * 4)} |")
    lines += [
        "",
        f"Command: `python {' '.join(record['command'])}`",
        "",
        "| objective | fit, s | test, s |",
        "| --- | --- | --- |",
    ]
    for name, result in objectives.items():
        lines.append(f"| {name} | {result.get('fit', {}).get('seconds', '')} | {result['test']['seconds']} |")
    versions = next(iter(objectives.values()))["run"]["versions"]
    lines += ["", "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."]
    return "\n".join(lines) + "\n"


def both(oracle: float, cross_fitted: float) -> str:
    return f"{100 * oracle:.1f} / {100 * cross_fitted:.1f}"


if __name__ == "__main__":
    main()
