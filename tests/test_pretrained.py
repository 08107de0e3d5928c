"""What a model folder may lack; `tests/fuzz` damages every file of one, `tests/test_security.py` puts code into it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from ipvrm_lightning.models import RandomLanguageModel
from ipvrm_lightning.models.logprobs import check_positions, check_vocabulary, response_scores
from ipvrm_lightning.pretrained import load_config, load_model, load_tokenizer, positions
from ipvrm_lightning.scoring.description import describe

from .fuzz.bases import MODEL, write_bases
from .fuzz.driver import write_files
from .fuzz.folders import CHANGES, model_files
from .models.conftest import TINY, make_batch


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_bases(tmp_path_factory.mktemp("bases"))


def changed(name: str, bases: str, folder: Path) -> str:
    files = model_files(bases)
    CHANGES[name](files)
    write_files(files, folder)
    return str(folder / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("weights missing", r"3 weights that config.json asks for are missing: model.layers.0.mlp.down_proj.weight"),
        (
            "weights of another shape",
            r"1 weights .* model.layers.0.mlp.up_proj.weight is \(5, 16\), should be \(24, 16\)",
        ),
        ("weights pickled", r"pickles \(pytorch_model.bin\)"),
        ("no weights", "the model cannot be loaded"),
        ("config of no model", "the model cannot be loaded"),
    ],
)
def test_no_weight_is_ever_made_up(change: str, message: str, bases: str, tmp_path: Path) -> None:
    name = changed(change, bases, tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(name)
    assert str(caught.value).startswith(f"{name}: ") and "\n" not in str(caught.value)


def test_a_sound_folder_gives_its_weights(bases: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ipvrm_lightning"):
        model = load_model(changed("weights too many", bases, tmp_path))
    assert "1 weights are not part of the model: extra" in caplog.text
    sound = load_model(f"{bases}/model")
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), sound.parameters(), strict=True))
    assert load_config(f"{bases}/model").hidden_size == MODEL["hidden_size"]


@pytest.mark.parametrize("change", ["no tokenizer", "no tokenizer.json", "own tokenizer"])
def test_a_tokenizer_that_is_not_all_there_is_refused(change: str, bases: str, tmp_path: Path) -> None:
    name = changed(change, bases, tmp_path)
    with pytest.raises(ValueError, match=f"^{name}: the tokenizer cannot be loaded"):
        load_tokenizer(name)


def test_a_folder_that_is_not_there_is_said_to_be_so() -> None:
    for name in ("./nowhere", "/nowhere/model", "a/b/c", "~/model", "my model"):
        with pytest.raises(
            FileNotFoundError, match=rf"^{name}: no such file or folder \(and no owner/name on the hub\)$"
        ):
            load_tokenizer(name)


@pytest.mark.parametrize("name", ["nowhere", "nobody/nothing"])
def test_the_hub_is_asked_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def model_info(self: HfApi, repo_id: str, **options: Any) -> None:
        asked.append(repo_id)
        raise error

    monkeypatch.setattr(HfApi, "model_info", model_info)
    error: Exception = RepositoryNotFoundError("404", response=MagicMock())
    with pytest.raises(FileNotFoundError, match=rf"^{name}: no such file or folder \(and no owner/name on the hub\)$"):
        load_tokenizer(name)
    error = ConnectionError("Name or service\nnot known")
    for load in (load_tokenizer, load_config, load_model, describe):
        with pytest.raises(
            OSError, match=rf"^{name}: no such file or folder, and the hub cannot be asked for it \(Name"
        ):
            load(name)
    assert asked == [name] * 5


def test_tokens_without_an_embedding_are_refused(bases: str) -> None:
    model = load_model(f"{bases}/model")
    check_vocabulary(model, 299)
    with pytest.raises(ValueError, match="token 300, but the model has embeddings for 300 tokens"):
        check_vocabulary(model, 300)


def test_sequences_that_a_model_has_no_positions_for_are_refused(bases: str) -> None:
    model = load_model(f"{bases}/model")
    limit = model.config.max_position_embeddings
    check_positions(model, limit)
    with pytest.raises(ValueError, match=f"up to {limit + 1} tokens .* made for {limit}"):
        check_positions(model, limit + 1)


def test_with_longrope_rows_are_no_longer_than_what_leaves_the_others_alone() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "long_factor": [4.0] * 4, "short_factor": [1.0] * 4}
    config = {"model_type": "phi3", "original_max_position_embeddings": 12, "rope_parameters": rope, "pad_token_id": 0}
    config |= {**TINY, "max_position_embeddings": 64, "initializer_range": 0.2}
    model = RandomLanguageModel(config=config).build_model().eval()
    assert positions(model.config) == 12
    check_positions(model, 12)
    with pytest.raises(ValueError, match=r"up to 13 tokens .* beyond 12 \(longrope.* allow at most 12 tokens"):
        check_positions(model, 13)
    alone, beside, too_long = (
        response_scores(model, make_batch(lengths, [3] * len(lengths))).log_probs[0, :6]
        for lengths in ([9], [9, 12], [9, 13])
    )
    torch.testing.assert_close(alone, beside, rtol=0, atol=1e-5)
    assert (alone - too_long).abs().max() > 0.1, "transformers reads rows by themselves: the limit is not needed"
