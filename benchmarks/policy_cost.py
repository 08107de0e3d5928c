"""What the candidate branch costs: a DistRL step over a GRPO + IPVRM step and over a GRPO step, on equal responses.

    python benchmarks/policy_cost.py --hidden 256 --layers 4 --vocabulary 151936 --length 512 --rounds 3

A Qwen3-shaped model with random weights; responses and outcomes are given, so that sampling, which is the same for all,
does not dilute the ratios. Random weights hold no token likely: the row "all 5 count" lets every one of the five most
likely tokens count, which no real policy comes near; the paper's threshold of 0.1 leaves about 1.3 a position there.
Each variant runs in a process of its own, in turns; time is the median over the steps of all rounds, memory the highest
anonymous memory (`RssAnon`) of the process, or the GPU's allocated maximum.
"""

from __future__ import annotations

import argparse
import random
from functools import partial
from pathlib import Path
from typing import Any

from measuring import Clock, Found, Peak, compare, counted, memory_of, ratio, seconds_of, table

VARIANTS = ("GRPO", "GRPO + IPVRM", "DistRL + IPVRM", "DistRL + IPVRM, all 5 count")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--length", type=int, default=512, help="longest response, tokens")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    compare(parser, "policy_cost", VARIANTS, measure, make_table, rounds=3)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds of each step but the first, and peak memory, of one variant."""
    import torch
    from trainers import bare_trainer

    from ipvrm_lightning.data import PromptModule
    from ipvrm_lightning.models import RandomLanguageModel
    from ipvrm_lightning.modules import DistRLModule
    from ipvrm_lightning.modules.distrl_settings import PolicyUpdate, RewardModel
    from ipvrm_lightning.objectives import IPVRM
    from ipvrm_lightning.rollouts import ExactMatch
    from ipvrm_lightning.rollouts.groups import Attempt, Collection, Group
    from ipvrm_lightning.types import PromptExample
    from ipvrm_lightning.worlds.arithmetic.tokenizer import build_tokenizer

    config = {
        "model_type": "qwen3", "hidden_size": arguments.hidden, "num_hidden_layers": arguments.layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": arguments.hidden // 4,
        "intermediate_size": 3 * arguments.hidden, "vocab_size": arguments.vocabulary, "tie_word_embeddings": True,
    }  # fmt: skip

    class Model(RandomLanguageModel):
        def build_tokenizer(self) -> Any:
            return build_tokenizer()

    class Given(DistRLModule):
        def collect(self, stream: Any) -> Collection:
            draw = random.Random(self.steps_done)
            groups = []
            for prompt in stream.take(arguments.prompts):
                attempts = []
                for number in range(8):
                    size = draw.randrange(arguments.length // 4, arguments.length + 1)
                    ids = [draw.randrange(arguments.vocabulary) for _ in range(size)]
                    attempts.append(Attempt(ids, "text", True, number % 2, None, None))
                groups.append(Group(prompt, attempts))
            return Collection(groups, groups)

    class Prompts(PromptModule):
        def setup(self, stage: str | None = None) -> None:
            self.train_prompts = [PromptExample([5] * 64, "text", "1", "given", str(n)) for n in range(64)]

    adam = partial(torch.optim.AdamW, lr=1e-5)
    reward = None if arguments.variant == "GRPO" else RewardModel(objective=IPVRM(), optimizer=adam)
    module = Given(
        language_model=Model(config=config),
        verifier=ExactMatch(),
        reward=reward,
        update=PolicyUpdate(
            distribution_coef=0.1 if "DistRL" in arguments.variant else 0.0,
            min_probability=0.0 if "all" in arguments.variant else 0.1,
            max_tokens=2048,
        ),
        optimizer=adam,
    )
    peak, clock = Peak(), Clock()
    trainer = bare_trainer(clock, max_epochs=1, limit_train_batches=arguments.steps + 1, limit_val_batches=0)
    trainer.fit(module, datamodule=Prompts(batch_size=arguments.prompts))
    return {"seconds": clock.seconds, "memory": peak.mebibytes}


def make_table(found: Found, arguments: argparse.Namespace) -> list[str]:
    """Medians, and ratios to GRPO + IPVRM and to GRPO."""
    rows = []
    for name in found:
        cells = [name]
        for measure, form in ((seconds_of, ".2f"), (memory_of, ".0f")):
            ratios = [ratio(measure, found, name, other, 3) for other in ("GRPO + IPVRM", "GRPO")]
            cells += [f"{measure(found, name):{form}}", *ratios]
        rows.append(cells)
    over = ["over GRPO + IPVRM", "over GRPO"]
    return [
        f"Qwen3 shape, hidden {arguments.hidden}, {arguments.layers} layers, vocabulary {arguments.vocabulary}; "
        f"{arguments.prompts} prompts x 8 responses of up to {arguments.length} tokens; "
        f"{counted(arguments.rounds, 'round')} of {counted(arguments.steps, 'step')}.",
        "",
        *table(["", "seconds a step", *over, "peak memory, MiB", *over], rows),
    ]


if __name__ == "__main__":
    main()
