"""The sound configs and the sound model folder that cases start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MODEL: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 300,
}
TRAINER: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "max_steps": 1,
    "max_epochs": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "enable_checkpointing": False,
}


def build_tokenizer(chat_template: str | None = None) -> Any:
    """A tokenizer of bytes with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=tokens, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = chat_template or (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def write_bases(folder: Path) -> str:
    """Write three configs, a model folder `model` and small files for them; returns the folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer().save_pretrained(folder / "model")
    config = AutoConfig.for_model(**MODEL)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    (folder / "rollouts.jsonl").write_text('{"prompt": "1?", "responses": ["2", "3"], "scores": [1, 0]}\n')
    (folder / "prompts.jsonl").write_text('{"prompt": "1?", "answer": "2"}\n')
    (folder / "bench").mkdir(exist_ok=True)
    (folder / "bench" / "gsm8k.jsonl").write_text('{"problem": "1?", "steps": ["a", "b"], "label": 1}\n')
    for name, content in bases(folder).items():
        (folder / name).write_text(yaml.safe_dump(content))
    return str(folder)


def bases(folder: Path) -> dict[str, dict[str, Any]]:
    """The three configs, by file name."""
    language_model = {
        "class_path": "ipvrm_lightning.models.RandomLanguageModel",
        "init_args": {"config": MODEL, "tokenizer": str(folder / "model")},
    }
    model = {
        "class_path": "ipvrm_lightning.modules.IPVRMModule",
        "init_args": {
            "language_model": language_model,
            "objective": {"class_path": "ipvrm_lightning.objectives.IPVRM", "init_args": {"beta": 10.0}},
        },
    }
    rollouts = {
        "class_path": "ipvrm_lightning.data.TrajectoryDataModule",
        "init_args": {"train": str(folder / "rollouts.jsonl"), "validation_fraction": 0.0, "batch_size": 4},
    }
    bench = {
        "class_path": "ipvrm_lightning.data.ProcessBenchDataModule",
        "init_args": {"path": str(folder / "bench")},
    }
    return {
        "fit.yaml": {"model": model, "data": rollouts, "trainer": TRAINER},
        "test.yaml": {"model": model, "data": bench, "trainer": TRAINER},
        "rollout.yaml": {
            "prompts": {
                "class_path": "ipvrm_lightning.data.PromptDataModule",
                "init_args": {"train": str(folder / "prompts.jsonl")},
            },
            "source": {
                "class_path": "ipvrm_lightning.rollouts.InProcess",
                "init_args": {"language_model": language_model},
            },
            "verifier": {"class_path": "ipvrm_lightning.rollouts.ExactMatch"},
            "sampling": {"group_size": 1, "max_new_tokens": 2},
        },
    }
