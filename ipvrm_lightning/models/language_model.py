"""Language models by name: factories that a config can hold, so that parsing it loads and downloads nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from ipvrm_lightning.failures import library_errors
from ipvrm_lightning.models.four_bits import check_four_bits, check_quantization, quantization_options
from ipvrm_lightning.models.preparation import (
    attention_options,
    check_sharded,
    empty_model,
    prepare_for_training,
)
from ipvrm_lightning.pretrained import find_file, load_config, load_model, load_tokenizer, quantization_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DType = Literal["float32", "bfloat16", "float16"]
#: Divides an empty model over the processes, in place.
Divide = Callable[[Any], None]


@dataclass
class LoRA:
    """Low-rank adapters (PEFT).

    Args:
        r: rank.
        alpha: scale; the update is multiplied by alpha / r.
        dropout: dropout on the adapter's input during training.
        target_modules: layers to adapt: `all-linear`, or names. The output head is never adapted; what
            else `all-linear` leaves out (experts of some models) is logged.
        use_dora: decompose weights into magnitude and direction (DoRA).
        target_parameters: ends of the names of parameters to adapt besides, for experts that lie many in one, such as
            `experts.gate_up_proj` and `experts.down_proj` of gpt-oss.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    use_dora: bool = False
    target_parameters: list[str] | None = None


class LanguageModelFactory(ABC):
    """Builds a causal language model and its tokenizer when they are needed, not before.

    Attributes:
        lora: adapters that `build_model` adds.
        quantization: `nf4` where the weights are in 4 bits.
        compile: whether decoder blocks are compiled.
    """

    lora: LoRA | None = None
    quantization: Literal["nf4"] | None = None
    compile: bool = False

    @abstractmethod
    def build_model(self) -> PreTrainedModel:
        """Load or make the model, with adapters where they are configured."""

    @abstractmethod
    def build_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load or make the tokenizer."""

    @property
    def has_adapters(self) -> bool:
        """Whether `build_model` gives a model whose adapters can be switched off."""
        return self.lora is not None

    @property
    def quantized(self) -> bool:
        """Whether its weights are in fewer bits than a float has."""
        return self.quantization is not None

    def check_sampling(self) -> None:
        """Refuse to sample responses, before anything is loaded, where that cannot be done well.

        Raises:
            ValueError: its blocks are compiled.
        """
        if self.compile:
            raise ValueError(
                "language_model.compile is for supervised training and reward models: sampling would compile for each"
                " length, and a compiled policy's ratio to itself is not exactly 1"
            )

    def check_stored(self) -> None:  # noqa: B027 - most weights are stored as they are
        """Refuse weights that cannot be trained as they are stored, before they are loaded.

        Raises:
            ValueError: they are in fewer bits than a float has, and nothing says so.
        """

    def describe(self) -> dict[str, Any]:
        """What gives trained weights their meaning besides their names and shapes: primitives only."""
        adapters = None if self.lora is None else {"alpha": self.lora.alpha}
        return {"lora": adapters, "quantization": self.quantization}

    def check_sharding(self) -> None:
        """Refuse to be divided over processes, before anything is loaded, where that cannot be.

        Raises:
            ValueError: says why, and what can.
        """
        raise ValueError(f"{type(self).__name__} cannot be built in shards: use another strategy than FSDP2")

    def build_sharded(self, divide: Divide) -> PreTrainedModel:
        """Make the model without weights, divide it, and fill what is left on this process; then add adapters.

        Args:
            divide: leaves uninitialised shards on this process's device.

        Raises:
            ValueError: this factory cannot.
        """
        raise NotImplementedError


class PretrainedLanguageModel(LanguageModelFactory):
    """A causal language model from the hub, a folder or a GGUF file.

    Args:
        name: repository on the hub, or a folder.
        revision: branch, tag or commit on the hub.
        gguf_file: GGUF file inside `name`; its weights are dequantised.
        dtype: precision of the weights.
        attn_implementation: `sdpa`, `eager`, `flash_attention_2`, ..., or `varlen` for sequences without padding;
            None takes what transformers chooses.
        gradient_checkpointing: recompute activations in backward: less memory, about a third more time.
        compile: compile the decoder blocks (`torch.compile`): less time a step, after a minute or less of compiling.
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
        compile: bool = False,
        lora: LoRA | None = None,
        quantization: Literal["nf4"] | None = None,
        compute_dtype: DType = "bfloat16",
        trust_remote_code: bool = False,
        chat_template: str | None = None,
    ) -> None:
        check_quantization(quantization, lora)
        self.name = name
        self.revision = revision
        self.gguf_file = gguf_file
        self.dtype = dtype
        self.attn_implementation = attn_implementation
        self.gradient_checkpointing = gradient_checkpointing
        self.compile = compile
        self.lora = lora
        self.quantization = quantization
        self.compute_dtype = compute_dtype
        self.trust_remote_code = trust_remote_code
        self.chat_template = chat_template

    def build_model(self) -> PreTrainedModel:
        """Load the model.

        Raises:
            ValueError: there is an adapter beside it or in its place, or no model that can be loaded, or one that 4
                bits would make larger.
        """
        self._refuse_adapter()
        options: dict[str, Any] = {"dtype": getattr(torch, self.dtype), "revision": self.revision}
        options.update(attention_options(self.attn_implementation))
        options.update(quantization_options(self.gguf_file, self.quantization, self.compute_dtype))
        if self.quantized:
            check_four_bits(self._empty(), self.name)
        model = load_model(
            self.name, trust_remote_code=self.trust_remote_code, **{k: v for k, v in options.items() if v is not None}
        )
        return prepared(self, model)

    def check_stored(self) -> None:
        """Refuse a quantised model: its weights would silently stay as they are; `nf4` may lie in the folder already.

        Raises:
            ValueError: names the model and how it is quantised; or there is an adapter beside it or in its place.
        """
        self._refuse_adapter()
        found = None if self.gguf_file else quantization_of(self.name, revision=self.revision)
        if found is not None and not (self.quantized and found == "bitsandbytes"):
            raise ValueError(
                f"{self.name}: its weights are quantised already ({found}) and cannot be trained so:"
                " give the unquantised model, with quantization: nf4 and lora for 4 bits"
            )

    def check_sharding(self) -> None:
        """Refuse what cannot be read, or adapted, in parts.

        Raises:
            ValueError: a GGUF file, weights in 4 bits, or DoRA.
        """
        if self.gguf_file is not None or self.quantized:
            raise ValueError(
                "a GGUF file or weights in 4 bits cannot be divided over processes: use DDP, or safetensors as they are"
            )
        check_sharded(self.lora)

    def build_sharded(self, divide: Divide) -> PreTrainedModel:
        """Load the model, each process its own rows of it.

        Raises:
            FileNotFoundError: there are no safetensors.
            ValueError: the weights cannot be read in parts.
        """
        from huggingface_hub import snapshot_download
        from transformers import GenerationConfig

        from ipvrm_lightning.models.shard_loading import load_safetensors

        self.check_sharding()
        self.check_stored()
        model = self._empty()
        folder = Path(self.name)
        if not folder.is_dir():
            folder = Path(
                snapshot_download(self.name, revision=self.revision, allow_patterns=["*.safetensors", "*.json"])
            )
        divide(model)
        load_safetensors(model, folder)
        if (folder / "generation_config.json").exists():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        return prepared(self, model)

    def build_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer."""
        options = {"gguf_file": self.gguf_file} if self.gguf_file else {}
        tokenizer = load_tokenizer(
            self.name, revision=self.revision or "main", trust_remote_code=self.trust_remote_code, **options
        )
        if self.chat_template is not None:
            tokenizer.chat_template = self.chat_template
        return tokenizer

    def _empty(self) -> Any:
        """The model without weights."""
        config = load_config(self.name, revision=self.revision, trust_remote_code=self.trust_remote_code)
        with library_errors(f"{self.name}: the model cannot be loaded"):
            return empty_model(config, self.dtype, self.attn_implementation, trust_remote_code=self.trust_remote_code)

    def _refuse_adapter(self) -> None:
        """It would be put on its base in silence by transformers: frozen, and lost where `lora` adds another."""
        if find_file(self.name, "adapter_config.json", revision=self.revision) is not None:
            raise ValueError(
                f"{self.name} holds an adapter, not a model alone: merge it first, because with adapters off its base"
                " model, not the adapter, would be the reference"
            )


class RandomLanguageModel(LanguageModelFactory):
    """A causal language model with random weights: real shapes for memory and speed, tiny ones for tests and worlds.

    Args:
        config: `model_type` and the other fields of its transformers config, or the name of a config on the hub or in a
            folder.
        tokenizer: name or folder of the tokenizer.
        seed: of the weights; the global random state is left as it was.
        dtype: precision of the weights.
        attn_implementation: `sdpa`, `eager`, ..., or `varlen` for sequences without padding; None takes what
            transformers chooses.
        gradient_checkpointing: recompute activations in backward.
        compile: compile the decoder blocks (`torch.compile`): less time a step, after a minute or less of compiling.
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
        compile: bool = False,
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
        self.compile = compile
        self.lora = lora

    def build_model(self) -> PreTrainedModel:
        """Make the model from its config, the same for the same seed on every kind of device: drawn on the CPU.

        Raises:
            ValueError: no model can be made of the config.
        """
        return prepared(self, self.draw("cpu"))

    def draw(self, device: str) -> Any:
        """Weights alone, without adapters or anything else.

        Args:
            device: the weights of a seed are others on another kind of device.

        Raises:
            ValueError: no model can be made of the config.
        """
        from transformers import AutoModelForCausalLM

        options = attention_options(self.attn_implementation)
        describing = library_errors("RandomLanguageModel.config describes no model")
        with describing, torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(self.seed)
            return AutoModelForCausalLM.from_config(self._model_config(), dtype=getattr(torch, self.dtype), **options)

    def check_sharding(self) -> None:
        """Refuse DoRA.

        Raises:
            ValueError: it is asked for.
        """
        check_sharded(self.lora)

    def build_sharded(self, divide: Divide) -> PreTrainedModel:
        """Make the model in shards; the weights are those of `build_model`."""
        from ipvrm_lightning.models.shard_loading import Initialization

        with Initialization() as first_values:
            model = empty_model(self._model_config(), self.dtype, self.attn_implementation)
        first_values.name_parameters(model)
        divide(model)
        first_values.replay(model, self.seed)
        return prepared(self, model)

    def _model_config(self) -> Any:
        from transformers import AutoConfig

        if isinstance(self.config, str):
            return load_config(self.config)
        fields = dict(self.config)
        return AutoConfig.for_model(fields.pop("model_type"), **fields)

    def build_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer.

        Raises:
            ValueError: none is configured.
        """
        if self.tokenizer is None:
            raise ValueError("RandomLanguageModel needs the argument tokenizer to read text")
        return load_tokenizer(self.tokenizer)


def prepared(factory: PretrainedLanguageModel | RandomLanguageModel, model: Any) -> PreTrainedModel:
    """A freshly made model with what its factory asks for.

    Args:
        factory: says which adapters, and whether to recompute activations and to compile.
        model: with weights alone.
    """
    return prepare_for_training(
        model,
        lora=factory.lora,
        gradient_checkpointing=factory.gradient_checkpointing,
        compile_blocks=factory.compile,
        quantized=factory.quantized,
    )
