"""Step zero of a world: a policy fine-tuned from random weights with `SFTModule`, on traces with some wrong lines.

Windows come easy first: the longest problems grow from one line to the full length, without which so small a model does
not learn in minutes to look names up.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningDataModule

from ipvrm_lightning.data import TrajectoryDataset, collate
from ipvrm_lightning.types import Example, Window
from ipvrm_lightning.worlds.arithmetic.convergence import UntilTarget
from ipvrm_lightning.worlds.arithmetic.formats import FORMATS, render_solution
from ipvrm_lightning.worlds.arithmetic.optimizer import Muon
from ipvrm_lightning.worlds.arithmetic.problems import Problem, generate, solve
from ipvrm_lightning.worlds.arithmetic.settings import WorldSettings
from ipvrm_lightning.worlds.arithmetic.tokenizer import build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def sft_problems(settings: WorldSettings, held_out: set[str]) -> list[Problem]:
    """Problems of one line and more for fine-tuning, none of them held out."""
    stream = generate(replace(settings.difficulty, min_steps=1), f"{settings.seed}-sft")
    return list(islice((problem for problem in stream if problem.key not in held_out), settings.sft_problems))


def sft_examples(settings: WorldSettings, problems: list[Problem]) -> Iterator[Example]:
    """Tokenised noisy traces, each in one of the three formats."""
    tokenizer = build_tokenizer()
    generator = random.Random(f"traces-{settings.seed}")
    prompts, responses = [], []
    for problem in problems:
        surface = generator.choices(FORMATS, settings.format_shares)[0]
        prompts.append(surface.render_prompt(problem))
        responses.append(render_solution(solve(problem, settings.noise, generator), surface))
    encoded = zip(problems, tokenizer(prompts).input_ids, tokenizer(responses).input_ids, strict=True)
    for problem, prompt, response in encoded:
        yield Example([*prompt, *response, tokenizer.eos_token_id], len(prompt), problem.key)


class Curriculum:
    """Windows of about equally many tokens, the longest problems growing over the first part of the training.

    Args:
        dataset: traces.
        steps: lines of each trace's problem.
        settings: of the world.
    """

    def __init__(self, dataset: TrajectoryDataset, steps: list[int], settings: WorldSettings) -> None:
        self.dataset = dataset
        self.windows = list(self._plan(steps, settings))

    def __len__(self) -> int:
        return len(self.windows)

    def __iter__(self) -> Iterator[Window]:
        for rows in self.windows:
            # Two micro-batches, the shorter half and the longer: half the padding, and the same optimiser step.
            ordered = sorted(rows, key=lambda row: int(self.dataset.lengths[row]))
            middle = 2 * len(ordered) // 3
            batches = [collate(self.dataset, part) for part in (ordered[:middle], ordered[middle:]) if part]
            tokens = sum(batch.count("tokens") for batch in batches)
            yield Window(batches, {"sequences": len(rows), "tokens": tokens, "pairs": 0})

    def _plan(self, steps: list[int], settings: WorldSettings) -> Iterator[list[int]]:
        generator = random.Random(f"curriculum-{settings.seed}")
        longest = settings.difficulty.max_steps
        rows_by_steps: dict[int, list[int]] = {}
        for row, count in enumerate(steps):
            rows_by_steps.setdefault(count, []).append(row)
        used = dict.fromkeys(rows_by_steps, 0)
        seen = 0
        while seen < settings.sft_tokens:
            progress = seen / settings.sft_tokens / settings.ramp
            allowed = [count for count in rows_by_steps if count <= min(longest, 1 + int(longest * progress))]
            window, tokens = [], 0
            while tokens < settings.window_tokens:
                count = generator.choices(allowed, [settings.difficulty.decay**number for number in allowed])[0]
                rows = rows_by_steps[count]
                window.append(rows[used[count] % len(rows)])
                used[count] += 1
                tokens += int(self.dataset.lengths[window[-1]])
            seen += tokens
            yield window


class _CurriculumData(LightningDataModule):
    def __init__(self, windows: Curriculum) -> None:
        super().__init__()
        self.windows = windows

    def train_dataloader(self) -> Curriculum:
        return self.windows


def model_config(settings: WorldSettings) -> dict[str, Any]:
    """The policy's architecture: Qwen3, small."""
    tokenizer = build_tokenizer()
    return {
        "model_type": "qwen3",
        "vocab_size": len(tokenizer),
        "hidden_size": settings.hidden_size,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "num_key_value_heads": settings.heads,
        "head_dim": settings.hidden_size // settings.heads,
        "intermediate_size": settings.intermediate_size,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "initializer_range": settings.initializer_range,
        "rope_parameters": {"rope_type": "default", "rope_theta": settings.rope_theta},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def train_policy(settings: WorldSettings, held_out: set[str], scratch: Path) -> PreTrainedModel:
    """Fine-tune a policy from random weights.

    Args:
        settings: of the world.
        held_out: keys of problems that must not be trained on.
        scratch: folder for what the trainer writes.
    """
    from lightning.pytorch import Trainer

    from ipvrm_lightning.models.language_model import RandomLanguageModel
    from ipvrm_lightning.modules.schedule import Schedule
    from ipvrm_lightning.modules.sft import SFTModule

    problems = sft_problems(settings, held_out)
    dataset = TrajectoryDataset(sft_examples(settings, problems))
    windows = Curriculum(dataset, [len(problem.definitions) for problem in problems], settings)
    until_target = None if settings.sft_target is None else UntilTarget(settings, len(windows))
    scheduler: Any = until_target or Schedule(name="cosine", warmup=min(0.05, 30 / len(windows)))
    config = model_config(settings)
    module = SFTModule(
        language_model=RandomLanguageModel(config=config, seed=settings.seed),
        optimizer=partial(
            Muon,
            lr=settings.learning_rate,
            adam_lr=settings.learning_rate / 5,
            embedding_rows=config["vocab_size"],
        ),
        scheduler=scheduler,
        chunk_size=4096,
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=scratch,
        log_every_n_steps=50,
        callbacks=[until_target] if until_target else [],
    )
    trainer.fit(module, datamodule=_CurriculumData(windows))
    model: PreTrainedModel = module.model
    return model.eval()
