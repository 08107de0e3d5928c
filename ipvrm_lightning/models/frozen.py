"""Models that are only read: loaded by where they come from, with their adapter where they have one, and checked."""

from __future__ import annotations

from typing import Any

import torch

from ipvrm_lightning.failures import library_errors
from ipvrm_lightning.models.exported import ModelSource
from ipvrm_lightning.models.logprobs import check_output_head
from ipvrm_lightning.models.preparation import quantization_options
from ipvrm_lightning.models.reference import weights_fingerprint
from ipvrm_lightning.pretrained import find_file, load_model


def load_frozen(source: ModelSource, *, adapter: str | None = None, trust_remote_code: bool = False) -> Any:
    """A model in evaluation mode and without gradient.

    Args:
        source: of the model, or of the base of an adapter. Where it holds a hash of the weights, they are compared.
        adapter: folder or repository of an adapter (PEFT) to put on it.
        trust_remote_code: run code that the model's repository brings.

    Raises:
        ValueError: it cannot be loaded, has other weights than it should, or a head that is not known.
    """
    options: dict[str, Any] = {"dtype": getattr(torch, source.dtype), "revision": source.revision}
    options |= quantization_options(source.gguf_file, source.quantization, source.compute_dtype)  # type: ignore[arg-type]
    model: Any = load_model(
        source.name, trust_remote_code=trust_remote_code, **{k: v for k, v in options.items() if v is not None}
    )
    if source.weights is not None and weights_fingerprint(model, with_config=False) != source.weights:
        raise ValueError(
            f"{source.name}: its weights are not those that the export names, so that log-ratios to them would mean"
            " something else; restore them, or give the reference yourself"
        )
    if source.quantization is not None:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)  # as in training
    if adapter is not None:
        model = _with_adapter(model, adapter)
    check_output_head(model)
    return model.eval().requires_grad_(False)


def _with_adapter(model: Any, adapter: str) -> Any:
    from peft import PeftModel

    weights = find_file(adapter, "adapter_model.safetensors")
    if weights is None or find_file(adapter, "adapter_config.json") is None:
        raise ValueError(f"{adapter}: no adapter_config.json with an adapter_model.safetensors (pickles are not loaded)")
    with library_errors(f"{adapter}: the adapter cannot be put on {model.config._name_or_path}"):
        adapted = PeftModel.from_pretrained(model, str(weights.parent))
    if adapted.active_peft_config.is_prompt_learning:
        kind = adapted.active_peft_config.peft_type.value
        raise ValueError(f"{adapter}: adapters of the kind {kind} add tokens of their own and cannot be scored")
    return adapted
