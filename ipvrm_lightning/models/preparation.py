"""What is done to a language model before it is trained, and what cannot be done to one."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ipvrm_lightning.failures import library_errors
from ipvrm_lightning.models.four_bits import prepare_four_bits
from ipvrm_lightning.models.packing import VARLEN, register_varlen

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ipvrm_lightning.models.language_model import DType, LoRA

#: Share of the weights that `all-linear` may leave out without a word: convolutions and routers.
_UNADAPTED = 0.01


def attention_options(attn_implementation: str | None) -> dict[str, str]:
    """What transformers is told of attention; nothing where it is to choose itself.

    Raises:
        ValueError: this torch cannot do it.
    """
    if attn_implementation == VARLEN:
        register_varlen()
    return {} if attn_implementation is None else {"attn_implementation": attn_implementation}


def check_sharded(lora: LoRA | None) -> None:
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

    options |= attention_options(attn_implementation)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), **options)
    model.tie_weights()  # moving parameters to the meta device has made two of each tied one
    return model


def decoder_blocks(model: PreTrainedModel) -> list[Any]:
    """The layers that a model repeats.

    Raises:
        ValueError: it does not say what they are.
    """
    kinds = set(model._no_split_modules or ())
    # FSDP2 gives a block it divides a class of its own
    blocks = [module for module in model.modules() if kinds & {kind.__name__ for kind in type(module).__mro__}]
    if not blocks:
        raise ValueError(f"{type(model).__name__} does not say what its blocks are: it cannot be sharded or compiled")
    return blocks


def is_compiled(model: PreTrainedModel) -> bool:
    """Whether `prepare_for_training` was to compile the blocks of a Hugging Face model."""
    return getattr(model, "blocks_are_compiled", False)


def uncompiled(model: PreTrainedModel) -> AbstractContextManager[Any]:
    """Blocks run as they are within it: for a few tokens in another mode than training's, compiling takes too long.

    Args:
        model: a Hugging Face model.
    """
    return torch.compiler.set_stance("force_eager") if is_compiled(model) else nullcontext()


def _say_what_has_no_adapter(model: Any) -> None:
    """PEFT leaves out, in models with experts, what lies many in one parameter, or dense and shared layers."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_info
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = model.get_base_model()
    layers = [module for module in base.modules() if isinstance(module, BaseTunerLayer)]
    adapted = {id(layer.get_param() if hasattr(layer, "get_param") else layer.weight) for layer in layers}
    embeddings = [module for module in base.modules() if isinstance(module, nn.Embedding)]
    outside = {id(getattr(module, "weight", None)) for module in (*embeddings, base.get_output_embeddings())}
    size = {
        name: parameter.numel() * (2 if parameter.dtype == torch.uint8 else 1)  # two weights of 4 bits in a byte
        for name, parameter in base.named_parameters()
        if parameter.ndim > 1 and ".lora_" not in name and id(parameter) not in outside
    }
    without = [name for name, parameter in base.named_parameters() if name in size and id(parameter) not in adapted]
    share = sum(size[name] for name in without) / sum(size.values())
    if share > _UNADAPTED:
        largest = sorted(without, key=size.__getitem__, reverse=True)[:3]
        names = ", ".join(name.replace(".base_layer", "") for name in largest)
        rank_zero_info(
            f"lora.target_modules: all-linear leaves {share:.0%} of the matrices' weights without adapter, embeddings"
            f" and head aside: {names}{', ...' if len(without) > 3 else ''} (lora.target_parameters names what to add)"
        )


def _leave_adapted_experts(model: Any) -> None:
    """Experts and routers with adapters run as they are: PEFT gives them a class of their own in every pass.

    Compiled, they would be compiled anew in every pass, until torch gives up on all that is around them.

    Args:
        model: with adapters, whose blocks are compiled.
    """
    from lightning.pytorch.utilities.rank_zero import rank_zero_info
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted: list[Any] = [m for m in model.modules() if isinstance(m, BaseTunerLayer) and hasattr(m, "get_param")]
    for module in adapted:
        module.forward = MethodType(torch.compiler.disable(module.forward.__func__), module)
    if adapted:
        rank_zero_info(
            "language_model.compile: experts and routers with adapters run as they are, and with gradient_checkpointing"
            " so do, in training, the blocks that hold them"
        )


def _for_training(model: Any) -> None:
    """What a config asks of generation, and of training elsewhere, is off: `restore_config` puts it back."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_info

    model.config.use_cache = False
    text = model.config.get_text_config()
    model.asks_for_routers_loss = bool(getattr(text, "output_router_logits", False))
    if model.asks_for_routers_loss:  # its mask is of all tokens: where one is read at a time, it fails
        rank_zero_info("output_router_logits: the routers' auxiliary loss is no part of training here")
        text.output_router_logits = False


def restore_config(model: Any) -> None:
    """Give a model that `prepare_for_training` has changed the config that it is to be published with.

    Args:
        model: a Hugging Face model, no wrapper with adapters.
    """
    model.config.use_cache = True
    if model.asks_for_routers_loss:
        model.config.get_text_config().output_router_logits = True


def prepare_for_training(
    model: Any, *, lora: LoRA | None, gradient_checkpointing: bool, compile_blocks: bool, quantized: bool = False
) -> PreTrainedModel:
    """Add adapters, gradient checkpointing and compilation to a freshly loaded model.

    Args:
        model: the model.
        lora: adapters to add; the weights are frozen then.
        gradient_checkpointing: recompute activations in backward.
        compile_blocks: compile decoder blocks when they first run.
        quantized: the weights are in 4 bits.

    Raises:
        ValueError: blocks are to be compiled and the model does not say what they are, or it cannot have the adapters.
    """
    _for_training(model)
    model.blocks_are_compiled = compile_blocks
    if compile_blocks:
        import torch._dynamo  # takes seconds

        # with adapters on and off, with and without gradient, in training and not: beyond the limit nothing is compiled
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
        for block in decoder_blocks(model):
            # what hooks (FSDP2's gathering) and recomputation do stays around what is compiled
            block.forward = MethodType(torch.compile(block.forward.__func__, dynamic=True), block)
    if quantized:
        model = prepare_four_bits(model)
    if lora is not None:
        from peft import LoraConfig, get_peft_model

        from ipvrm_lightning.models.sharding import seemingly_whole

        adapters = LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
            target_parameters=lora.target_parameters,
            use_dora=lora.use_dora,
            task_type="CAUSAL_LM",
        )
        hint = "try lora.dropout: 0, lora.use_dora: false, or other names in lora.target_modules"
        with library_errors(f"{type(model).__name__} cannot have these adapters: {hint}"), seemingly_whole(model):
            model = get_peft_model(model, adapters)
        if lora.target_modules == "all-linear":
            _say_what_has_no_adapter(model)
        if compile_blocks:
            _leave_adapted_experts(model)
    if gradient_checkpointing:
        if lora is not None:
            model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # loaded models come in eval mode, in which transformers skips gradient checkpointing and dropout without a word
    return model.train()
