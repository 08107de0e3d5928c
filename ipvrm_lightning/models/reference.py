"""Where the reference log-probabilities come from: adapters off, a frozen copy, or values kept on disk.

A reference that is not what one thinks gives wrong numbers in silence, so each class refuses the models it does not
fit, and what is kept on disk is found again only by the content of the sequence and the weights that gave it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
import warnings
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ipvrm_lightning.models.language_model import LanguageModelFactory
from ipvrm_lightning.models.logprobs import response_mask, response_scores
from ipvrm_lightning.models.output_head import DEFAULT_CHUNK_SIZE, base_language_model
from ipvrm_lightning.models.packing import packs
from ipvrm_lightning.models.preparation import is_compiled
from ipvrm_lightning.models.product_precision import multiplies_shorter, shorten_frozen
from ipvrm_lightning.models.sharding import any_process, whole
from ipvrm_lightning.permissions import follow_umask
from ipvrm_lightning.types import TrajectoryBatch

SEQUENCES_PER_FILE = 256


class Reference(ABC):
    """Log-probabilities of the response tokens under the model that training started from."""

    def check(self, factory: LanguageModelFactory) -> None:  # noqa: B027 - a reference of one's own may fit anything
        """Refuse a language model that this reference does not fit, before it is loaded.

        Raises:
            ValueError: says what fits.
        """

    @abstractmethod
    def setup(self, factory: LanguageModelFactory, model: nn.Module) -> None:
        """Bind to the model in training, before its first update.

        Args:
            factory: builds the starting point again.
            model: the model in training.

        Raises:
            ValueError: this reference does not fit that model.
        """

    @abstractmethod
    def log_probs(self, batch: TrajectoryBatch, *, chunk_size: int = DEFAULT_CHUNK_SIZE) -> Tensor:
        """Reference log-probabilities, 0 at padding, [B, T], without gradient."""

    def release(self) -> None:  # noqa: B027 - most references hold nothing
        """Give back memory that is not needed before the next call that needs it."""


class AdaptersOff(Reference):
    """The same weights with the adapters switched off: exact, no second model in memory, also on 4-bit weights."""

    def check(self, factory: LanguageModelFactory) -> None:
        """Refuse a language model without adapters.

        Raises:
            ValueError: says what fits.
        """
        if not factory.has_adapters:
            raise ValueError(
                "reference AdaptersOff needs a language model with lora;"
                " for full fine-tuning use FrozenCopy or CachedReference"
            )

    def setup(self, factory: LanguageModelFactory, model: nn.Module) -> None:
        """Bind to a model with adapters.

        Raises:
            ValueError: the model has no adapters.
        """
        self.check(factory)
        self._model = [model]

    @torch.no_grad()
    def log_probs(self, batch: TrajectoryBatch, *, chunk_size: int = DEFAULT_CHUNK_SIZE) -> Tensor:
        """Reference log-probabilities, [B, T]."""
        model: Any = self._model[0]
        was_training = model.training
        model.eval()
        try:
            with model.disable_adapter():
                return response_scores(model, batch, chunk_size=chunk_size).log_probs
        finally:
            model.train(was_training)


class FrozenCopy(Reference):
    """A second, frozen copy of the starting point, for full fine-tuning. Loaded on first use, again after `release`."""

    def check(self, factory: LanguageModelFactory) -> None:
        """Refuse a language model with adapters: a copy would waste memory and could differ from its base.

        Raises:
            ValueError: says what fits.
        """
        if factory.has_adapters:
            raise ValueError("reference FrozenCopy is for full fine-tuning; with lora use AdaptersOff")

    def setup(self, factory: LanguageModelFactory, model: nn.Module) -> None:
        """Remember how to build the copy.

        Raises:
            ValueError: the model has adapters.
        """
        self.check(factory)
        self._factory = factory
        self._base = base_fingerprint(model)
        self._copy: list[nn.Module] = []

    @torch.no_grad()
    def log_probs(self, batch: TrajectoryBatch, *, chunk_size: int = DEFAULT_CHUNK_SIZE) -> Tensor:
        """Reference log-probabilities, [B, T].

        Raises:
            ValueError: what the copy is loaded from holds other weights by now.
        """
        if not self._copy:
            copy: Any = self._factory.build_model().requires_grad_(False).eval()
            if base_fingerprint(copy) != self._base:
                raise ValueError(
                    f"{getattr(self._factory, 'name', 'the language model')}: its weights are not those that training"
                    " started from any more, so that log-ratios to them would mean something else"
                )
            if multiplies_shorter(batch.input_ids.device):
                shorten_frozen(copy)
            self._copy = [copy.to(batch.input_ids.device)]
        return response_scores(self._copy[0], batch, chunk_size=chunk_size).log_probs

    def release(self) -> None:
        """Drop the copy."""
        self._copy = []


def default_reference(factory: LanguageModelFactory) -> AdaptersOff | FrozenCopy:
    """The reference that fits a language model: its own weights with adapters off, else a copy."""
    return AdaptersOff() if factory.has_adapters else FrozenCopy()


class CachedReference(Reference):
    """Values of another reference, computed once and kept on disk.

    A sequence is found by a hash of its token ids, of where its response starts and of the autocast precision, in a
    folder named after a hash of the starting weights and their precision, and after what rounds otherwise: packed
    sequences and compiled blocks. Tokenizer, template and data reach the values
    only through the token ids, so a changed one misses the cache and nothing stale can be used. Missing sequences are
    computed by `source`.

    Args:
        source: gives values that are not yet kept; None for `AdaptersOff` with LoRA and `FrozenCopy` without.
        cache_dir: folder of the values, shared by any number of runs.
    """

    def __init__(
        self, *, source: AdaptersOff | FrozenCopy | None = None, cache_dir: str = "outputs/reference_cache"
    ) -> None:
        self.source, self.cache_dir = source, cache_dir

    def check(self, factory: LanguageModelFactory) -> None:
        """Refuse a language model that the source does not fit.

        Raises:
            ValueError: says what fits.
        """
        if self.source is not None:
            self.source.check(factory)

    def setup(self, factory: LanguageModelFactory, model: nn.Module) -> None:
        """Bind the source and read what is kept for these starting weights; adapters do not count."""
        self._source = self.source or default_reference(factory)
        self._source.setup(factory, model)
        self._factory = factory
        self._folder = Path(self.cache_dir) / f"{weights_fingerprint(model)}{_kernels(model)}"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._values: dict[bytes, Tensor] = {}
        self._unsaved: dict[bytes, Tensor] = {}
        _remove_leftovers(self._folder)
        self.read()

    def read(self) -> None:
        """Read what is kept, by this process or another."""
        for file in sorted(self._folder.glob("*.safetensors")):
            self._values.update(_read_values(file))

    def log_probs(self, batch: TrajectoryBatch, *, chunk_size: int = DEFAULT_CHUNK_SIZE) -> Tensor:
        """Reference log-probabilities, [B, T]."""
        keys = sequence_keys(batch)
        # a sharded source computes on all processes or on none
        if any_process(any(key not in self._values for key in keys), self._factory):
            computed = self._source.log_probs(batch, chunk_size=chunk_size).float().cpu()
            for key, row, length in zip(keys, computed, batch.response_lengths.tolist(), strict=True):
                self._unsaved[key] = self._values[key] = row[:length].clone()
            if len(self._unsaved) >= SEQUENCES_PER_FILE:
                self._save()
        mask = response_mask(batch)
        out = torch.zeros(mask.shape, dtype=torch.float32)
        for row, key in enumerate(keys):
            values = self._values[key]
            out[row, : values.numel()] = values
        return out.to(batch.input_ids.device)

    def release(self) -> None:
        """Write new values to disk and free the source."""
        self._save()
        self._source.release()

    def _save(self) -> None:
        if self._unsaved:
            _write_values(self._folder, self._unsaved)
            self._unsaved = {}


def sequence_keys(batch: TrajectoryBatch) -> list[bytes]:
    """A key per row from its token ids, its response's start and the autocast precision; padding does not enter."""
    device = batch.input_ids.device.type
    precision = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else ""
    keys = []
    rows = zip(batch.input_ids.cpu(), batch.lengths.tolist(), batch.response_starts.tolist(), strict=True)
    for ids, length, start in rows:
        digest = hashlib.blake2b(ids[:length].to(torch.int64).numpy().tobytes(), digest_size=16)
        digest.update(start.to_bytes(8, "little") + precision.encode())
        keys.append(digest.digest())
    return keys


def weights_fingerprint(model: nn.Module, *, with_config: bool = True) -> str:
    """A hash of the names, precisions and values of a model's weights and of its config; adapters do not enter.

    Args:
        model: with or without adapters.
        with_config: the config's fields enter; other versions of transformers may write others.
    """
    digest = hashlib.blake2b(digest_size=12)
    for name, tensor in sorted(_bare_weights(model)):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(whole(tensor.detach()).cpu().reshape(-1).view(torch.uint8).numpy().data)
    config = getattr(model, "config", None)
    if with_config and config is not None:
        fields = {
            k: v for k, v in config.to_dict().items() if k not in {"_name_or_path", "use_cache", "transformers_version"}
        }
        digest.update(repr(sorted(fields.items(), key=str)).encode())
    return digest.hexdigest()


def base_fingerprint(model: nn.Module) -> str | None:
    """A hash of a few numbers of each weight: tells models apart at once, in whichever precision they were loaded.

    None for weights in 4 bits, which are not the same on every machine. Adapters do not enter.
    """
    digest = hashlib.blake2b(digest_size=12)
    for name, tensor in sorted(_bare_weights(model)):
        if not tensor.is_floating_point():
            return None
        few = whole(tensor.detach()).reshape(-1)[:64].to("cpu", torch.bfloat16)
        digest.update(name.encode() + few.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _kernels(model: nn.Module) -> str:
    language_model = base_language_model(model)
    return "-varlen" * packs(language_model) + "-compiled" * is_compiled(language_model)


def _bare_weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    named = []
    for name, tensor in model.state_dict().items():
        if ".lora_" in name or not isinstance(tensor, Tensor):
            continue
        # fused experts are wrapped once for each of their weights, hence any number of base layers
        parts = name.removeprefix("base_model.model.").split(".")
        named.append((".".join(part for part in parts if part != "base_layer"), tensor))
    return named


def _write_values(folder: Path, values: dict[bytes, Tensor]) -> None:
    from safetensors.torch import save

    handle, name = tempfile.mkstemp(dir=folder, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(save({key.hex(): value for key, value in values.items()}))
            file.flush()
            os.fsync(file.fileno())
        follow_umask(name)
        os.replace(name, folder / f"{hashlib.blake2b(b''.join(sorted(values)), digest_size=8).hexdigest()}.safetensors")
    except BaseException:
        os.unlink(name)
        raise


def _remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed have left; a younger one may be about to finish."""
    for part in folder.glob("*.part"):
        with suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime > 3600:
                part.unlink()


def _read_values(file: Path) -> dict[bytes, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {bytes.fromhex(key): value for key, value in load_file(file).items()}
    except (SafetensorError, ValueError) as error:
        warnings.warn(f"{file}: broken, and may be removed; its values are computed again ({error})", stacklevel=2)
        return {}
