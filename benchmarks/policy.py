"""Policy optimisation on the built-in world: GRPO, GRPO with implicit reward models, DistRL; equal rollouts, seeds.

    python benchmarks/policy.py                # about 2 minutes per run on one core; stop and start it as you like

Each seed is a world of its own. Every row starts from the same supervised policy and draws the same number of
responses; its policy is judged on held-out problems while it trains. Reward models are trained first, on the world's
4,800 labelled rollouts, with the learning rates in `LEARNING_RATES`; the row "no
pretraining" starts its reward model from the supervised policy and so has seen the labels that GRPO has seen; "exact
credit" has the world's rules in place of a reward model, and shows what the candidate branch is worth when its credit
is right. Every finished run is a line of `<out>/policy.jsonl`; the tables are made from that file.

    python benchmarks/policy.py --time 6       # on an idle machine: seconds a step, for the comparison at equal time
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from measuring import versions
from objectives import read, spread, train

#: A world whose errors a policy can unlearn within minutes: operations it masters, errors that were planted. Wrong
#: lines name the other operand, so that the alternative is one token, and some of them change no answer.
WORLD: dict[str, Any] = {
    "size": "small",
    "overrides": {
        "difficulty": {"min_steps": 3, "max_steps": 10, "weights": [["max", 1.0], ["min", 1.0]]},
        "noise_rates": {"min": 0.05, "max": 0.2},
        "sft_target": None,
        "sft_tokens": 700_000,
        "ramp": 0.6,
        "test_prompts": 100,
        "best_of_prompts": 10,
        "truth_solutions": 2,
    },
}
OBJECTIVES = ("IPVRM", "ImplicitPRM", "DPORM")
IPVRM = {"objective": "IPVRM"}
#: The settings that find most wrong steps on another world (`results/ipvrm_settings.md`).
WIDE = {**IPVRM, "options": {"beta": 100.0, "margin": 0.0}}
#: No reward model at all: the world's rules say which token was wrong (`exact_credit.py`).
EXACT = {"objective": "IPVRM", "exact": True, "pretrained": False, "update": "frozen"}
#: Rows: `reward` is None for GRPO, `options` of its objective hold before reinforcement learning and in it, `online` in
#: it only; all other keys replace the settings of `run_once`.
VARIANTS: dict[str, dict[str, Any]] = {
    "GRPO": {"reward": None},
    "GRPO + IPVRM": {"reward": IPVRM, "distribution_coef": 0.0},
    "GRPO + ImplicitPRM": {"reward": {"objective": "ImplicitPRM"}, "distribution_coef": 0.0},
    "GRPO + DPORM": {"reward": {"objective": "DPORM"}, "distribution_coef": 0.0},
    "DistRL + IPVRM": {"reward": IPVRM},
    "DistRL + ImplicitPRM": {"reward": {"objective": "ImplicitPRM"}},
    "DistRL + DPORM": {"reward": {"objective": "DPORM"}},
    "GRPO + IPVRM, minibatch": {"reward": IPVRM, "distribution_coef": 0.0, "normalization": "minibatch"},
    "DistRL + IPVRM, minibatch": {"reward": IPVRM, "normalization": "minibatch"},
    "DistRL + IPVRM, alpha 0.5": {"reward": IPVRM, "distribution_coef": 0.5},
    "DistRL + IPVRM, no pretraining": {"reward": {**IPVRM, "pretrained": False}},
    "DistRL + IPVRM, frozen": {"reward": {**IPVRM, "update": "frozen"}},
    "DistRL + IPVRM, naive": {"reward": {**IPVRM, "boundary": False, "weighting": False}},
    "DistRL + IPVRM, boundary only": {"reward": {**IPVRM, "weighting": False}},
    "DistRL + IPVRM, weighting only": {"reward": {**IPVRM, "boundary": False}},
    "DistRL + IPVRM, margin 0": {"reward": {**IPVRM, "online": {"margin": 0.0}}},
    "GRPO + IPVRM, beta 100, margin 0": {"reward": WIDE, "distribution_coef": 0.0},
    "DistRL + IPVRM, beta 100, margin 0": {"reward": WIDE},
    "GRPO + DPORM, 1e-3": {"reward": {"objective": "DPORM", "learning_rate": 1e-3}, "distribution_coef": 0.0},
    "DistRL + DPORM, 1e-3": {"reward": {"objective": "DPORM", "learning_rate": 1e-3}},
    "GRPO + exact credit": {"reward": EXACT, "distribution_coef": 0.0},
    "DistRL + exact credit": {"reward": EXACT},
    "DistRL + exact credit, alpha 0.5": {"reward": EXACT, "distribution_coef": 0.5},
}
#: Of reward models before reinforcement learning, tried by `objectives.py` on another world (where DPO-RM has 1e-3).
LEARNING_RATES = {"IPVRM": 1e-3, "ImplicitPRM": 1e-3, "DPORM": 3e-4}
#: Rows that are compared at equal time; GRPO is the first.
TIMED = ("GRPO", "GRPO + IPVRM", "DistRL + IPVRM")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--every", type=int, default=8, help="steps between two judgements of the policy")
    parser.add_argument("--prompts", type=int, default=8, help="prompts with both outcomes per step")
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate of policy and online reward model")
    parser.add_argument("--time", type=int, metavar="STEPS", help="measure seconds a step of the rows that are timed")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"))
    arguments = parser.parse_args()
    if arguments.time:
        measure_seconds(arguments)
    store = Path(arguments.out) / "policy.jsonl"
    store.parent.mkdir(parents=True, exist_ok=True)
    for variant in arguments.variants:
        for seed in arguments.seeds:
            run_once(store, arguments, variant, seed)
    table = make_tables(read(store), arguments)
    (Path(arguments.out) / "policy.md").write_text(table, encoding="utf-8")
    print(table)


def settings_of(arguments: argparse.Namespace) -> list[Any]:
    """What runs must share to stand in one table; the world's settings and the version of its code among them."""
    from ipvrm_lightning.worlds.arithmetic import ArithmeticWorld

    world = ArithmeticWorld(**WORLD, seed=0).settings.fingerprint
    return [arguments.steps, arguments.every, arguments.prompts, arguments.rate, world]


def run_once(store: Path, arguments: argparse.Namespace, variant: str, seed: int) -> None:
    """Train a policy and judge it on the way, unless the store has it."""
    key = [variant, seed, *settings_of(arguments)]
    if any(run["key"] == key for run in read(store)):
        return
    module, data = prepare(arguments, variant, seed)
    curve = recorder()
    trainer = quiet_trainer(limit_train_batches=arguments.steps, val_check_interval=arguments.every, callbacks=[curve])
    started = time.monotonic()
    trainer.validate(module, datamodule=data, verbose=False)
    trainer.fit(module, datamodule=data)
    result = {"key": key, "curve": curve.points, "seconds": round(time.monotonic() - started, 1)}
    with store.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**result, "steps": curve.steps, "versions": versions()}) + "\n")


def measure_seconds(arguments: argparse.Namespace) -> None:
    """Median seconds of a step but the first, of the timed rows on seed 0, in turns; kept beside the runs."""
    seconds: dict[str, list[float]] = {name: [] for name in TIMED}
    for _ in range(2):
        for name in TIMED:
            module, data = prepare(arguments, name, 0)
            curve = recorder()
            quiet_trainer(limit_train_batches=arguments.time, limit_val_batches=0, callbacks=[curve]).fit(
                module, datamodule=data
            )
            seconds[name] += [step["seconds/step"] for step in curve.steps[1:]]
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    (Path(arguments.out) / "policy_seconds.json").write_text(json.dumps(medians, indent=2) + "\n", encoding="utf-8")


def prepare(arguments: argparse.Namespace, variant: str, seed: int) -> tuple[Any, Any]:
    """The module of a row, and its prompts."""
    from lightning.pytorch import seed_everything

    from ipvrm_lightning.worlds.arithmetic import ArithmeticPromptData

    seed_everything(seed)
    module = build_module(arguments, VARIANTS[variant], seed)
    data = ArithmeticPromptData(**WORLD, seed=seed, batch_size=arguments.prompts)
    data.prepare_data()
    data.with_tokenizer(module.language_model.build_tokenizer()).setup()
    data.val_prompts = data.test_prompts
    return module, data


def quiet_trainer(**options: Any) -> Any:
    from lightning.pytorch import Trainer

    return Trainer(
        accelerator="cpu", devices=1, max_epochs=1, num_sanity_val_steps=0, enable_model_summary=False,
        enable_checkpointing=False, logger=False, use_distributed_sampler=False, **options,
    )  # fmt: skip


def build_module(arguments: argparse.Namespace, settings: dict[str, Any], seed: int) -> Any:
    """The module of a row."""
    import torch
    from exact_credit import ExactCredit

    from ipvrm_lightning import objectives
    from ipvrm_lightning.modules import DistRLModule
    from ipvrm_lightning.modules.distrl_settings import AdvantageSettings, PolicyUpdate, RewardModel
    from ipvrm_lightning.rollouts import Sampling
    from ipvrm_lightning.worlds.arithmetic import ArithmeticPolicy, ArithmeticVerifier

    adam = partial(torch.optim.AdamW, lr=arguments.rate, weight_decay=0.0)
    chosen = settings["reward"]
    reward = None
    if chosen is not None:
        name = chosen["objective"]
        options = chosen.get("options", {})
        objective = getattr(objectives, name)(**options, **chosen.get("online", {}))
        reward = RewardModel(
            objective=objective,
            checkpoint=str(reward_model(name, seed, chosen.get("learning_rate"), options))
            if chosen.get("pretrained", True)
            else None,
            update=chosen.get("update", "before"),
            adaptive_difficulty_boundary=objective.balanced and chosen.get("boundary", True),
            dynamic_loss_weighting=objective.balanced and chosen.get("weighting", True),
            optimizer=adam,
        )
    coefficient = settings.get("distribution_coef", 0.0 if chosen is None else 0.1)
    kind = ExactCredit if chosen is not None and chosen.get("exact") else DistRLModule
    return kind(
        language_model=ArithmeticPolicy(**WORLD, seed=seed),
        verifier=ArithmeticVerifier(),
        reward=reward,
        sampling=Sampling(group_size=8, max_new_tokens=320, seed=seed),
        evaluation=Sampling(group_size=4, max_new_tokens=320, seed=10_000 + seed),
        advantages=AdvantageSettings(normalization=settings.get("normalization", "prompt_group")),
        update=PolicyUpdate(distribution_coef=coefficient),
        optimizer=adam,
        step_separator="\n",
    )


def reward_model(objective: str, seed: int, rate: float | None = None, options: dict[str, float] | None = None) -> Path:
    """A reward model trained on the world's labelled rollouts; made where it is absent."""
    rate = LEARNING_RATES[objective] if rate is None else rate
    options = options or {}
    name = "-".join([objective, *(f"{key}_{value:g}" for key, value in options.items()), f"{rate:g}", str(seed)])
    path = Path("outputs/policy_benchmark") / f"{name}.ckpt"
    if not path.exists():
        _, _, trainer = train(objective, rate, options, world={**WORLD, "seed": seed}, epochs=1)
        trainer.save_checkpoint(path)
    return path


def recorder() -> Any:
    """A callback that keeps the pass rate on held-out problems by step, and what every step logged."""
    from lightning.pytorch import Callback

    class Recorder(Callback):
        def __init__(self) -> None:
            self.points: list[list[float]] = []
            self.steps: list[dict[str, float]] = []

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            self.points.append([pl_module.steps_done, float(trainer.callback_metrics["val/all/avg@4"])])

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            logged = {k[6:]: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train/")}
            self.steps.append({name: round(value, 5) for name, value in logged.items()})

    return Recorder()


def make_tables(runs: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """Markdown: pass rate by step and the area under the curve, then what the steps looked like."""
    runs = [run for run in runs if run["key"][2:] == settings_of(arguments)]
    rows = {name: [run for run in runs if run["key"][0] == name] for name in VARIANTS}
    rows = {name: found for name, found in rows.items() if found}
    steps = [int(step) for step, _ in next(iter(rows.values()))[0]["curve"]]
    lines = [
        f"World of minima and maxima: {arguments.prompts} prompts x 8 responses a step, learning rate "
        f"{arguments.rate:g}; pass rate (percent) on 100 held-out problems x 4 responses; mean ± spread over seeds. "
        "The last columns are differences to GRPO with the same seed.",
        "",
        f"| | seeds | {' | '.join(f'step {s}' for s in steps)} | area under the curve | step {steps[-1]} minus GRPO's |"
        " area minus GRPO's |",
        "| --- " * (len(steps) + 5) + "|",
    ]
    grpo = {run["key"][1]: run for run in rows.get("GRPO", [])}
    for name, found in rows.items():
        cells = [spread([100 * run["curve"][i][1] for run in found]) for i in range(len(steps))]
        cells.append(spread([area(run) for run in found]))
        paired = [(run, grpo[run["key"][1]]) for run in found if run["key"][1] in grpo and name != "GRPO"]
        for measure in (last_rate, area):
            gains = [measure(run) - measure(other) for run, other in paired]
            cells.append(spread(gains) if gains else "")
        lines.append(f"| {name} | {len(found)} | {' | '.join(cells)} |")
    shown = ["candidates", "candidate_mass", "loss/token", "loss/candidate", "reward/accuracy",
             "reward/correlation", "kept_prompts", "entropy", "gradient_norm"]  # fmt: skip
    lines += [
        "",
        "Means over all steps and seeds:",
        "",
        f"| | {' | '.join(shown)} |",
        "| --- " * (len(shown) + 1) + "|",
    ]
    for name, found in rows.items():
        lines.append(f"| {name} | {' | '.join(mean_of(found, measure) for measure in shown)} |")
    timing = Path(arguments.out) / "policy_seconds.json"
    if timing.exists():
        lines += ["", *equal_time(rows, json.loads(timing.read_text(encoding="utf-8")))]
    return "\n".join(lines) + "\n"


def equal_time(rows: dict[str, list[dict[str, Any]]], seconds: dict[str, float]) -> list[str]:
    """Markdown: pass rates once every row has had the time that the fastest needs for all its steps."""
    timed = {name: rows[name] for name in TIMED if name in rows}
    last = min(run["curve"][-1][0] for found in timed.values() for run in found)
    budget = min(last * seconds[name] for name in timed)
    steps = {name: min(last, budget / seconds[name]) for name in timed}
    lines = [
        f"At equal time, that of {last} steps of {min(timed, key=lambda name: seconds[name])} ({budget:.0f} s of"
        " training; seconds a step are medians on an idle machine, pass rates between two judgements interpolated):",
        "",
        "| | seconds a step | steps | pass rate | minus GRPO's, same seed |",
        "| --- | --- | --- | --- | --- |",
    ]
    grpo = {run["key"][1]: at_step(run, steps["GRPO"]) for run in timed.get("GRPO", [])}
    for name, found in timed.items():
        rates = {run["key"][1]: at_step(run, steps[name]) for run in found}
        gains = [rate - grpo[seed] for seed, rate in rates.items() if seed in grpo]
        gain = spread(gains) if gains and name != "GRPO" else ""
        lines.append(f"| {name} | {seconds[name]:.2f} | {steps[name]:.1f} | {spread(list(rates.values()))} | {gain} |")
    return lines


def at_step(run: dict[str, Any], step: float) -> float:
    """Pass rate in percent at a step, on the line between the judgements around it."""
    for (left, low), (right, high) in pairwise(run["curve"]):
        if left <= step <= right:
            return float(100 * (low + (high - low) * (step - left) / (right - left)))
    raise ValueError(f"step {step} is not within the run")


def last_rate(run: dict[str, Any]) -> float:
    """Pass rate at the end of the run, in percent."""
    return 100 * float(run["curve"][-1][1])


def area(run: dict[str, Any]) -> float:
    """Mean pass rate over the run in percent, by the trapezoidal rule."""
    points = run["curve"]
    pairs = pairwise(points)
    return 100 * sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairs) / (points[-1][0] - points[0][0])


def mean_of(runs: list[dict[str, Any]], measure: str) -> str:
    values = [step[measure] for run in runs for step in run["steps"] if step.get(measure) == step.get(measure, 0)]
    values = [value for value in values if value is not None]
    return f"{statistics.fmean(values):.3g}" if values else "-"


if __name__ == "__main__":
    main()
