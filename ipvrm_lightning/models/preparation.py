"""What is done to a language model before it is trained, and what cannot be done to one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ipvrm_lightning.models.language_model import DType, LoRA


def check_quantization(quantization: str | None, lora: LoRA | None) -> None:
    """Refuse quantised weights without adapters.

    Raises:
        ValueError: weights in 4 bits cannot be trained themselves.
    """
    if quantization is not None and lora is None:
        raise ValueError("quantization needs lora: weights in 4 bits cannot be trained themselves")


def quantization_options(gguf_file: str | None, quantization: str | None, compute_dtype: DType) -> dict[str, Any]:
    """What `from_pretrained` is told of weights in fewer bits: a GGUF file is dequantised, `nf4` doubly quantised.

    Args:
        gguf_file: GGUF file in the model's folder.
        quantization: `nf4`, or None for weights as they are.
        compute_dtype: precision of products with 4-bit weights.

    Raises:
        ValueError: both are asked for.
    """
    if gguf_file is not None:
        from transformers import GgufConfig

        if quantization is not None:
            raise ValueError("a GGUF file is dequantised on loading; save it as safetensors to load it in 4 bits")
        return {"gguf_file": gguf_file, "quantization_config": GgufConfig(dequantize=True)}
    if quantization is None:
        return {}
    from transformers import BitsAndBytesConfig

    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, compute_dtype),
        )
    }


def check_sharded_adapters(lora: LoRA | None) -> None:
    """Refuse adapters that read whole weights of a model which is divided over processes.

    Raises:
        ValueError: DoRA.
    """
    if lora is not None and lora.use_dora:
        raise ValueError("lora.use_dora reads whole weights: with FSDP2 use plain LoRA, or another strategy")


def empty_model(config: Any, dtype: DType, attn_implementation: str | None, **options: Any) -> PreTrainedModel:
    """A model whose parameters are on the meta device and whose buffers hold what they should.

    Args:
        config: of transformers.
        dtype: precision of the weights.
        attn_implementation: None takes what transformers chooses.
        options: of `from_config`.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), **options)
    model.tie_weights()  # moving parameters to the meta device has made two of each tied one
    return model


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

        from ipvrm_lightning.models.sharding import seemingly_whole

        adapters = LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
            use_dora=lora.use_dora,
            task_type="CAUSAL_LM",
        )
        with seemingly_whole(model):
            model = get_peft_model(model, adapters)
    if gradient_checkpointing:
        if lora is not None:
            model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # loaded models come in eval mode, in which transformers skips gradient checkpointing and dropout without a word
    return model.train()
