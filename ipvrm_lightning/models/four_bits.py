"""Weights in 4 bits: what can have them, and what is done to a model that has (QLoRA, arXiv:2305.14314)."""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

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
    _shorten_embeddings(model)
    return model


def _in_autocast_precision(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    (hidden,) = inputs
    kind = hidden.device.type
    return (hidden.to(torch.get_autocast_dtype(kind)),) if torch.is_autocast_enabled(kind) else inputs


def _shorten_embeddings(model: Any) -> None:
    """Keep embedding and head in bfloat16, as most are published: half the memory, and not a number changes.

    A vocabulary of 151,936 in 4,096 dimensions, twice, is 5 GB in float32, as much as 8 billion weights in 4 bits.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if type(embedding) is not nn.Embedding or type(head) is not nn.Linear:
        return  # one of them does more than look up or multiply, such as to scale
    module: Any
    for module, forward in ((embedding, _embed), (head, _project)):
        wide = module.weight.data
        # in parts: a copy of all would not fit beside it on a small card
        if all(torch.equal(rows.bfloat16().to(wide.dtype), rows) for rows in wide.split(10_000)):
            module.weight.data = wide.bfloat16()  # tied, it is the other's as well
            module.forward = MethodType(forward, module)


def _embed(module: nn.Embedding, token_ids: Tensor) -> Tensor:
    return nn.Embedding.forward(module, token_ids).float()


def _project(module: nn.Linear, hidden: Tensor) -> Tensor:
    weight = module.weight
    if not torch.is_autocast_enabled(hidden.device.type):
        weight = weight.to(hidden.dtype)
    return nn.functional.linear(hidden, weight, module.bias)
