from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ipvrm_lightning.models.language_model import RandomLanguageModel
from ipvrm_lightning.worlds.arithmetic.build import split_problems
from ipvrm_lightning.worlds.arithmetic.convergence import PROBE_EVERY, WARMUP, UntilTarget, probe_examples
from ipvrm_lightning.worlds.arithmetic.settings import WorldSettings, make_settings
from ipvrm_lightning.worlds.arithmetic.training import model_config


def settings(**overrides: Any) -> WorldSettings:
    return make_settings("small", 0, {"decay_tokens": 50_000, "window_tokens": 1000, **overrides})


def rates(until: UntilTarget, probabilities: list[float]) -> list[float]:
    """Learning rates of a run whose probes give these probabilities, one after the other."""
    found = iter(probabilities)
    until.right_trace_probability = lambda model: next(found)  # type: ignore[method-assign]
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = until.build(optimizer, 0)
    trainer: Any = SimpleNamespace(global_step=0, should_stop=False)
    seen = []
    while not trainer.should_stop:
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        trainer.global_step += 1
        until.on_train_batch_end(trainer, SimpleNamespace(model=None))  # type: ignore[arg-type]
    return seen


def test_the_rate_falls_once_the_target_is_met() -> None:
    seen = rates(UntilTarget(settings(sft_target=0.1), windows=500), [0.0, 0.05, 0.2])
    met = 3 * PROBE_EVERY
    assert len(seen) == met + 50
    assert seen[:WARMUP] == pytest.approx([(step + 1) / WARMUP for step in range(WARMUP)])
    assert seen[WARMUP:met] == [1.0] * (met - WARMUP)
    assert seen[met:] == pytest.approx([1 - step / 50 for step in range(50)])


def test_the_rate_falls_at_the_end_where_the_target_is_never_met() -> None:
    seen = rates(UntilTarget(settings(sft_target=0.1), windows=150), [0.0] * 3)
    assert len(seen) == 150
    assert seen[100:] == pytest.approx([1 - step / 50 for step in range(50)])


def test_probability_of_right_traces_is_that_of_their_tokens() -> None:
    chosen = settings(sft_target=0.1)
    model = RandomLanguageModel(config=model_config(chosen), seed=0).build_model().double()
    until = UntilTarget(chosen, windows=10)
    expected = []
    for example in probe_examples(chosen):
        ids = torch.tensor([example.input_ids])
        log_probs = model(input_ids=ids).logits[0].log_softmax(-1)
        places = range(example.response_start, ids.shape[1])
        expected.append(sum(log_probs[place - 1, ids[0, place]].item() for place in places))
    mean = torch.tensor(expected, dtype=torch.float64).exp().mean().item()
    # tiny for random weights: compare logarithms
    assert math.log(until.right_trace_probability(model)) == pytest.approx(math.log(mean), rel=1e-6)


def test_probes_are_problems_of_the_judged_kind() -> None:
    chosen = settings()
    lengths = [example.response_length for example in probe_examples(chosen)]
    assert len(lengths) == 64 and max(lengths) > 3 * min(lengths)
    assert len(split_problems(chosen).test) == chosen.test_prompts
