from __future__ import annotations

import pytest
import torch

from ipvrm_lightning.data import TrajectoryDataset
from ipvrm_lightning.worlds.arithmetic.optimizer import Muon, orthogonalize
from ipvrm_lightning.worlds.arithmetic.settings import make_settings
from ipvrm_lightning.worlds.arithmetic.training import Curriculum, sft_examples, sft_problems


@pytest.mark.parametrize("shape", [(3, 6, 6), (2, 12, 5), (1, 5, 12)])
def test_orthogonalized_matrices_keep_directions_and_have_singular_values_near_one(shape) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalize(matrices, iterations=8)
    assert result.shape == matrices.shape
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6 and values.max() < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    # In the basis of the input's singular vectors the result is diagonal: directions are kept.
    inner = left.mT @ result @ right.mT
    assert torch.allclose(inner, torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1)), atol=1e-4)


def test_muon_moves_matrices_and_adam_the_rest() -> None:
    torch.manual_seed(0)
    matrix, vector, embedding = torch.randn(4, 6), torch.randn(5), torch.randn(9, 4)
    parameters = [torch.nn.Parameter(tensor.clone()) for tensor in (matrix, vector, embedding)]
    optimizer = Muon(parameters, lr=0.1, adam_lr=0.01, embedding_rows=9)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    expected = orthogonalize(parameters[0].grad[None])[0]
    optimizer.step()
    # The first momentum is a multiple of the gradient, and orthogonalising ignores scale.
    assert torch.allclose(matrix - parameters[0], 0.1 * expected, atol=1e-5)
    for before, parameter in zip((vector, embedding), parameters[1:], strict=True):
        # The first step of Adam is the learning rate in the direction of the sign.
        assert torch.allclose(before - parameter, 0.01 * parameter.grad.sign(), atol=1e-5)


def test_curriculum_grows_and_is_seeded() -> None:
    settings = make_settings("small", 0, {"sft_problems": 800, "sft_tokens": 60_000, "ramp": 0.6})
    problems = sft_problems(settings, set())
    dataset = TrajectoryDataset(sft_examples(settings, problems))
    steps = [len(problem.definitions) for problem in problems]
    curriculum = Curriculum(dataset, steps, settings)
    assert curriculum.windows == Curriculum(dataset, steps, settings).windows
    longest = [max(steps[row] for row in window) for window in curriculum.windows]
    assert longest[0] == 1
    assert max(longest[: len(longest) // 4]) < max(longest[-len(longest) // 4 :]) <= 15
    assert sum(int(dataset.lengths[row]) for window in curriculum.windows for row in window) >= 60_000
    window = next(iter(curriculum))
    assert window.counts["tokens"] == sum(batch.count("tokens") for batch in window.micro_batches)
