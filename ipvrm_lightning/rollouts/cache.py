"""The key-value cache of sampling: it grows in place, and it is what a model keeps what it has read in."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ipvrm_lightning.models.product_precision import multiplies_shorter


def growing_cache(config: Any, room: int) -> Any:
    """A dynamic key-value cache that makes room for more tokens ahead, instead of copying itself at each one.

    Args:
        config: of the model, which says what kind each layer is.
        room: tokens to make room for at a time.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    class GrowingLayer(DynamicLayer):
        """Keys and values are views of buffers with room at the end."""

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            if multiplies_shorter(key_states.device):  # else attention would round all of them again at every token
                key_states, value_states = key_states.bfloat16(), value_states.bfloat16()
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            self.keys = self._extend("_key_buffer", self.keys, key_states)
            self.values = self._extend("_value_buffer", self.values, value_states)
            return self.keys, self.values

        def _extend(self, name: str, held: Tensor | None, new: Tensor) -> Tensor:
            length = 0 if held is None or held.numel() == 0 else held.shape[-2]
            end = length + new.shape[-2]
            buffer = getattr(self, name, None)
            # The rows of a cache may have been selected since: then the buffer is no longer what `held` is a view of.
            if buffer is None or held is None or buffer.data_ptr() != held.data_ptr() or end > buffer.shape[-2]:
                buffer = new.new_empty(*new.shape[:-2], end + min(room, 64), new.shape[-1])
                if held is not None and length:
                    buffer[..., :length, :] = held
                setattr(self, name, buffer)
            buffer[..., length:end, :] = new
            return buffer[..., :end, :]

    cache = DynamicCache(config=config)
    # Layers of other kinds stay what they are: sliding windows and recurrent states have a size that does not grow, and
    # hybrid ones (attention and a recurrent state in one) copy themselves.
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = GrowingLayer
    return cache


def check_filled(cache: Any) -> None:
    """Refuse a cache that a model was given and has not used.

    Args:
        cache: after the model has read something.

    Raises:
        ValueError: layers of it are empty, so that what they should hold is elsewhere or nowhere.
    """
    attention = [layer.is_initialized for layer in cache.layers if _attends(layer)]
    others = [_has_state(layer) for layer in cache.layers if not _attends(layer)]
    # of the others, layers of experts alone have nothing to keep
    if not all(attention) or (others and not any(others)):
        raise ValueError("it does not keep what it has read in the cache that it is given")


def has_attention(cache: Any) -> bool:
    """Whether layers of a cache hold keys and values, rather than states alone (Mamba)."""
    return any(map(_attends, cache.layers))


def _attends(layer: Any) -> bool:
    return hasattr(layer, "is_initialized")


def _has_state(layer: Any) -> bool:
    values = [v for value in vars(layer).values() for v in (value.values() if isinstance(value, dict) else [value])]
    return any(isinstance(value, Tensor) for value in values)
