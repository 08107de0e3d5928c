"""A GRPO step against TRL's GRPOTrainer: sampling, verifying and updating; time and memory, as ratios.

    python benchmarks/rl_step.py --prompts 2 --tokens 128

The same shape with random weights, prompts, group size, response length (random weights do not end by themselves) and
optimiser; outcomes are a hash of the response, so that groups have both. One update per step, no KL, full precision, no
gradient checkpointing. TRL is `pip install trl`. "DistRL + IPVRM" is what TRL has no counterpart of.
"""

from __future__ import annotations

import argparse
import json
import random
import zlib
from functools import partial
from pathlib import Path
from typing import Any

from measuring import Clock, Found, Peak, compare, counted, memory_of, ratio, seconds_of, spread_of, table

VARIANTS = ("TRL GRPO", "GRPO", "DistRL + IPVRM")
GROUP = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen3-tiny", help="a key of shapes.SHAPES")
    parser.add_argument("--prompts", type=int, default=2, help="in a step, with 8 responses each")
    parser.add_argument("--tokens", type=int, default=128, help="of a response")
    parser.add_argument("--steps", type=int, default=2, help="that are timed, in each round")
    compare(parser, "rl_step", VARIANTS, measure, make_table)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds of each step but the first, and peak memory, of one variant."""
    from shapes import WordModel, words

    peak, clock = Peak(), Clock()
    factory = WordModel(arguments.shape)
    draw = random.Random(0)
    prompts = [words(draw, factory.words, 64) for _ in range(arguments.prompts * (arguments.steps + 1))]
    step = trl if arguments.variant.startswith("TRL") else ours
    step(arguments, factory, prompts, folder, clock)
    return {"seconds": clock.seconds, "memory": peak.mebibytes}


def outcome(response: str) -> bool:
    """Right or wrong by a coin that the response is."""
    return bool(zlib.crc32(response.strip().encode()) & 1)


def ours(arguments: argparse.Namespace, factory: Any, prompts: list[str], folder: Path, clock: Clock) -> None:
    """Through the data module, the module and the trainer that everyone uses."""
    import torch
    from trainers import bare_trainer

    from ipvrm_lightning.data import PromptDataModule
    from ipvrm_lightning.modules import DistRLModule
    from ipvrm_lightning.modules.distrl_settings import Collecting, PolicyUpdate, RewardModel
    from ipvrm_lightning.objectives import IPVRM
    from ipvrm_lightning.rollouts import ExactMatch, Sampling
    from ipvrm_lightning.rollouts.groups import Collection, Group

    class Tossed(DistRLModule):
        """Outcomes by the coin: a verifier is not asked about responses that were cut off, which these all are."""

        def answer(self, *args: Any, **kwargs: Any) -> list[Group]:
            groups = super().answer(*args, **kwargs)
            return [
                group._replace(attempts=[one._replace(outcome=int(outcome(one.text))) for one in group.attempts])
                for group in groups
            ]

        def collect(self, stream: Any) -> Collection:
            found = super().collect(stream)
            if len(found.kept) != arguments.prompts:
                raise SystemExit(f"{len(found.kept)} of {arguments.prompts} prompts have both outcomes: no full step")
            return found

    rows = [json.dumps({"prompt": prompt, "ground_truth": "1"}) + "\n" for prompt in prompts]
    (folder / "prompts.jsonl").write_text("".join(rows), encoding="utf-8")
    adam = partial(torch.optim.AdamW, lr=1e-6)
    dense = arguments.variant.startswith("DistRL")
    module = Tossed(
        language_model=factory, verifier=ExactMatch(), optimizer=adam, collecting=Collecting(max_refills=0),
        sampling=Sampling(group_size=GROUP, max_new_tokens=arguments.tokens),
        reward=RewardModel(objective=IPVRM(), optimizer=adam) if dense else None,
        update=PolicyUpdate(distribution_coef=0.1 if dense else 0.0, max_tokens=GROUP * (64 + arguments.tokens)),
    )  # fmt: skip
    trainer = bare_trainer(clock, max_epochs=1, limit_val_batches=0)
    data = PromptDataModule(
        train=str(folder / "prompts.jsonl"), validation_fraction=0.0, prompt_format="plain",
        batch_size=arguments.prompts,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)


def trl(arguments: argparse.Namespace, factory: Any, prompts: list[str], folder: Path, clock: Clock) -> None:
    """TRL's trainer as its documentation shows it, sampling with transformers."""
    from datasets import Dataset
    from trainers import stored_model, trl_options, trl_timer
    from trl import GRPOConfig, GRPOTrainer

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(outcome(text)) for text in completions]

    # micro-batches of one group, all responses of a step sampled together
    settings = GRPOConfig(
        **trl_options(folder), per_device_train_batch_size=GROUP, num_generations=GROUP, learning_rate=1e-6,
        gradient_accumulation_steps=arguments.prompts, max_steps=arguments.steps + 1, beta=0.0, temperature=1.0,
        max_completion_length=arguments.tokens,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=stored_model(factory, folder), args=settings, reward_funcs=reward,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=factory.build_tokenizer(), callbacks=[trl_timer(clock)],
    )  # fmt: skip
    trainer.train()


def make_table(found: Found, arguments: argparse.Namespace) -> list[str]:
    """Medians, and ratios to TRL."""
    rows = []
    for name in found:
        rows.append([
            name, f"{seconds_of(found, name):.2f}", f"{spread_of(found, name):.2f}",
            ratio(seconds_of, found, name, "TRL GRPO"),
            f"{memory_of(found, name):.0f}", ratio(memory_of, found, name, "TRL GRPO"),
        ])  # fmt: skip
    return [
        f"{arguments.shape}, random weights; {arguments.prompts} prompts of 64 tokens x {GROUP} responses of"
        f" {arguments.tokens} tokens a step; {counted(arguments.rounds, 'round')} of"
        f" {counted(arguments.steps, 'step')}.",
        "",
        *table(["", "seconds a step", "slowest / fastest", "time ratio", "peak MiB", "memory ratio"], rows),
    ]


if __name__ == "__main__":
    main()
