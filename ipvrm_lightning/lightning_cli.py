"""`IPVRMCLI`: LightningCLI with a folder per run, the newest checkpoint by name, and the results table."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from ipvrm_lightning.callbacks.predictions import PredictionFile
from ipvrm_lightning.callbacks.responses import ResponseFile
from ipvrm_lightning.callbacks.run_record import RunRecord
from ipvrm_lightning.callbacks.tables import ResultsTable
from ipvrm_lightning.config_checks import check_class_paths
from ipvrm_lightning.models.checkpoints import newest_checkpoint, read_checkpoint


class IPVRMCLI(LightningCLI):
    """Wires any LightningModule to any LightningDataModule by config.

    Each run writes to `<trainer.default_root_dir>/<time>-<command>`: config, CSV and TensorBoard logs, checkpoints,
    results. A `trainer.logger` in the config takes the place of those two loggers.
    """

    @classmethod
    def run(cls) -> IPVRMCLI:
        """Parse the process's arguments and run the command."""
        return cls(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults={
                "use_distributed_sampler": False,
                "callbacks": [RunRecord(), ResultsTable(), PredictionFile(), ResponseFile()],
            },
            save_config_kwargs={"overwrite": True},
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose errors are raised, for `cli.main` to tell them in one line."""
        return super().init_parser(**{**kwargs, "exit_on_error": False})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The command that was typed, or all of them: each costs half a second to prepare."""
        known = LightningCLI.subcommands()
        return {name: known[name] for name in sys.argv[1:2] if name in known} or known

    def before_instantiate_classes(self) -> None:
        """Give the run its folder; resolve `--ckpt_path last`."""
        command = str(self.subcommand)
        config = self.config[command]
        check_class_paths(config.clone().as_dict())
        root = Path(config.trainer.default_root_dir or "outputs")
        if config.get("ckpt_path") == "last":
            config.ckpt_path = str(newest_checkpoint(root, what="--ckpt_path last"))
        self._check_checkpoint(config)
        if config.trainer.logger in (None, True):
            run = os.environ.setdefault("IPVRM_RUN", _new_run_name(root, command))
            config.trainer.logger = [_logger(kind, root, run) for kind in ("CSVLogger", "TensorBoardLogger")]

    def instantiate_classes(self) -> None:
        """Build trainer, module and data module: their constructors take nothing but the config.

        Raises:
            ValueError: one of them cannot be built; says why.
        """
        try:
            super().instantiate_classes()
        except (TypeError, AttributeError, KeyError, RuntimeError) as error:
            raise ValueError(f"this config cannot be built: {error}") from error

    def _parse_ckpt_path(self) -> None:
        """Leave the config as it is: Lightning would let a checkpoint's hyper-parameters override it."""

    @staticmethod
    def _check_checkpoint(config: Namespace) -> None:
        """Refuse a checkpoint that cannot be loaded before anything is built, and pickles altogether."""
        if config.get("weights_only") is False:
            raise ValueError("weights_only: false would run whatever code a checkpoint holds; no checkpoint needs it")
        config.weights_only = True  # Lightning leaves it off for addresses
        if config.get("ckpt_path") and Path(config.ckpt_path).is_file():
            read_checkpoint(Path(config.ckpt_path), mmap=True)


def _new_run_name(root: Path, subcommand: str) -> str:
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{subcommand}"
    taken = len(list(root.glob(f"{name}*")))
    return f"{name}-{taken + 1}" if taken else name


def _logger(kind: str, root: Path, run: str) -> Namespace:
    arguments: dict[str, Any] = {"save_dir": str(root), "name": "", "version": run}
    return Namespace(class_path=f"lightning.pytorch.loggers.{kind}", init_args=Namespace(**arguments))
