"""Language models by name: factories that a config can hold, so that parsing it loads and downloads nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from ipvrm_lightning.failures import library_errors
from ipvrm_lightning.pretrained import load_config, load_model, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DType = Literal["float32", "bfloat16", "float16"]


@dataclass
class LoRA:
    """Low-rank adapters (PEFT).

    Args:
        r: rank.
        alpha: scale; the update is multiplied by alpha / r.
        dropout: dropout on the adapter's input during training.
        target_modules: layers to adapt: `all-linear`, or names. The output head is never adapted.
        use_dora: decompose weights into magnitude and direction (DoRA).
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    use_dora: bool = False


class LanguageModelFactory(ABC):
    """Builds a causal language model and its tokenizer when they are needed, not before."""

    @abstractmethod
    def build_model(self) -> PreTrainedModel:
        """Load or make the model, with adapters where they are configured."""

    @abstractmethod
    def build_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load or make the tokenizer."""

    @property
    @abstractmethod
    def has_adapters(self) -> bool:
        """Whether `build_model` gives a model whose adapters can be switched off."""


class PretrainedLanguageModel(LanguageModelFactory):
    """A causal language model from the hub, a folder or a GGUF file.

    Args:
        name: repository on the hub, or a folder.
        revision: branch, tag or commit on the hub.
        gguf_file: GGUF file inside `name`; its weights are dequantised.
        dtype: precision of the weights.
        attn_implementation: `sdpa`, `eager`, `flash_attention_2`, ...; None takes what transformers chooses.
        gradient_checkpointing: recompute activations in backward: less memory, about a third more time.
        lora: train adapters on frozen weights; None trains the weights.
        quantization: `nf4` loads the weights in 4 bits (bitsandbytes, double quantisation); needs `lora`.
        compute_dtype: precision of products with 4-bit weights.
        trust_remote_code: run code that the repository brings.
        chat_template: Jinja template that replaces the tokenizer's own.
    """

    def __init__(
        self,
        *,
        name: str,
        revision: str | None = None,
        gguf_file: str | None = None,
        dtype: DType = "float32",
        attn_implementation: str | None = None,
        gradient_checkpointing: bool = False,
        lora: LoRA | None = None,
        quantization: Literal["nf4"] | None = None,
        compute_dtype: DType = "bfloat16",
        trust_remote_code: bool = False,
        chat_template: str | None = None,
    ) -> None:
        if quantization is not None and lora is None:
            raise ValueError("quantization needs lora: weights in 4 bits cannot be trained themselves")
        self.name = name
        self.revision = revision
        self.gguf_file = gguf_file
        self.dtype = dtype
        self.attn_implementation = attn_implementation
        self.gradient_checkpointing = gradient_checkpointing
        self.lora = lora
        self.quantization = quantization
        self.compute_dtype = compute_dtype
        self.trust_remote_code = trust_remote_code
        self.chat_template = chat_template

    @property
    def has_adapters(self) -> bool:
        """True where LoRA is configured."""
        return self.lora is not None

    def build_model(self) -> PreTrainedModel:
        """Load the model.

        Raises:
            ValueError: the folder holds an adapter rather than a model, or no model that can be loaded.
        """
        self._refuse_adapter_folder()
        options: dict[str, Any] = {"dtype": getattr(torch, self.dtype), "revision": self.revision}
        if self.attn_implementation is not None:
            options["attn_implementation"] = self.attn_implementation
        options.update(self._quantization_options())
        model = load_model(
            self.name, trust_remote_code=self.trust_remote_code, **{k: v for k, v in options.items() if v is not None}
        )
        return prepare_for_training(
            model, lora=self.lora, gradient_checkpointing=self.gradient_checkpointing, quantized=bool(self.quantization)
        )

    def build_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer."""
        options = {"gguf_file": self.gguf_file} if self.gguf_file else {}
        tokenizer = load_tokenizer(
            self.name, revision=self.revision or "main", trust_remote_code=self.trust_remote_code, **options
        )
        if self.chat_template is not None:
            tokenizer.chat_template = self.chat_template
        return tokenizer

    def _quantization_options(self) -> dict[str, Any]:
        if self.gguf_file is not None:
            from transformers import GgufConfig

            if self.quantization is not None:
                raise ValueError("a GGUF file is dequantised on loading; save it as safetensors to load it in 4 bits")
            return {"gguf_file": self.gguf_file, "quantization_config": GgufConfig(dequantize=True)}
        if self.quantization is None:
            return {}
        from transformers import BitsAndBytesConfig

        return {
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=getattr(torch, self.compute_dtype),
            )
        }

    def _refuse_adapter_folder(self) -> None:
        folder = Path(self.name)
        if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
            raise ValueError(
                f"{folder} holds an adapter, not a model: merge it first, because with adapters off its base model,"
                " not the adapter, would be the reference"
            )


class RandomLanguageModel(LanguageModelFactory):
    """A causal language model with random weights: real shapes for memory and speed, tiny ones for tests and worlds.

    Args:
        config: `model_type` and the other fields of its transformers config, or the name of a config on the hub or in a
            folder.
        tokenizer: name or folder of the tokenizer.
        seed: of the weights; the global random state is left as it was.
        dtype: precision of the weights.
        attn_implementation: `sdpa`, `eager`, ...; None takes what transformers chooses.
        gradient_checkpointing: recompute activations in backward.
        lora: train adapters on frozen weights; None trains the weights.
    """

    def __init__(
        self,
        *,
        config: dict[str, Any] | str,
        tokenizer: str | None = None,
        seed: int = 0,
        dtype: DType = "float32",
        attn_implementation: str | None = None,
        gradient_checkpointing: bool = False,
        lora: LoRA | None = None,
    ) -> None:
        if isinstance(config, dict) and "model_type" not in config:
            raise ValueError(f"config needs the field model_type, found {sorted(config)}")
        self.config = config
        self.tokenizer = tokenizer
        self.seed = seed
        self.dtype = dtype
        self.attn_implementation = attn_implementation
        self.gradient_checkpointing = gradient_checkpointing
        self.lora = lora

    @property
    def has_adapters(self) -> bool:
        """True where LoRA is configured."""
        return self.lora is not None

    def build_model(self) -> PreTrainedModel:
        """Make the model from its config, the same for the same seed.

        Raises:
            ValueError: no model can be made of the config.
        """
        from transformers import AutoConfig, AutoModelForCausalLM

        options = {} if self.attn_implementation is None else {"attn_implementation": self.attn_implementation}
        with library_errors("RandomLanguageModel.config describes no model"), torch.random.fork_rng():
            if isinstance(self.config, str):
                config = load_config(self.config)
            else:
                fields = dict(self.config)
                config = AutoConfig.for_model(fields.pop("model_type"), **fields)
            torch.manual_seed(self.seed)
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, self.dtype), **options)
        return prepare_for_training(model, lora=self.lora, gradient_checkpointing=self.gradient_checkpointing)

    def build_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer.

        Raises:
            ValueError: none is configured.
        """
        if self.tokenizer is None:
            raise ValueError("RandomLanguageModel needs the argument tokenizer to read text")
        return load_tokenizer(self.tokenizer)


def prepare_for_training(
    model: Any, *, lora: LoRA | None, gradient_checkpointing: bool, quantized: bool = False
) -> PreTrainedModel:
    """Add adapters and gradient checkpointing to a freshly loaded model.

    Args:
        model: the model.
        lora: adapters to add; the weights are frozen then.
        gradient_checkpointing: recompute activations in backward.
        quantized: the weights are in 4 bits.
    """
    model.config.use_cache = False
    if quantized:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if lora is not None:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(
            model,
            LoraConfig(
                r=lora.r,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=lora.target_modules,
                use_dora=lora.use_dora,
                task_type="CAUSAL_LM",
            ),
        )
    if gradient_checkpointing:
        if lora is not None:
            model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # loaded models come in eval mode, in which transformers skips gradient checkpointing and dropout without a word
    return model.train()
