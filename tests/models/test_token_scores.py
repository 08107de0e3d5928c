"""What objectives read from a model, against textbook computations of one sequence at a time."""

from __future__ import annotations

import torch
from torch import nn

from ipvrm_lightning.models import RandomLanguageModel
from ipvrm_lightning.models.token_scores import token_scores
from ipvrm_lightning.objectives import IPVRM, QRM
from ipvrm_lightning.types import TrajectoryBatch

from .conftest import QWEN
from .test_logprobs import plain_log_probs


def test_log_ratios_are_those_of_the_model_over_the_reference_at_its_temperature(batch: TrajectoryBatch) -> None:
    model = RandomLanguageModel(config={**QWEN, "initializer_range": 0.3}).build_model().double().eval()
    log_probs = plain_log_probs(model, batch, 0.5)
    mask = torch.arange(log_probs.shape[1]) < batch.response_lengths[:, None]
    reference = torch.where(mask, -0.25, 0.0)
    found = token_scores(model, batch, IPVRM(), reference=lambda _: reference, temperature=0.5)
    assert torch.equal(found.mask, mask)
    torch.testing.assert_close(found.scores, log_probs - reference, rtol=0, atol=1e-6)


def test_a_value_head_reads_the_state_at_each_response_token(batch: TrajectoryBatch) -> None:
    model = RandomLanguageModel(config=QWEN).build_model().eval()
    head = nn.Linear(32, 1)
    found = token_scores(model, batch, QRM(), value_head=head)
    for row, (start, length) in enumerate(zip(batch.response_starts.tolist(), batch.lengths.tolist(), strict=True)):
        states = model.model(input_ids=batch.input_ids[row : row + 1, :length]).last_hidden_state[0, start:]
        torch.testing.assert_close(found.scores[row, : length - start], states @ head.weight[0] + head.bias)
        assert not found.scores[row, length - start :].any() and found.mask[row].sum() == length - start
