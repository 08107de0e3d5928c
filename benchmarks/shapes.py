"""Models with random weights in real shapes, and text for them: what costs do not depend on need not be downloaded."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from ipvrm_lightning.models import LoRA, RandomLanguageModel
from ipvrm_lightning.models.language_model import prepared

#: Fields of transformers configs.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-tiny": {
        "model_type": "qwen3", "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 768, "vocab_size": 151_936,
        "tie_word_embeddings": True,
    },
    "smollm2-135m": {
        "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49_152, "tie_word_embeddings": True,
    },
    "qwen3-0.6b": {
        "model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151_936,
        "tie_word_embeddings": True,
    },
    "qwen3-8b": {
        "model_type": "qwen3", "hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 12_288, "vocab_size": 151_936,
        "tie_word_embeddings": False,
    },
}  # fmt: skip


class WordModel(RandomLanguageModel):
    """A model of a shape whose tokens are the words `w3`, `w4`, ...: text of a known number of tokens.

    Args:
        shape: a key of `SHAPES`.
        changes: fields of its config to replace.
        options: of `RandomLanguageModel`.
    """

    def __init__(self, shape: str, changes: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(config={**SHAPES[shape], **(changes or {}), "max_position_embeddings": 32_768}, **options)
        assert isinstance(self.config, dict)
        self.words = int(self.config["vocab_size"])

    def build_model(self) -> Any:
        """Draw weights on the GPU if there is one: a CPU takes half a minute for 0.6 billion."""
        model = self.draw(_device())
        for weight in model.parameters():
            weight.data = weight.data.bfloat16().to(weight.dtype)  # as most models are published
        return prepared(self, model)

    def build_tokenizer(self) -> Any:
        """Words parted by spaces; `[pad]`, `[eos]` and `[unk]` come first."""
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        words = ["[pad]", "[eos]", "[unk]", *(f"w{number}" for number in range(3, self.words))]
        inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[unk]"))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(
            tokenizer_object=inner, pad_token="[pad]", eos_token="[eos]", unk_token="[unk]", model_max_length=10**6
        )


class QuantizedWordModel(WordModel):
    """The same in 4 bits with adapters, as `quantization: nf4` loads it; quantised where it is made, on the GPU if any.

    Args:
        shape: a key of `SHAPES`.
        options: of `WordModel`.
    """

    def __init__(self, shape: str, **options: Any) -> None:
        super().__init__(shape, lora=LoRA(), dtype="bfloat16", **options)

    @property
    def quantized(self) -> bool:
        """True."""
        return True

    def build_model(self) -> Any:
        """Draw weights, quantise all but the output head, add adapters."""
        import torch
        from bitsandbytes.nn import Linear4bit, Params4bit

        model = self.draw(_device())
        compute = {"compute_dtype": torch.bfloat16 if torch.cuda.is_available() else torch.float32}
        storage = {"quant_type": "nf4", "compress_statistics": True}
        for name, layer in list(model.named_modules()):
            if isinstance(layer, torch.nn.Linear) and name != "lm_head":
                small = Linear4bit(
                    layer.in_features, layer.out_features, bias=False, device="meta", **compute, **storage
                )
                small.weight = Params4bit(layer.weight.data, requires_grad=False, **storage).to(layer.weight.device)
                model.set_submodule(name, small)
        model.is_quantized = model.is_loaded_in_4bit = True
        return prepared(self, model)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


class TextModel(RandomLanguageModel):
    """A model of a shape, with a byte-pair tokenizer of 16,000 tokens trained on given texts.

    Args:
        shape: a key of `SHAPES`.
        texts: to train on.
    """

    def __init__(self, shape: str, texts: list[str]) -> None:
        super().__init__(config={**SHAPES[shape], "max_position_embeddings": 32_768})
        self.texts = texts

    def build_tokenizer(self) -> Any:
        """Train it, the same each time."""
        from tokenizers import ByteLevelBPETokenizer
        from transformers import PreTrainedTokenizerFast

        inner = ByteLevelBPETokenizer()
        inner.train_from_iterator(self.texts, vocab_size=16_000, special_tokens=["[eos]"], show_progress=False)
        return PreTrainedTokenizerFast(
            tokenizer_object=inner._tokenizer, eos_token="[eos]", pad_token="[eos]", model_max_length=10**6
        )


def words(draw: random.Random, vocabulary: int, count: int) -> str:
    """So many random words."""
    return " ".join(f"w{draw.randrange(3, vocabulary)}" for _ in range(count))


def write_pairs(path: Path, *, pairs: int, longest: int, vocabulary: int, seed: int = 0) -> list[dict[str, str]]:
    """Pairs of responses to a prompt as JSONL; prompt and response of 1/8 to all of `longest` tokens together."""
    draw = random.Random(seed)
    rows = []
    for _ in range(pairs):
        prompt = words(draw, vocabulary, draw.randrange(longest // 16, longest // 8))
        room = longest - len(prompt.split()) - 1
        sides = [words(draw, vocabulary, draw.randrange(longest // 8, room)) for _ in range(2)]
        rows.append({"prompt": prompt, "chosen": sides[0], "rejected": sides[1]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows
