"""From names to log-probabilities: loading, heads, references."""

from ipvrm_lightning.models.language_model import (
    LanguageModelFactory,
    LoRA,
    PretrainedLanguageModel,
    RandomLanguageModel,
)
from ipvrm_lightning.models.product_precision import widen
from ipvrm_lightning.models.reference import AdaptersOff, CachedReference, FrozenCopy, Reference

__all__ = [
    "AdaptersOff",
    "CachedReference",
    "FrozenCopy",
    "LanguageModelFactory",
    "LoRA",
    "PretrainedLanguageModel",
    "RandomLanguageModel",
    "Reference",
    "widen",
]
