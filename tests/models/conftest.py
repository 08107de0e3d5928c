from __future__ import annotations

import pytest
import torch

from ipvrm_lightning.types import TrajectoryBatch

TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 97}
QWEN = {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 8, **TINY}


def make_batch(lengths: list[int], starts: list[int], *, padding: int = 0, seed: int = 0) -> TrajectoryBatch:
    """Random sequences; what is in the padding is random too, so that a leak shows."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, 97, (length,), generator=generator) for length in lengths]
    ids = torch.randint(0, 97, (len(rows), max(lengths) + padding), generator=torch.Generator().manual_seed(seed + 1))
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = tokens
    count = torch.arange(len(rows))
    return TrajectoryBatch(ids, torch.tensor(lengths), torch.tensor(starts), count, (count % 2).float(), count)


@pytest.fixture
def batch() -> TrajectoryBatch:
    return make_batch([9, 14, 5, 11], [3, 6, 1, 10])
