"""A tiny GGUF file, scored against a folder of safetensors with the same vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ipvrm_lightning.data import encode_steps
from ipvrm_lightning.models import RandomLanguageModel
from ipvrm_lightning.scoring import Layout, PrefixValueModel
from ipvrm_lightning.types import Example

from .test_model import log_probs

QWEN2 = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}


def write_gguf(model: Any, file: Path) -> None:
    """The model in float32 with a byte-level vocabulary."""
    import gguf
    from tokenizers.pre_tokenizers import ByteLevel

    config = model.config
    writer = gguf.GGUFWriter(str(file), "qwen2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    tokens = [*sorted(ByteLevel.alphabet()), "<|endoftext|>", "<|im_start|>", "<|im_end|>", "qz", "qx"]
    tokens += [f"<unused{n}>" for n in range(config.vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<") and len(token) > 1 else 1 for token in tokens])
    writer.add_token_merges(["q z", "q x"])  # transformers 5.17 does not read a single one
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert known is not None
        writer.add_tensor(known, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_scored(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    models = [RandomLanguageModel(config=QWEN2, seed=seed).build_model() for seed in (0, 1)]
    for number, model in enumerate(models):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_()
        model.save_pretrained(tmp_path / f"{number}")
        (tmp_path / "files").mkdir(exist_ok=True)
        write_gguf(model, tmp_path / "files" / f"{number}.gguf")
    layout = Layout("plain")
    options: dict[str, Any] = {"beta": 1.0, "layout": layout, "device": "cpu"}
    scorer = PrefixValueModel.from_pretrained(
        f"{tmp_path}/files/0.gguf", reference=f"{tmp_path}/files/1.gguf", **options
    )
    assert scorer.encoder.max_length == 128 and scorer.encoder.foreign_ids == frozenset()
    found = scorer.score("1 + 1?", ["add", "so 2"], tokens=True)
    encoded = encode_steps(scorer.encoder.tokenizer, "1 + 1?", ["add", "so 2"], prompt_format="plain")
    example = Example(encoded.input_ids, encoded.response_start, "")
    ratios = (log_probs(str(tmp_path / "0"), [example]) - log_probs(str(tmp_path / "1"), [example]))[0].tolist()
    assert found.tokens is not None and len(ratios) > 10
    assert [token.td_advantage for token in found.tokens] == pytest.approx(ratios, abs=1e-4)
    against_folder = PrefixValueModel.from_pretrained(
        f"{tmp_path}/files", gguf_file="0.gguf", reference=str(tmp_path / "1"), **options
    )
    assert against_folder.score("1 + 1?", ["add", "so 2"]).final_value == pytest.approx(found.final_value, abs=1e-4)
    with pytest.raises(ValueError, match="longer than the 128 tokens"):
        scorer.score("1?", ["x" * 200])
