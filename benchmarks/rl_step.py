"""A GRPO step against TRL's GRPOTrainer: sampling, verifying and updating; time and memory, as ratios.

    python benchmarks/rl_step.py --prompts 2 --tokens 128

The same shape with random weights, prompts, group size, response length (random weights do not end by themselves) and
optimiser; outcomes are a hash of the response, so that groups have both. One update per step, no KL, full precision, no
gradient checkpointing. TRL is `pip install trl`. "DistRL + IPVRM" is what TRL has no counterpart of.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any

from measuring import RESULTS, Clock, Found, Peak, in_turns, keep, memory_of, seconds_of, spread_of, table

VARIANTS = ("TRL GRPO", "GRPO", "DistRL + IPVRM")
GROUP = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen3-tiny", help="a key of shapes.SHAPES")
    parser.add_argument("--prompts", type=int, default=2, help="in a step, with 8 responses each")
    parser.add_argument("--tokens", type=int, default=128, help="of a response")
    parser.add_argument("--steps", type=int, default=2, help="that are timed, in each round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--variant", choices=VARIANTS, help="run one and print its numbers as JSON")
    parser.add_argument("--out", default=str(RESULTS))
    arguments = parser.parse_args()
    if arguments.variant is None:
        keep("rl_step", make_table(in_turns(__file__, VARIANTS, arguments.rounds), arguments), arguments)
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(arguments, Path(folder))))


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
    from lightning.pytorch import Callback, Trainer

    from ipvrm_lightning.data import PromptDataModule
    from ipvrm_lightning.modules import DistRLModule
    from ipvrm_lightning.modules.distrl_settings import Collecting, PolicyUpdate, RewardModel
    from ipvrm_lightning.objectives import IPVRM
    from ipvrm_lightning.rollouts import Sampling, Verdict, Verifier

    class Coin(Verifier):
        def verify(self, submissions: Any) -> list[Verdict]:
            return [Verdict(outcome(one.response), None, None) for one in submissions]

    class Timer(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            clock.start()

        def on_train_batch_end(self, *_: Any) -> None:
            clock.stop()

    rows = [json.dumps({"prompt": prompt, "ground_truth": "1"}) + "\n" for prompt in prompts]
    (folder / "prompts.jsonl").write_text("".join(rows), encoding="utf-8")
    adam = partial(torch.optim.AdamW, lr=1e-6)
    dense = arguments.variant.startswith("DistRL")
    module = DistRLModule(
        language_model=factory, verifier=Coin(), optimizer=adam, collecting=Collecting(max_refills=0),
        sampling=Sampling(group_size=GROUP, max_new_tokens=arguments.tokens),
        reward=RewardModel(objective=IPVRM(), optimizer=adam) if dense else None,
        update=PolicyUpdate(distribution_coef=0.1 if dense else 0.0, max_tokens=GROUP * (64 + arguments.tokens)),
    )  # fmt: skip
    trainer = Trainer(
        devices=1, max_epochs=1, limit_val_batches=0, logger=False, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, use_distributed_sampler=False, callbacks=[Timer()],
    )  # fmt: skip
    data = PromptDataModule(
        train=str(folder / "prompts.jsonl"), validation_fraction=0.0, prompt_format="plain",
        batch_size=arguments.prompts,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)


def trl(arguments: argparse.Namespace, factory: Any, prompts: list[str], folder: Path, clock: Clock) -> None:
    """TRL's trainer as its documentation shows it, sampling with transformers."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Timer(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.stop()

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(outcome(text)) for text in completions]

    # micro-batches of one group, all responses of a step sampled together
    settings = GRPOConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=GROUP, num_generations=GROUP, learning_rate=1e-6,
        gradient_accumulation_steps=arguments.prompts, max_steps=arguments.steps + 1, beta=0.0, temperature=1.0,
        max_completion_length=arguments.tokens, gradient_checkpointing=False, bf16=False, report_to=[],
        use_cpu=not torch.cuda.is_available(), save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    model, name = factory.build_model(), str(folder / "model")
    model.save_pretrained(name)
    model.config._name_or_path = model.name_or_path = name
    trainer = GRPOTrainer(
        model=model, args=settings, train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        reward_funcs=reward, processing_class=factory.build_tokenizer(), callbacks=[Timer()],
    )  # fmt: skip
    trainer.train()


def make_table(found: Found, arguments: argparse.Namespace) -> list[str]:
    """Medians, and ratios to TRL."""
    rows = []
    for name in found:
        seconds, memory = seconds_of(found, name), memory_of(found, name)
        rows.append([
            name, f"{seconds:.2f}", f"{spread_of(found, name):.2f}", f"{seconds / seconds_of(found, 'TRL GRPO'):.2f}",
            f"{memory:.0f}", f"{memory / memory_of(found, 'TRL GRPO'):.2f}",
        ])  # fmt: skip
    return [
        f"{arguments.shape}, random weights; {arguments.prompts} prompts of 64 tokens x {GROUP} responses of"
        f" {arguments.tokens} tokens a step; {arguments.rounds} rounds of {arguments.steps} steps.",
        "",
        *table(["", "seconds a step", "slowest / fastest", "time ratio", "peak MiB", "memory ratio"], rows),
    ]


if __name__ == "__main__":
    main()
