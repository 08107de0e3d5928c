from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ipvrm_lightning.models import LoRA, RandomLanguageModel
from ipvrm_lightning.models.candidates import BehaviorScores, Candidates, _choose, behavior_scores, candidate_log_probs
from ipvrm_lightning.models.output_head import base_language_model
from ipvrm_lightning.types import TrajectoryBatch

from ..modules.conftest import QWEN

MIN_PROBABILITY = 0.012


def make_batch(rows: int = 4, seed: int = 0) -> TrajectoryBatch:
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(1, 5, (rows,), generator=generator)
    lengths = starts + torch.randint(1, 9, (rows,), generator=generator)
    ids = torch.randint(0, 97, (rows, int(lengths.max())), generator=generator)
    return TrajectoryBatch(ids, lengths, starts, torch.arange(rows))


def sharp_model(seed: int = 0, **options: object) -> nn.Module:
    """A random model that holds some tokens much likelier than others."""
    model = RandomLanguageModel(config={**QWEN, "initializer_range": 0.3}, seed=seed, **options).build_model()  # type: ignore[arg-type]
    return model.eval()


def plain_log_probs(model: nn.Module, batch: TrajectoryBatch, temperature: float) -> list[Tensor]:
    """Log-softmax over the whole vocabulary at each row's response positions."""
    rows = []
    for row in range(len(batch.lengths)):
        start, end = int(batch.response_starts[row]), int(batch.lengths[row])
        logits = base_language_model(model)(input_ids=batch.input_ids[row : row + 1, :end]).logits[0]
        rows.append((logits[start - 1 : end - 1].float() / temperature).log_softmax(-1))
    return rows


def scored(model: nn.Module, batch: TrajectoryBatch, **options: object) -> BehaviorScores:
    return behavior_scores(model, batch, **{"top_k": 6, "min_probability": MIN_PROBABILITY, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("temperature", "chunk_size", "top_k", "min_probability"),
    [
        (1.0, 3, 6, MIN_PROBABILITY),
        (0.7, 256, 6, MIN_PROBABILITY),
        (0.7, 3, 40, 0.05),
        (1.0, 256, 97, 0.05),
        (1.0, 3, 2, 0.05),
    ],
)
def test_candidates_and_log_probs_are_those_of_the_full_distribution(
    temperature: float, chunk_size: int, top_k: int, min_probability: float
) -> None:
    model, batch = sharp_model(), make_batch()
    options = {"temperature": temperature, "chunk_size": chunk_size}
    found = scored(model, batch, top_k=top_k, min_probability=min_probability, **options)
    width = int(found.candidates.mask.sum(-1).max())
    assert found.candidates.ids.shape[-1] == width < top_k or top_k <= 6, "no wider than needed"
    _, entropies = candidate_log_probs(model, batch, found.candidates, with_entropy=True, **options)  # type: ignore[arg-type]
    assert entropies is not None
    torch.testing.assert_close(entropies, found.entropy, rtol=1e-5, atol=2e-6)
    for row, log_probs in enumerate(plain_log_probs(model, batch, temperature)):
        start, length = int(batch.response_starts[row]), len(log_probs)
        for position in range(length):
            sampled = int(batch.input_ids[row, start + position])
            counted = found.candidates.mask[row, position]
            ids = found.candidates.ids[row, position][counted].tolist()
            if position == length - 1:
                assert ids == []
            else:
                most = log_probs[position].topk(top_k).indices.tolist()
                likely = [i for i in most if log_probs[position, i].exp() > min_probability and i != sampled]
                assert ids[0] == sampled
                assert set(ids[1:]) == set(likely if sampled in most else likely[: top_k - 1])
                torch.testing.assert_close(
                    found.log_probs[row, position][counted], log_probs[position, ids], rtol=0, atol=5e-6
                )
            torch.testing.assert_close(
                found.log_probs[row, position, 0], log_probs[position, sampled], rtol=0, atol=5e-6
            )
            entropy = -(log_probs[position].exp() * log_probs[position]).sum()
            torch.testing.assert_close(found.entropy[row, position], entropy, rtol=1e-5, atol=2e-6)
        assert not found.candidates.mask[row, length:].any() and not found.log_probs[row, length:].any()
    assert found.candidates.mask.sum() > (found.candidates.mask[..., 0]).sum() > 0


@pytest.mark.parametrize("with_entropy", [False, True])
def test_gradients_are_those_of_the_full_distribution(with_entropy: bool) -> None:
    batch = make_batch()
    weights = torch.rand(100, generator=torch.Generator().manual_seed(3))
    gradients = []
    for plain in (False, True):
        model = sharp_model()
        found = scored(model, batch)
        counted = found.candidates.mask.clone()
        counted[..., 0] |= torch.arange(counted.shape[1]) < batch.response_lengths[:, None]
        if plain:
            rows = plain_log_probs(model, batch, 1.0)
            picked = [rows[r][t, found.candidates.ids[r, t, k]] for r, t, k in counted.nonzero().tolist()]
            values = torch.stack(picked)
            entropy = sum(-(row.exp() * row).sum() for row in rows)
        else:
            log_probs, per_position = candidate_log_probs(
                model, batch, found.candidates, chunk_size=4, with_entropy=with_entropy
            )
            values = log_probs[counted]
            entropy = 0 if per_position is None else per_position.sum()
        loss = (values * weights.repeat(10)[: len(values)]).sum() + (entropy if with_entropy else 0)
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for own, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("options", [{}, {"lora": LoRA(r=4)}, {"lora": LoRA(r=4), "gradient_checkpointing": True}])
def test_a_models_ratio_to_itself_is_exactly_one(options: dict[str, object]) -> None:
    model = sharp_model(**options).train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    batch = make_batch()
    found = scored(model, batch, chunk_size=5)
    log_probs, _ = candidate_log_probs(model, batch, found.candidates, chunk_size=5)
    assert log_probs.requires_grad
    assert torch.equal(log_probs.detach(), found.log_probs)


def test_padding_and_the_other_rows_change_nothing() -> None:
    model, batch = sharp_model(), make_batch()
    whole = scored(model, batch)
    for row in range(len(batch.lengths)):
        one = slice(row, row + 1)
        alone = scored(
            model,
            TrajectoryBatch(
                batch.input_ids[one, : batch.lengths[row]],
                batch.lengths[one],
                batch.response_starts[one],
                batch.index[one],
            ),
        )
        length, width = int(batch.response_lengths[row]), alone.log_probs.shape[-1]
        torch.testing.assert_close(alone.log_probs[0], whole.log_probs[row, :length, :width], rtol=0, atol=5e-6)
        assert torch.equal(alone.candidates.mask[0], whole.candidates.mask[row, :length, :width])


def test_one_candidate_is_the_sampled_token_alone() -> None:
    found = scored(sharp_model(), make_batch(), top_k=1)
    assert found.candidates.ids.shape[-1] == 1


def test_entropy_is_not_rounded_in_mixed_precision() -> None:
    logits = 3 * torch.randn(8, 97, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        entropy = _choose(logits, torch.zeros(8, dtype=torch.long), 1, MIN_PROBABILITY)[2]
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=logits).entropy(), rtol=1e-5, atol=1e-5)


def test_candidates_of_another_batch_are_refused() -> None:
    model, batch = sharp_model(), make_batch()
    ids = scored(model, batch).candidates.ids
    for other in (nn.functional.pad(ids, (0, 0, 0, 3)), ids[:-1]):
        with pytest.raises(ValueError, match="for a batch of"):
            candidate_log_probs(model, batch, Candidates(other, torch.ones_like(other, dtype=torch.bool)))
