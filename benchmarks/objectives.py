"""Objectives on the built-in world: equal data, equal steps, equally many learning rates tried, several seeds.

    python benchmarks/objectives.py            # about 15 minutes per seed on one core; stop and start it as you like
    python benchmarks/objectives.py --rows IPVRM "IPVRM, margin 0" "IPVRM, beta 100" --table ipvrm_settings.md

Each seed is a world of its own: problems, policy, rollouts, held-out sets. Learning rates are chosen once per row on a
separate world, by the validation AUROC of outcomes: step labels are never looked at. Every finished run is a line of
`<out>/objectives.jsonl`; tables are made from that file.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from measuring import versions

Reports = dict[str, Any]
OBJECTIVES = ("IPVRM", "ImplicitPRM", "DPORM", "QRM")
PAIRWISE = ("DPORM", "QRM")
#: Rows: an objective, and options in place of the published ones.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    **{objective: (objective, {}) for objective in OBJECTIVES},
    "IPVRM, margin 0": ("IPVRM", {"margin": 0.0}),
    "IPVRM, margin 1": ("IPVRM", {"margin": 1.0}),
    "IPVRM, beta 30": ("IPVRM", {"beta": 30.0}),
    "IPVRM, beta 100": ("IPVRM", {"beta": 100.0}),
    "IPVRM, beta 100, margin 0": ("IPVRM", {"beta": 100.0, "margin": 0.0}),
    "IPVRM, late prefixes": ("IPVRM", {"prefix_weighting": "late"}),
    "IPVRM, tokens pooled": ("IPVRM", {"reduction": "token"}),
    "EndoRM": ("EndoRM", {}),
}
UNTRAINED = "EndoRM"
LEARNING_RATES = (3e-4, 1e-3)
TUNING_SEED = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=[*OBJECTIVES, UNTRAINED], metavar="ROW")
    parser.add_argument("--size", default="small")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"))
    parser.add_argument("--table", default="objectives.md", help="file in the folder --out")
    arguments = parser.parse_args()
    store = Path(arguments.out) / "objectives.jsonl"
    store.parent.mkdir(parents=True, exist_ok=True)
    trained = [row for row in arguments.rows if row != UNTRAINED]
    for row in trained:
        for number in range(len(LEARNING_RATES)):
            run_once(store, arguments, "tune", row, TUNING_SEED, number)
    for seed in arguments.seeds:
        for row in arguments.rows:
            number = best_try(read(store), arguments, row) if row in trained else 0
            run_once(store, arguments, "compare", row, seed, number)
    table = make_table(read(store), arguments)
    (Path(arguments.out) / arguments.table).write_text(table, encoding="utf-8")
    print(table)


def read(store: Path) -> list[dict[str, Any]]:
    """Finished runs; one that two processes made at the same time counts once."""
    lines = store.read_text().splitlines() if store.exists() else []
    return list({json.dumps(run["key"]): run for run in map(json.loads, lines)}.values())


def best_try(runs: list[dict[str, Any]], arguments: argparse.Namespace, row: str) -> int:
    """The try with the best validation AUROC on the tuning world."""
    wanted = extra(arguments, TUNING_SEED)
    tries = [r for r in runs if r["key"][:3] == ["tune", row, TUNING_SEED] and r["key"][4:] == wanted]
    return max(tries, key=lambda run: run["val_auroc"])["key"][3]


def extra(arguments: argparse.Namespace, seed: int) -> list[Any]:
    """What else a run must share to count: a changed world makes runs of the old one useless."""
    from ipvrm_lightning.worlds.arithmetic.settings import ArithmeticWorld

    return [arguments.size, arguments.epochs, ArithmeticWorld(size=arguments.size, seed=seed).settings.fingerprint]


def run_once(store: Path, arguments: argparse.Namespace, stage: str, row: str, seed: int, number: int) -> None:
    """Train and judge one setting, unless the store has it."""
    key = [stage, row, seed, number, *extra(arguments, seed)]
    if any(run["key"] == key for run in read(store)):
        return
    objective, options = ROWS[row]
    rate = 0.0 if row == UNTRAINED else LEARNING_RATES[number]
    started = time.monotonic()
    world = {"size": arguments.size, "seed": seed}
    module, data, trainer = train(objective, rate, options, world=world, epochs=arguments.epochs)
    result: dict[str, Any] = {"key": key, "learning_rate": rate, "options": options, "steps": trainer.global_step}
    result["seconds"] = round(time.monotonic() - started, 1)
    result["val_auroc"] = trainer.validate(module, datamodule=data, verbose=False)[0]["val/auroc"]
    if stage == "compare":
        trainer.test(module, datamodule=data, verbose=False)
        result["reports"] = {name: report.to_dict() for name, report in module.test_report.items()}
        result["versions"] = versions()
    with store.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")


def train(
    objective: str, rate: float, options: dict[str, Any], *, world: dict[str, Any], epochs: int
) -> tuple[Any, Any, Any]:
    """A reward model of a world, with its data and trainer; trained where its objective is."""
    import torch
    from lightning.pytorch import Trainer, seed_everything

    from ipvrm_lightning import objectives
    from ipvrm_lightning.models import CachedReference, FrozenCopy
    from ipvrm_lightning.modules import IPVRMModule
    from ipvrm_lightning.modules.schedule import Schedule
    from ipvrm_lightning.worlds.arithmetic import ArithmeticDataModule, ArithmeticPolicy

    seed_everything(world["seed"])
    module = IPVRMModule(
        language_model=ArithmeticPolicy(**world),
        objective=getattr(objectives, objective)(**options),
        reference=CachedReference(source=FrozenCopy()),
        optimizer=partial(torch.optim.AdamW, lr=rate, weight_decay=0.0),
        scheduler=Schedule(name="cosine", warmup=0.1),
    )
    data = ArithmeticDataModule(
        **world, pairwise=objective in PAIRWISE, max_tokens=8192, max_pairs_per_prompt=4,
        batch_size=32 if objective in PAIRWISE else 64,
    )  # fmt: skip
    # as many steps as the epochs in windows of 64 responses take, for every objective
    settings = data.world.settings
    steps = epochs * -(-settings.train_prompts * settings.train_rollouts // 64)
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=-1, max_steps=steps, use_distributed_sampler=False,
        check_val_every_n_epoch=10**6, num_sanity_val_steps=0, enable_model_summary=False, enable_checkpointing=False,
        logger=False,
    )  # fmt: skip
    if module.objective.trainable:
        trainer.fit(module, datamodule=data)
    return module, data, trainer


def make_table(runs: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """Markdown: mean and sample standard deviation over seeds of every measure, a column per row."""
    compared = [
        r for r in runs
        if r["key"][0] == "compare" and r["key"][1] in arguments.rows and r["key"][2] in arguments.seeds
        and r["key"][4:] == extra(arguments, r["key"][2])
    ]  # fmt: skip
    names = arguments.rows
    seeds = sorted({run["key"][2] for run in compared})
    lines = [
        f"Arithmetic world, size {arguments.size}, seeds {seeds}, {arguments.epochs} epochs: mean ± spread.",
        "",
        f"| measure | {' | '.join(names)} | floor |",
        "| --- " * (len(names) + 2) + "|",
    ]
    for measure, (get, floor) in measures().items():
        cells = [spread([get(r["reports"]) for r in compared if r["key"][1] == name]) for name in names]
        floors = spread([floor(r["reports"]) for r in compared if r["key"][1] == names[0]]) if floor else ""
        lines.append(f"| {measure} | {' | '.join(cells)} | {floors} |")
    chosen = {name: next(r for r in compared if r["key"][1] == name) for name in names if name != UNTRAINED}
    rates = "; ".join(f"{name}: {run['learning_rate']:g}" for name, run in chosen.items())
    steps = sorted({run["steps"] for run in chosen.values()})
    lines += ["", f"Learning rates, chosen by validation AUROC on a world of their own: {rates}. Steps: {steps}."]
    first = {run["key"][2]: run["reports"]["best_of_n"]["accuracy"] for run in compared}
    pass_rates = ", ".join(f"{100 * at(first[seed]['pass@1'], 8)['accuracy']:.1f}" for seed in seeds)
    lines += [
        "",
        "Floor: the longest step for step F1, pass@1 for best of 8, a constant for the squared error. "
        f"pass@1 of the seeds' policies on the best-of-8 problems: {pass_rates} percent.",
        "",
        f"`python benchmarks/objectives.py {shlex.join(sys.argv[1:])}`; {compared[0]['versions']}",
    ]
    return "\n".join(lines) + "\n"


def measures() -> dict[str, tuple[Callable[[Reports], float], Callable[[Reports], float] | None]]:
    """What the table shows: how to read it from the reports, and its floor."""
    table: dict[str, tuple[Callable[[Reports], float], Callable[[Reports], float] | None]] = {}
    for subset in ("format0", "format1", "format2"):
        for protocol in ("step_sum", "prefix_sum", "prefix_mean", "step_mean"):
            table[f"step F1, {subset}, {protocol}, cross-fitted"] = (
                lambda r, s=subset, p=protocol: 100 * r["step_f1"]["subsets"][s]["protocols"][p]["cross_fitted"]["f1"],
                lambda r, s=subset: 100 * r["step_f1"]["subsets"][s]["longest_step"]["cross_fitted"]["f1"],
            )
    best = "best_of_n"
    table["best of 8, final value"] = (
        lambda r: 100 * at(r[best]["accuracy"]["final_value"], 8)["accuracy"],
        lambda r: 100 * at(r[best]["accuracy"]["pass@1"], 8)["accuracy"],
    )
    table["majority vote of 8"] = (lambda r: 100 * at(r[best]["accuracy"]["majority vote"], 8)["accuracy"], None)
    table["AUROC of final value"] = (lambda r: r["calibration"]["final_auroc"], None)
    table["ECE of final value"] = (lambda r: r["calibration"]["final_ece"], None)
    table["Brier score of final value"] = (lambda r: r["calibration"]["final_brier"], None)
    table["prefix truth, correlation"] = (lambda r: r["prefix_truth"]["pearson"], None)
    table["prefix truth, correlation within a solution"] = (lambda r: r["prefix_truth"]["within_solution"], None)
    table["prefix truth, squared error"] = (
        lambda r: r["prefix_truth"]["brier"],
        lambda r: r["prefix_truth"]["constant_brier"],
    )
    return table


def at(results: dict[Any, Any], n: int) -> Any:
    """A result by n: JSON has turned the keys into text."""
    return results[str(n)]


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation."""
    mean = statistics.mean(values)
    digits = 1 if abs(mean) > 1.5 else 3
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{deviation}"


if __name__ == "__main__":
    main()
