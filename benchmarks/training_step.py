"""A training step against a plain implementation of the same objective and against TRL: time and memory, as ratios.

    python benchmarks/training_step.py --shape qwen3-tiny --longest 2048
    python benchmarks/training_step.py --shape smollm2-135m --longest 1024 --pairs 2

A shape with random weights; one window of pairs of mixed lengths, the same rows for all. "Plain" is what a first
implementation looks like: padded batches of two rows, logits of all positions, log_softmax, two models in memory. TRL
(`pip install trl`) trains on batches of two rows or one pair. Nobody uses gradient checkpointing or half precision.
The reference is computed in each step ("in the step") or before the first one ("kept"); what that costs once is told.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Any

from measuring import Clock, Found, Peak, compare, counted, memory_of, ratio, seconds_of, spread_of, table

#: Variant to the one that its ratio is taken to.
VARIANTS = {
    "plain IPVRM": "plain IPVRM",
    "IPVRM, reference in the step": "plain IPVRM",
    "IPVRM, reference kept": "plain IPVRM",
    "IPVRM, reference in the step, compiled": "plain IPVRM",
    "IPVRM, reference kept, compiled": "plain IPVRM",
    "IPVRM, reference kept, compiled, recomputed activations": "plain IPVRM",
    "TRL KTO": "TRL KTO",
    "ImplicitPRM, reference in the step": "TRL KTO",
    "TRL DPO": "TRL DPO",
    "DPORM, reference in the step": "TRL DPO",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen3-tiny", help="a key of shapes.SHAPES")
    parser.add_argument("--longest", type=int, default=2048, help="tokens of prompt and response, at most")
    parser.add_argument("--pairs", type=int, default=4, help="pairs of responses in a step")
    parser.add_argument("--steps", type=int, default=2, help="that are timed, in each round")
    parser.add_argument("--budget", type=int, default=2, help="tokens of a pass of ours, in longest sequences")
    compare(parser, "training_step_{shape}", list(VARIANTS), measure, make_table)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds of each step but the first, and peak memory, of one variant."""
    from shapes import WordModel, write_pairs

    peak, clock = Peak(), Clock()
    options = {"compile": "compiled" in arguments.variant, "gradient_checkpointing": "recomputed" in arguments.variant}
    factory = WordModel(arguments.shape, **options)
    rows = write_pairs(
        folder / "pairs.jsonl", pairs=arguments.pairs, longest=arguments.longest, vocabulary=factory.words
    )
    extra: dict[str, Any] = {}
    if arguments.variant.startswith("plain"):
        plain(arguments, factory, rows, clock)
    elif arguments.variant.startswith("TRL"):
        trl(arguments, factory, rows, folder, clock)
    else:
        extra = ours(arguments, factory, folder, clock)
    return {"seconds": clock.seconds, "memory": peak.mebibytes, **extra}


def ours(arguments: argparse.Namespace, factory: Any, folder: Path, clock: Clock) -> dict[str, Any]:
    """Through the data module, the module and the trainer that everyone uses."""
    import time

    import torch
    from lightning.pytorch import Callback
    from trainers import bare_trainer

    from ipvrm_lightning import objectives
    from ipvrm_lightning.data import TrajectoryDataModule
    from ipvrm_lightning.models import CachedReference, FrozenCopy
    from ipvrm_lightning.modules import IPVRMModule

    class Beforehand(Callback):
        def on_fit_start(self, *_: Any) -> None:
            self.began = time.perf_counter()

        def on_train_start(self, *_: Any) -> None:
            self.seconds = time.perf_counter() - self.began

    kept = "reference kept" in arguments.variant
    objective = getattr(objectives, arguments.variant.split(",")[0])()
    reference = CachedReference(source=FrozenCopy(), cache_dir=str(folder / "cache")) if kept else FrozenCopy()
    beforehand = Beforehand()
    processes = int(os.environ.get("WORLD_SIZE", 1))
    trainer = bare_trainer(
        clock, devices=processes, strategy="ddp" if processes > 1 else "auto", max_epochs=arguments.steps + 1,
        callbacks=[beforehand],
    )  # fmt: skip
    module = IPVRMModule(
        language_model=factory, objective=objective, reference=reference, optimizer=partial(torch.optim.AdamW, lr=1e-5)
    )
    data = TrajectoryDataModule(
        train=str(folder / "pairs.jsonl"), validation_fraction=0.0, pairwise=objective.pairwise, prompt_format="plain",
        batch_size=arguments.pairs * (1 if objective.pairwise else 2), max_tokens=arguments.budget * arguments.longest,
        max_length=arguments.longest,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return {"once": beforehand.seconds} if kept else {}


def plain(arguments: argparse.Namespace, factory: Any, rows: list[dict[str, str]], clock: Clock) -> None:
    """Padded batches of two, all logits, log_softmax, model and reference side by side."""
    import torch

    from ipvrm_lightning.functional import ipvrm_loss

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, frozen = (factory.build_model().to(device) for _ in range(2))
    frozen.requires_grad_(False)
    tokenizer = factory.build_tokenizer()
    examples = []
    for row in rows:
        start = len(tokenizer(row["prompt"])["input_ids"])
        for outcome, side in ((1.0, "chosen"), (0.0, "rejected")):
            ids = tokenizer(f"{row['prompt']} {row[side]}")["input_ids"] + [tokenizer.eos_token_id]
            examples.append((ids, start, outcome))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def token_log_probs(network: Any, ids: Any, attends: Any) -> Any:
        logits = network(input_ids=ids, attention_mask=attends).logits
        return logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)

    for _ in range(arguments.steps + 1):
        clock.start()
        for number in range(0, len(examples), 2):
            pair = examples[number : number + 2]
            longest = max(len(ids) for ids, _, _ in pair)
            ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _, _ in pair], device=device)
            places = torch.arange(longest, device=device)
            attends = torch.stack([places < len(ids) for ids, _, _ in pair])
            responses = torch.stack([(places >= start) & (places < len(ids)) for ids, start, _ in pair])[:, 1:]
            with torch.no_grad():
                reference = token_log_probs(frozen, ids, attends)
            ratios = (token_log_probs(model, ids, attends) - reference) * responses
            outcomes = torch.tensor([outcome for _, _, outcome in pair], device=device)
            loss = ipvrm_loss(ratios, outcomes, responses, beta=10.0, margin=5.0)
            (loss * len(pair) / len(examples)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.stop()


def trl(arguments: argparse.Namespace, factory: Any, rows: list[dict[str, str]], folder: Path, clock: Clock) -> None:
    """TRL's trainer as its documentation shows it, in full precision, without gradient checkpointing."""
    from datasets import Dataset
    from trainers import stored_model, trl_options, trl_timer

    pairwise = arguments.variant == "TRL DPO"
    options = {
        **trl_options(folder), "per_device_train_batch_size": 1 if pairwise else 2, "learning_rate": 1e-5,
        "gradient_accumulation_steps": arguments.pairs, "max_steps": arguments.steps + 1, "max_length": None,
    }  # fmt: skip
    rows = [{**row, "chosen": f" {row['chosen']}", "rejected": f" {row['rejected']}"} for row in rows]
    if pairwise:
        from trl import DPOConfig as Config
        from trl import DPOTrainer as TheirTrainer
    else:
        from trl import KTOConfig as Config
        from trl import KTOTrainer as TheirTrainer

        sides = (("chosen", True), ("rejected", False))
        rows = [{"prompt": r["prompt"], "completion": r[side], "label": label} for r in rows for side, label in sides]
    trainer = TheirTrainer(
        model=stored_model(factory, folder), args=Config(**options), train_dataset=Dataset.from_list(rows),
        processing_class=factory.build_tokenizer(), callbacks=[trl_timer(clock)],
    )  # fmt: skip
    trainer.train()


def make_table(found: Found, arguments: argparse.Namespace) -> list[str]:
    """Medians, and ratios to what each variant is compared with."""
    rows = []
    for name in found:
        other = VARIANTS[name]
        rows.append([
            name, f"{seconds_of(found, name):.2f}", f"{spread_of(found, name):.2f}",
            ratio(seconds_of, found, name, other),
            f"{memory_of(found, name):.0f}", ratio(memory_of, found, name, other), other,
        ])  # fmt: skip
    header = ["", "seconds a step", "slowest / fastest", "time ratio", "peak MiB", "memory ratio", "ratio to"]
    lines = [
        f"{arguments.shape}, random weights; {2 * arguments.pairs} sequences of up to {arguments.longest} tokens a"
        f" step; {counted(arguments.rounds, 'round')} of {counted(arguments.steps, 'step')}.",
        "",
        *table(header, rows),
    ]
    kept = [run["once"] for runs in found.values() for run in runs if "once" in run]
    if kept:
        lines += ["", f"Keeping the reference's values took {sum(kept) / len(kept):.1f} s once per run."]
    return lines


if __name__ == "__main__":
    main()
