"""Rollouts: sampled responses to prompts, and what says whether they are right.

Names are imported on first use: the verifier's workers are in this package and must not bring torch in.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipvrm_lightning.rollouts.endpoint import Endpoint
    from ipvrm_lightning.rollouts.sources import InProcess, Sampling
    from ipvrm_lightning.rollouts.store import RolloutStore
    from ipvrm_lightning.rollouts.verifiers import ExactMatch, MathVerifier, Submission, Verdict, Verifier

_HOME = {
    "Endpoint": "endpoint",
    "ExactMatch": "verifiers",
    "InProcess": "sources",
    "MathVerifier": "verifiers",
    "RolloutStore": "store",
    "Sampling": "sources",
    "Submission": "verifiers",
    "Verdict": "verifiers",
    "Verifier": "verifiers",
}

__all__ = [
    "Endpoint",
    "ExactMatch",
    "InProcess",
    "MathVerifier",
    "RolloutStore",
    "Sampling",
    "Submission",
    "Verdict",
    "Verifier",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
