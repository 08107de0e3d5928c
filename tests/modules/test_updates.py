from __future__ import annotations

import pytest
import torch
from torch import nn

from ipvrm_lightning.modules import updates
from ipvrm_lightning.modules.updates import check_optimizer, clip_gradients, gradient_norm


def test_norm_and_clip_are_those_of_all_gradients_together() -> None:
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0, 0.0]), torch.full((2, 2), 2.0)
    norm = gradient_norm(parameters)
    assert float(norm) == 5.0
    clip_gradients(parameters, 1.0, norm)
    assert float(gradient_norm(parameters)) == pytest.approx(1.0, abs=1e-5)


def test_8_bit_optimisers_are_refused_on_sharded_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitsandbytes.optim import AdamW8bit

    weights = [nn.Parameter(torch.zeros(3))]
    assert check_optimizer(AdamW8bit(weights)).param_groups
    monkeypatch.setattr(updates, "is_sharded", lambda tensor: True)
    assert check_optimizer(torch.optim.AdamW(weights)).param_groups
    with pytest.raises(ValueError, match="AdamW8bit cannot update weights that are divided"):
        check_optimizer(AdamW8bit(weights))
