"""Weights in 4 bits: what can have them, and what is done to a model that has (QLoRA, arXiv:2305.14314)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ipvrm_lightning.models.product_precision import shorten_embeddings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ipvrm_lightning.models.language_model import DType, LoRA

#: Share of a model's weights that may stay in float32 where the others are in 4 bits: convolutions, for example.
_LEFT_WIDE = 0.05


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


def check_four_bits(model: PreTrainedModel, name: str) -> None:
    """Refuse a model most of which 4 bits do not reach: bitsandbytes takes layers, experts lie many in one parameter.

    `prepare_four_bits` would widen these to float32, and a model that was to shrink would grow.

    Args:
        model: without weights, as `empty_model` gives it.
        name: of it, for the error.

    Raises:
        ValueError: says how much would be left, and what to do.
    """
    left = {key: parameter.numel() for key, parameter in model.named_parameters() if parameter.ndim > 2}
    count = sum(left.values())
    share = count / sum(parameter.numel() for parameter in model.parameters())
    if share > _LEFT_WIDE:
        raise ValueError(
            f"{name}: {share:.0%} of its weights are experts that lie many in one parameter ({max(left, key=left.get)})"  # type: ignore[arg-type]
            f" and that quantization: nf4 does not reach: in float32 they would take {count * 4 / 1e9:.3g} GB. Train it"
            " without quantization: lora with dtype: bfloat16"
        )


def prepare_four_bits(model: Any) -> Any:
    """Freeze a model in 4 bits, and have the rest of it compute as it would without them.

    - What has half precision is widened, but an embedding and a head that lose nothing by it stay: their values are
      used as if they were wide.
    - bitsandbytes gives products the precision of what goes in, which is float32 after a norm. Under autocast they come
      out in half precision, as those of other layers do, which leaves less for a block to read and to keep.
    - In evaluation on a CPU with AVX512-BF16, bitsandbytes would rewrite the weights for kernels that round to bfloat16
      and have no gradient, and later steps of training would go through these: without a word, with wrong gradients.

    Args:
        model: freshly loaded in 4 bits.
    """
    from bitsandbytes.nn import Linear4bit
    from peft import prepare_model_for_kbit_training

    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
            module.register_forward_pre_hook(_in_autocast_precision)
    shorten_embeddings(model)
    return model


def _in_autocast_precision(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    (hidden,) = inputs
    kind = hidden.device.type
    return (hidden.to(torch.get_autocast_dtype(kind)),) if torch.is_autocast_enabled(kind) else inputs
