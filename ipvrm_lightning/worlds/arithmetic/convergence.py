"""When a world's fine-tuning ends: once right traces of new problems are probable enough, whatever the seed."""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback
from torch.optim.lr_scheduler import LambdaLR

from ipvrm_lightning.data import TrajectoryDataset, collate
from ipvrm_lightning.models.logprobs import response_scores
from ipvrm_lightning.types import Example
from ipvrm_lightning.worlds.arithmetic.formats import FORMATS, render_solution
from ipvrm_lightning.worlds.arithmetic.problems import generate, solve
from ipvrm_lightning.worlds.arithmetic.settings import WorldSettings
from ipvrm_lightning.worlds.arithmetic.tokenizer import build_tokenizer

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

PROBES = 64
PROBE_EVERY = 25
WARMUP = 30


class UntilTarget(Callback):
    """Learning rate of a fine-tuning whose length is not known: constant until the target is met, then falling to zero.

    It is the module's scheduler (`build`) and a callback of its trainer.

    Args:
        settings: of the world; `sft_target` is set.
        windows: optimiser steps at most.
    """

    def __init__(self, settings: WorldSettings, windows: int) -> None:
        assert settings.sft_target is not None
        self.target = settings.sft_target
        self.decay = min(windows, math.ceil(settings.decay_tokens / settings.window_tokens))
        # the rate is to reach zero also where the target is never met
        self.decay_start = windows - self.decay
        self.met = False
        examples = probe_examples(settings)
        self.batch = collate(TrajectoryDataset(examples), range(len(examples)))

    def build(self, optimizer: Any, steps: int) -> LambdaLR:
        """The scheduler of an optimiser."""
        return LambdaLR(optimizer, self._factor)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Look every `PROBE_EVERY` steps; stop when the rate has fallen."""
        step = trainer.global_step
        if not self.met and step < self.decay_start and step % PROBE_EVERY == 0:
            self.met = self.right_trace_probability(pl_module.model) >= self.target
            if self.met:
                self.decay_start = step
        trainer.should_stop = step >= self.decay_start + self.decay

    @torch.no_grad()
    def right_trace_probability(self, model: Any) -> float:
        """Mean probability of sampling the right trace of a new problem, line by line."""
        return float(response_scores(model, self.batch).log_probs.double().sum(-1).exp().mean())

    def _factor(self, step: int) -> float:
        rising = min(1.0, (step + 1) / WARMUP)
        return rising * min(1.0, max(0.0, 1 - (step - self.decay_start) / self.decay))


def probe_examples(settings: WorldSettings) -> list[Example]:
    """Right traces in format 0 of problems that are drawn for this alone."""
    tokenizer, examples = build_tokenizer(), []
    for problem in islice(generate(settings.difficulty, f"{settings.seed}-probe"), PROBES):
        prompt = tokenizer(FORMATS[0].render_prompt(problem)).input_ids
        response = tokenizer(render_solution(solve(problem), FORMATS[0])).input_ids
        examples.append(Example([*prompt, *response, tokenizer.eos_token_id], len(prompt), problem.key))
    return examples
