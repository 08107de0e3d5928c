"""Data: files and hub data sets to batches of token ids."""

from __future__ import annotations

from ipvrm_lightning.data.batching import EvalLoader, WindowLoader
from ipvrm_lightning.data.chat import encode_example
from ipvrm_lightning.data.dataset import TrajectoryDataset, collate
from ipvrm_lightning.data.planning import WindowSampler
from ipvrm_lightning.data.processbench import ProcessBenchDataModule
from ipvrm_lightning.data.prompt_loading import PromptEvalLoader, PromptLoader, PromptStream
from ipvrm_lightning.data.prompts import PromptDataModule, PromptModule
from ipvrm_lightning.data.reading import read_rows
from ipvrm_lightning.data.rollouts import build_pairs
from ipvrm_lightning.data.schema import DataError
from ipvrm_lightning.data.steps import encode_steps
from ipvrm_lightning.data.tokenized import TokenizedDataModule
from ipvrm_lightning.data.trajectories import TrajectoryDataModule

__all__ = [
    "DataError",
    "EvalLoader",
    "ProcessBenchDataModule",
    "PromptDataModule",
    "PromptEvalLoader",
    "PromptLoader",
    "PromptModule",
    "PromptStream",
    "TokenizedDataModule",
    "TrajectoryDataModule",
    "TrajectoryDataset",
    "WindowLoader",
    "WindowSampler",
    "build_pairs",
    "collate",
    "encode_example",
    "encode_steps",
    "read_rows",
]
