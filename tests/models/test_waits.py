"""A training micro-batch must not wait for the GPU: it would stand still while the CPU asks for the next operations."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device

from ipvrm_lightning.models import AdaptersOff, FrozenCopy
from ipvrm_lightning.models.candidates import behavior_scores, candidate_log_probs
from ipvrm_lightning.models.language_model import LoRA, RandomLanguageModel
from ipvrm_lightning.models.token_scores import token_scores
from ipvrm_lightning.objectives import DPORM, IPVRM, QRM, ImplicitPRM, Objective
from ipvrm_lightning.types import TrajectoryBatch

from ..waits import waits
from .conftest import QWEN, make_batch


@pytest.mark.parametrize("attention", ["sdpa", "varlen"])
@pytest.mark.parametrize("lora", [None, LoRA(r=2)], ids=["whole", "lora"])
@pytest.mark.parametrize("objective", [IPVRM(), ImplicitPRM(), DPORM(), QRM()], ids=lambda one: type(one).__name__)
def test_a_micro_batch_waits_for_nothing_but_the_check_of_its_outcomes(
    objective: Objective, lora: LoRA | None, attention: str
) -> None:
    factory = RandomLanguageModel(config=QWEN, lora=lora, attn_implementation=attention)
    model = factory.build_model()
    reference = FrozenCopy() if lora is None else AdaptersOff()
    reference.setup(factory, model)
    head = torch.nn.Linear(32, 1)
    batch = replace(make_batch([9, 14, 5, 11], [3, 6, 1, 10]), pairs=torch.tensor([[1, 0], [3, 2]]))
    reference.log_probs(batch)  # builds the copy
    with waits() as found:
        scores, mask = token_scores(model, batch, objective, reference=reference.log_probs, value_head=head)
        objective(scores, mask, batch).backward()
    # the attention of packed sequences that a CPU takes is not a GPU's
    assert [one for one in found if one != "_one_by_one"] == ["check_outcomes"] * (not objective.pairwise)


def test_candidates_wait_once() -> None:
    model = RandomLanguageModel(config=QWEN).build_model()
    batch = make_batch([9, 14, 5, 11], [3, 6, 1, 10])
    candidates = behavior_scores(model, batch, top_k=4, min_probability=0.005).candidates
    assert candidates.mask[..., 1:].any()
    with waits() as found:
        candidate_log_probs(model, batch, candidates, with_entropy=True)[0].sum().backward()
    assert found == ["_log_probs"]


def test_a_batch_knows_its_counts_wherever_it_goes() -> None:
    batch = make_batch([9, 14, 5], [3, 6, 5])
    for same in (batch, move_data_to_device(batch, torch.device("cpu")), pickle.loads(pickle.dumps(batch))):
        assert (same.tokens, same.response_tokens, same.longest_response) == (28, 14, 8)
        with waits() as found:
            assert same.count("tokens") == 14
        assert not found
    shorter = replace(batch, lengths=torch.tensor([8, 9, 5]))
    assert (shorter.tokens, shorter.response_tokens, shorter.longest_response) == (22, 8, 5)


@pytest.mark.parametrize(("length", "start"), [(4, 0), (4, 5)])
def test_a_response_lies_behind_a_prompt_within_its_row(length: int, start: int) -> None:
    rows = torch.arange(2)
    with pytest.raises(ValueError, match=rf"responses cannot start at \[1, {start}\] in rows of \[4, {length}\]"):
        TrajectoryBatch(torch.ones(2, 6, dtype=torch.long), torch.tensor([4, length]), torch.tensor([1, start]), rows)
