"""Errors of reading in parts; that the parts are right, tests/strategies shows on two processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ipvrm_lightning.models import LoRA, PretrainedLanguageModel, RandomLanguageModel
from ipvrm_lightning.models.preparation import empty_model
from ipvrm_lightning.models.shard_loading import Initialization, load_safetensors

from .conftest import QWEN
from .test_logprobs import CONFIGS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    RandomLanguageModel(config=QWEN, seed=5).build_model().save_pretrained(tmp_path)
    return tmp_path


def test_files_that_are_missing_or_of_another_layout_are_named(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = RandomLanguageModel(config=QWEN).build_model()
    with pytest.raises(FileNotFoundError, match=r"no \*\.safetensors in"):
        load_safetensors(model, tmp_path_factory.mktemp("empty"))
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "model.norm.weight": torch.ones(33)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.norm\.weight has the shape \[33\], the model needs \[32\]"):
        load_safetensors(model, folder)
    weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"has no tensor model\.norm\.weight"):
        load_safetensors(model, folder)


def test_a_whole_model_can_be_read_as_parts_are(folder: Path) -> None:
    model = RandomLanguageModel(config=QWEN, seed=6).build_model()
    load_safetensors(model, folder)
    for name, parameter in PretrainedLanguageModel(name=str(folder)).build_model().named_parameters():
        assert torch.equal(dict(model.named_parameters())[name], parameter)


def test_quantised_weights_are_not_read_as_if_they_were_the_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.float8_e4m3fn)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.norm\.weight is stored as F8_E4M3: give the model in half precision"):
        load_safetensors(RandomLanguageModel(config=QWEN).build_model(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(ValueError, match=r"its weights are quantised already \(fp8\)"):
        PretrainedLanguageModel(name=str(folder)).build_sharded(lambda model: pytest.fail("divided already"))


def test_first_values_that_were_not_recorded_are_not_made_up() -> None:
    first_values = Initialization()
    model = empty_model(RandomLanguageModel(config=QWEN)._model_config(), "float32", None)  # recorded by nobody
    first_values.name_parameters(model)
    with pytest.raises(ValueError, match=r"lm_head\.weight cannot be repeated in shards"):
        first_values.replay(model, 0)


def test_first_values_that_were_computed_from_others_are_not_made_up() -> None:
    factory = RandomLanguageModel(config=CONFIGS["recurrent_gemma_soft_cap"])
    with Initialization() as first_values:
        model = empty_model(factory._model_config(), "float32", None)
    first_values.name_parameters(model)
    with pytest.raises(ValueError, match=r"recurrent_param cannot be repeated in shards: use DDP"):
        first_values.replay(model, 0)


def test_what_cannot_be_read_in_parts_says_so_before_loading() -> None:
    for options, message in (({"gguf_file": "x.gguf"}, "GGUF"), ({"lora": LoRA(use_dora=True)}, "use_dora")):
        with pytest.raises(ValueError, match=message):
            PretrainedLanguageModel(name="nowhere", **options).build_sharded(lambda model: None)  # type: ignore[arg-type]
