from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from ipvrm_lightning.models.language_model import LoRA, PretrainedLanguageModel, RandomLanguageModel
from ipvrm_lightning.models.logprobs import response_scores
from ipvrm_lightning.models.reference import (
    AdaptersOff,
    CachedReference,
    FrozenCopy,
    Reference,
    base_fingerprint,
    weights_fingerprint,
)
from ipvrm_lightning.types import TrajectoryBatch

from .conftest import QWEN, make_batch


def rows(batch: TrajectoryBatch, chosen: list[int]) -> TrajectoryBatch:
    longest = int(batch.lengths[chosen].max())
    return TrajectoryBatch(
        batch.input_ids[chosen, :longest], batch.lengths[chosen], batch.response_starts[chosen], batch.index[chosen]
    )


def perturb(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)


def cases(tmp_path: Path) -> dict[str, tuple[RandomLanguageModel, Reference, float]]:
    adapters, full = RandomLanguageModel(config=QWEN, lora=LoRA(r=2)), RandomLanguageModel(config=QWEN)
    return {
        "adapters_off": (adapters, AdaptersOff(), 0.0),
        "frozen_copy": (full, FrozenCopy(), 0.0),
        "cached_adapters": (adapters, CachedReference(cache_dir=str(tmp_path)), 1e-5),
        "cached_copy": (full, CachedReference(source=FrozenCopy(), cache_dir=str(tmp_path)), 1e-5),
    }


@pytest.mark.parametrize("name", ["adapters_off", "frozen_copy", "cached_adapters", "cached_copy"])
def test_at_step_zero_every_log_ratio_is_zero_in_any_batching(
    name: str, tmp_path: Path, batch: TrajectoryBatch
) -> None:
    factory, reference, tolerance = cases(tmp_path)[name]
    model = factory.build_model()
    reference.setup(factory, model)
    for chosen in ([2], [0, 1, 2, 3], [3, 0], [1, 2]):
        part = rows(batch, chosen)
        ratios = response_scores(model, part).log_probs - reference.log_probs(part)
        assert ratios.abs().max() <= tolerance


@pytest.mark.parametrize("name", ["adapters_off", "frozen_copy", "cached_adapters", "cached_copy"])
def test_training_moves_the_model_and_not_the_reference(name: str, tmp_path: Path, batch: TrajectoryBatch) -> None:
    factory, reference, tolerance = cases(tmp_path)[name]
    model = factory.build_model()
    reference.setup(factory, model)
    before = reference.log_probs(batch).clone()
    reference.release()
    perturb(model)
    assert (response_scores(model, batch).log_probs - before).abs().max() > 1e-3
    assert (reference.log_probs(batch) - before).abs().max() <= tolerance


@pytest.mark.parametrize("lora", [LoRA(r=2, dropout=0.5), None], ids=["adapters off", "frozen copy"])
def test_no_dropout_and_no_gradient_is_in_the_reference(lora: LoRA | None, batch: TrajectoryBatch) -> None:
    # what is recomputed has a gradient from the embedding on, which is frozen
    factory = RandomLanguageModel(
        config={**QWEN, "attention_dropout": 0.5}, lora=lora, gradient_checkpointing=lora is not None
    )
    model, reference = factory.build_model().train(), AdaptersOff() if lora else FrozenCopy()
    reference.setup(factory, model)
    found = reference.log_probs(batch)
    assert torch.equal(found, response_scores(factory.build_model().eval(), batch).log_probs) and model.training
    assert not found.requires_grad
    copies = list(getattr(reference, "_copy", []))
    reference.log_probs(batch)
    assert all(now is before for now, before in zip(getattr(reference, "_copy", []), copies, strict=True))


def test_adapters_stay_on_and_trainable_after_the_reference_was_asked(batch: TrajectoryBatch) -> None:
    factory, reference = RandomLanguageModel(config=QWEN, lora=LoRA(r=2)), AdaptersOff()
    model = factory.build_model()
    perturb(model)
    reference.setup(factory, model)
    with_adapters = response_scores(model, batch).log_probs
    reference.log_probs(batch)
    loss = response_scores(model, batch).log_probs
    assert torch.equal(with_adapters, loss)
    loss.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)


def test_kept_values_need_no_source_and_survive_a_new_process(tmp_path: Path, batch: TrajectoryBatch) -> None:
    factory = RandomLanguageModel(config=QWEN)
    first = CachedReference(source=FrozenCopy(), cache_dir=str(tmp_path))
    first.setup(factory, factory.build_model())
    values = first.log_probs(batch)
    first.release()

    second = CachedReference(source=FrozenCopy(), cache_dir=str(tmp_path))
    second.setup(factory, factory.build_model())
    assert torch.equal(
        second.log_probs(rows(batch, [3, 1]))[1], values[1][: second.log_probs(rows(batch, [3, 1])).shape[1]]
    )
    assert second.source._copy == []


def test_values_are_kept_in_files_of_so_many_while_they_are_computed(
    tmp_path: Path, batch: TrajectoryBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that dies loses few of them."""
    monkeypatch.setattr("ipvrm_lightning.models.reference.SEQUENCES_PER_FILE", 3)
    factory, kept = RandomLanguageModel(config=QWEN), []
    reference = CachedReference(cache_dir=str(tmp_path))
    reference.setup(factory, factory.build_model())
    for chosen in ([0], [1], [0, 2], [3, 2]):
        reference.log_probs(rows(batch, chosen))
        kept.append(len(list(tmp_path.rglob("*.safetensors"))))
    assert kept == [0, 0, 1, 1]
    reference.log_probs(batch)
    # each by itself: a part of a batch would hold all of it
    sizes = {key: value.untyped_storage().nbytes() for key, value in reference._values.items()}
    assert sizes == dict(zip(_keys(batch), (4 * batch.response_lengths).tolist(), strict=True))
    for _ in range(2):
        reference.release()
        assert len(list(tmp_path.rglob("*.safetensors"))) == 2, "nothing new, no file"


def test_other_weights_precision_or_tokens_never_find_kept_values(tmp_path: Path, batch: TrajectoryBatch) -> None:
    factory = RandomLanguageModel(config=QWEN)
    cached = CachedReference(source=FrozenCopy(), cache_dir=str(tmp_path))
    cached.setup(factory, factory.build_model())
    cached.log_probs(batch)
    cached.release()
    for other in (RandomLanguageModel(config=QWEN, seed=1), RandomLanguageModel(config=QWEN, dtype="bfloat16")):
        again = CachedReference(source=FrozenCopy(), cache_dir=str(tmp_path))
        again.setup(other, other.build_model())
        assert again._values == {}
    moved = TrajectoryBatch(
        batch.input_ids, batch.lengths, batch.response_starts + torch.tensor([1, 0, 0, 0]), batch.index
    )
    assert len(set(_keys(batch)) & set(_keys(moved))) == 3


def test_packed_and_compiled_models_never_find_the_values_of_others(tmp_path: Path) -> None:
    """Their kernels round otherwise."""
    folders = set()
    for options in ({}, {"attn_implementation": "varlen"}, {"compile": True}):
        for also in ({}, {"compile": True}):
            factory = RandomLanguageModel(config=QWEN, **{**options, **also})
            reference = CachedReference(cache_dir=str(tmp_path))
            reference.setup(factory, factory.build_model())
            folders.add(reference._folder)
    assert len(folders) == 4 and folders == set(tmp_path.iterdir())


def _keys(batch: TrajectoryBatch) -> list[bytes]:
    from ipvrm_lightning.models.reference import sequence_keys

    return sequence_keys(batch)


def test_fingerprint_ignores_adapters_and_sees_one_changed_weight() -> None:
    bare = RandomLanguageModel(config=QWEN).build_model()
    for lora in (LoRA(), LoRA(use_dora=True)):
        assert weights_fingerprint(bare) == weights_fingerprint(
            RandomLanguageModel(config=QWEN, lora=lora).build_model()
        )
    with torch.no_grad():
        bare.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-6
    assert weights_fingerprint(bare) != weights_fingerprint(RandomLanguageModel(config=QWEN).build_model())


def test_fingerprint_sees_what_the_config_makes_of_the_weights_and_not_where_they_lie() -> None:
    def built(**fields: object) -> torch.nn.Module:
        return RandomLanguageModel(config={**QWEN, **fields}).build_model()

    model, other = built(), built(rms_norm_eps=0.1)
    assert weights_fingerprint(model) != weights_fingerprint(other)
    assert weights_fingerprint(model, with_config=False) == weights_fingerprint(other, with_config=False)
    before = weights_fingerprint(model)
    model.config._name_or_path, model.config.use_cache = "moved", not model.config.use_cache
    assert weights_fingerprint(model) == before


def test_fingerprint_of_a_base_tells_models_apart_in_any_precision() -> None:
    model = RandomLanguageModel(config=QWEN).build_model()
    found = base_fingerprint(model)
    assert found is not None and found == base_fingerprint(model.bfloat16())
    assert found != base_fingerprint(RandomLanguageModel(config=QWEN, seed=1).build_model())
    model.register_buffer("packed", torch.zeros(2, dtype=torch.uint8))  # as 4 bits lie in memory
    assert base_fingerprint(model) is None


def test_fingerprints_ignore_adapters_on_fused_experts() -> None:
    config = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    bare, adapted = (
        RandomLanguageModel(config={**QWEN, **config, "model_type": "qwen3_moe"}, lora=lora).build_model()
        for lora in (None, LoRA(r=2))
    )
    assert any(".base_layer.base_layer." in name for name in adapted.state_dict())
    for fingerprint in (weights_fingerprint, base_fingerprint):
        assert fingerprint(bare) == fingerprint(adapted)


def test_references_refuse_models_they_do_not_fit() -> None:
    adapters, full = RandomLanguageModel(config=QWEN, lora=LoRA(r=2)), RandomLanguageModel(config=QWEN)
    with pytest.raises(ValueError, match="AdaptersOff needs a language model with lora"):
        AdaptersOff().setup(full, full.build_model())
    with pytest.raises(ValueError, match="with lora use AdaptersOff"):
        FrozenCopy().setup(adapters, adapters.build_model())


def test_padding_of_the_key_does_not_matter() -> None:
    assert _keys(make_batch([9, 5], [3, 1])) == _keys(make_batch([9, 5], [3, 1], padding=4))


def test_values_of_another_precision_are_not_reused(batch: TrajectoryBatch) -> None:
    plain = _keys(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not set(plain) & set(_keys(batch))


def test_a_full_disk_leaves_nothing_and_a_torn_file_stops_no_run(
    tmp_path: Path, batch: TrajectoryBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory = RandomLanguageModel(config=QWEN)

    def cached() -> CachedReference:
        reference = CachedReference(cache_dir=str(tmp_path))
        reference.setup(factory, factory.build_model())
        return reference

    def full(file: int) -> None:
        assert os.fstat(file).st_size > 4 * batch.response_lengths.sum(), "handed over before the disk is to keep it"
        assert len(list(reference._folder.glob("*.part"))) == 1, "on the disk where it is to stay"
        raise OSError(28, "No space left on device")

    reference = cached()
    expected = reference.log_probs(batch)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("os.fsync", full)
        reference.release()
    assert not list(tmp_path.rglob("*.*"))
    reference.release()
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-5])
    (file.parent / "killed.part").touch()
    os.utime(file.parent / "killed.part", (0, 0))
    (file.parent / "live.part").touch()
    with pytest.warns(UserWarning, match=f"{file.name}: broken, and may be removed"):
        again = cached()
    assert torch.equal(again.log_probs(batch), expected)
    again.release()
    assert torch.equal(cached().log_probs(batch), expected)
    assert [part.name for part in tmp_path.rglob("*.part")] == ["live.part"]


def test_a_copy_is_of_what_training_started_from_or_refused(tmp_path: Path, batch: TrajectoryBatch) -> None:
    """The folder of a supervised model is written again, say, while a reward model that started from it is trained."""
    start = RandomLanguageModel(config=QWEN).build_model()
    start.save_pretrained(tmp_path)
    factory = PretrainedLanguageModel(name=str(tmp_path))
    copy, cached = FrozenCopy(), CachedReference(cache_dir=str(tmp_path / "cache"))
    for reference in (copy, cached):
        reference.setup(factory, factory.build_model())
        expected = response_scores(start, batch).log_probs
        assert (reference.log_probs(batch) - expected).abs().max() < 1e-6
        reference.release()
    RandomLanguageModel(config=QWEN, seed=1).build_model().save_pretrained(tmp_path)
    for reference in (copy, cached):
        with pytest.raises(ValueError, match=f"{tmp_path}: its weights are not those that training started from"):
            reference.log_probs(make_batch([7], [2], seed=5))
