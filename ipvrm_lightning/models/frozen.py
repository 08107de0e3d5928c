"""Models that are only read: loaded by where they come from, with their adapter where they have one, and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ipvrm_lightning.failures import library_errors
from ipvrm_lightning.models.exported import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ModelSource
from ipvrm_lightning.models.four_bits import prepare_four_bits, quantization_options
from ipvrm_lightning.models.logprobs import check_output_head
from ipvrm_lightning.models.reference import weights_fingerprint
from ipvrm_lightning.pretrained import find_file, load_model


def load_frozen(
    source: ModelSource, *, adapter: str | None = None, dtype: str | None = None, trust_remote_code: bool = False
) -> Any:
    """A model in evaluation mode and without gradient.

    Args:
        source: of the model, or of the base of an adapter. Where it holds a hash of the weights, they are compared.
        adapter: folder or repository of an adapter (PEFT) to put on it.
        dtype: precision to compute in, where it is not the source's; weights in 4 bits have their own.
        trust_remote_code: run code that the model's repository brings.

    Raises:
        ValueError: it cannot be loaded, has other weights than it should, or a head that is not known.
    """
    loaded = source.dtype if dtype is None or source.weights is not None else dtype  # hashes are of one precision
    options: dict[str, Any] = {"dtype": getattr(torch, loaded), "revision": source.revision}
    options |= quantization_options(source.gguf_file, source.quantization, source.compute_dtype)
    model: Any = load_model(
        source.name, trust_remote_code=trust_remote_code, **{k: v for k, v in options.items() if v is not None}
    )
    if source.weights is not None and weights_fingerprint(model, with_config=False) != source.weights:
        raise ValueError(
            f"{source.name}: its weights are not those that the export names, so that log-ratios to them would mean"
            " something else: restore them, or say where they are now (reference)"
        )
    if source.quantization is not None:
        model = prepare_four_bits(model)  # as in training
    elif dtype is not None and dtype != loaded:
        model = model.to(getattr(torch, dtype))
    if adapter is not None:
        model = _with_adapter(model, adapter)
    check_output_head(model)
    return model.eval().requires_grad_(False)


def _with_adapter(model: Any, adapter: str) -> Any:
    from peft import PeftModel

    weights = find_file(adapter, ADAPTER_WEIGHTS)
    if weights is None or find_file(adapter, ADAPTER_CONFIG) is None:
        raise ValueError(f"{adapter}: no {ADAPTER_CONFIG} with {ADAPTER_WEIGHTS} (pickles are not loaded)")
    with library_errors(f"{adapter}: the adapter cannot be put on {model.config._name_or_path}"):
        adapted = PeftModel.from_pretrained(model, str(weights.parent))
    kind = adapted.active_peft_config
    if kind.is_prompt_learning:
        raise ValueError(f"{adapter}: adapters of the kind {kind.peft_type.value} add tokens of their own: not scored")
    _check_complete(adapted, weights)
    return adapted


def _check_complete(adapted: Any, weights: Path) -> None:
    """Refuse an adapter that does not fit its model: PEFT leaves out what it does not find a place for.

    Raises:
        ValueError: names the first weight that is in one of them alone.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(weights, framework="pt") as file:
        stored = set(file.keys())
    placed = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if stored != placed:
        name = min(stored ^ placed)
        where = "has no place in the model" if name in stored else "is missing"
        raise ValueError(f"{weights.parent}: the adapter does not fit {adapted.config._name_or_path}: {name} {where}")
