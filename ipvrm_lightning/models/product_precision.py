"""Weights in the precision of products under autocast: half the memory, no casts, and not a number changes.

Autocast rounds the weights of each product to bfloat16, and Lightning's keeps nothing of it for the next pass. Most
models are published in bfloat16: held in float32 for the sake of norms, and of what is added up, their matrices are
read, rounded to what they are already, written and read again. What is frozen and loses nothing by it is held in
bfloat16 (`shorten_frozen`), and what is in training for as long as it samples (`shortened`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def multiplies_shorter(device: torch.device) -> bool:
    """Whether products on a device come out of bfloat16 now, by autocast."""
    kind = device.type
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16


def shorten_for(trainer: Trainer, language_model: Any) -> None:
    """`shorten_frozen` where a trainer's precision has products in bfloat16.

    Args:
        trainer: that is to run the model.
        language_model: a Hugging Face model, with or without adapters in it.
    """
    with trainer.precision_plugin.forward_context():
        if multiplies_shorter(trainer.strategy.root_device):
            shorten_frozen(language_model)


def shorten_frozen(language_model: Any) -> None:
    """Hold frozen embedding, head and linear layers in bfloat16 where they lose nothing by it.

    For products in bfloat16; others see the weights as they were. Experts that lie many in one parameter stay, and so
    do layers of a module with parameters of its own, which may read weights itself (Mamba), and what is divided over
    processes.

    Args:
        language_model: a Hugging Face model, with or without adapters in it.
    """
    shorten_embeddings(language_model)
    head = language_model.get_output_embeddings()
    layers = []
    for name, layer in language_model.named_modules():
        if type(layer) is not nn.Linear or layer is head or ".lora_" in name:
            continue
        owner = language_model.get_submodule(name.removesuffix(".base_layer").rpartition(".")[0])
        if not owner._parameters:
            layers.append(layer)
    _shorten([(layer, _ShortLinear) for layer in layers])


def shorten_embeddings(language_model: Any) -> None:
    """Hold frozen embedding and head in bfloat16 where they lose nothing by it.

    A vocabulary of 151,936 in 4,096 dimensions, twice, is 5 GB in float32, as much as 8 billion weights in 4 bits.

    Args:
        language_model: a Hugging Face model.
    """
    embedding, head = language_model.get_input_embeddings(), language_model.get_output_embeddings()
    if type(embedding) is nn.Embedding and type(head) is nn.Linear:  # else one of them does more, such as to scale
        _shorten([(embedding, _ShortEmbedding), (head, _ShortLinear)])


def is_short(module: nn.Module) -> bool:
    """Whether the weight of a layer was wide when it was made."""
    return type(module) in _WIDE_CLASS


def widen(language_model: Any) -> None:
    """Hold shortened weights in float32 again: before adapters are merged into them, which bfloat16 would round.

    Args:
        language_model: a Hugging Face model, with or without adapters in it.
    """
    for layer in [module for module in language_model.modules() if is_short(module)]:
        layer.weight.data = layer.weight.data.float()
        layer.__class__ = _WIDE_CLASS[type(layer)]


@contextmanager
def shortened(language_model: Any) -> Iterator[None]:
    """Copies in bfloat16 in place of the weights of linear layers, for as long as the context is open.

    For many passes under autocast without a step between them, such as sampling. Nothing, without autocast.

    Args:
        language_model: a Hugging Face model, with or without adapters in it.
    """
    layers: list[Any] = [module for module in language_model.modules() if type(module) is nn.Linear]
    wide = [(layer, layer.weight) for layer in layers if _is_wide(layer.weight)]
    if not wide or not multiplies_shorter(wide[0][1].device):
        yield
        return
    for layer, weight in wide:
        layer._parameters["weight"] = nn.Parameter(weight.detach().bfloat16(), requires_grad=False)
    try:
        yield
    finally:
        for layer, weight in wide:
            layer._parameters["weight"] = weight


def _shorten(layers: list[tuple[Any, type[nn.Module]]]) -> None:
    """Shorten the weights of layers that lose nothing by it, and give these layers the class that knows of it."""
    for layer, kind in [(one, kind) for one, kind in layers if _is_wide(one.weight) and not one.weight.requires_grad]:
        weight = layer.weight.data
        # tied to one before it, it is short already; in parts, for a copy of all may not fit beside it on a small card
        if all(torch.equal(rows.bfloat16().to(weight.dtype), rows) for rows in weight.split(10_000)):
            layer.weight.data = weight.bfloat16()
            layer.__class__ = kind


def _is_wide(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and not isinstance(weight, DTensor)


class _ShortEmbedding(nn.Embedding):
    """An embedding in bfloat16 whose values come out as wide as they were."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).float()


class _ShortLinear(nn.Linear):
    """A linear layer in bfloat16 that computes as if it were as wide as it was."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        if not torch.is_autocast_enabled(input.device.type):
            weight = weight.to(input.dtype)
        return nn.functional.linear(input, weight, self.bias)


_WIDE_CLASS: dict[type[nn.Module], type[nn.Module]] = {_ShortEmbedding: nn.Embedding, _ShortLinear: nn.Linear}
