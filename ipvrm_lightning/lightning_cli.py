"""`IPVRMCLI`: LightningCLI with a folder per run, the newest checkpoint by name, and the results table."""

from __future__ import annotations

import json
import os
import sys
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal

from jsonargparse import Namespace, set_parsing_settings
from jsonargparse.typing import NonNegativeInt
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from ipvrm_lightning.callbacks.optimizer_settings import OptimizerSettings
from ipvrm_lightning.callbacks.predictions import PredictionFile
from ipvrm_lightning.callbacks.random_state import RandomState
from ipvrm_lightning.callbacks.responses import ResponseFile
from ipvrm_lightning.callbacks.resume_point import ResumePoint
from ipvrm_lightning.callbacks.run_record import RunRecord
from ipvrm_lightning.callbacks.stop_signal import StopSignal
from ipvrm_lightning.callbacks.tables import ResultsTable
from ipvrm_lightning.callbacks.tokens import TokenFile
from ipvrm_lightning.callbacks.whole_epochs import WholeEpochs
from ipvrm_lightning.checkpoint_io import AtomicCheckpoints
from ipvrm_lightning.config_checks import (
    bound_values,
    carry_parts_over,
    check_class_paths,
    check_output_folder,
    describe_options,
    expand_home,
    read_counts_as_counts,
)
from ipvrm_lightning.config_keys import plain_name
from ipvrm_lightning.config_notes import config_notes
from ipvrm_lightning.failures import mistakes, names_full_disk
from ipvrm_lightning.loggers import loggers_of_run
from ipvrm_lightning.models.checkpoints import newest_checkpoint, newest_in, origin, read_checkpoint, run_of
from ipvrm_lightning.modules.distrl_settings import AdvantageSettings
from ipvrm_lightning.modules.schedule import Schedule
from ipvrm_lightning.run_folders import (
    changed_divisions,
    checkpoint_to_resume,
    config_fingerprint,
    hold,
    holds_training,
    logged_settings,
    new_run,
    similar_run,
    unfinished_run,
)
from ipvrm_lightning.strategies import accelerator_for, check_fit, check_trainer

# dataclasses, of which the parser takes no subclass unless it is told to
set_parsing_settings(subclasses_enabled=[AdvantageSettings, Schedule])

#: In place of what Lightning says of its own options, which offers checkpoints that no command here can find.
_HELP = {
    "ckpt_path": "checkpoint to load: its path, or `last` for the newest of all runs in trainer.default_root_dir",
    "weights_only": "always true: nothing pickled is loaded",
}
#: Methods of a module that commands need, one of them each.
_STEPS = {
    "fit": ("training_step",),
    "validate": ("validation_step",),
    "test": ("test_step",),
    "predict": ("predict_step", "forward"),
}


class _Prepared(Exception):
    def __init__(self, parsers: dict[str, LightningArgumentParser]) -> None:
        self.parsers = parsers


class IPVRMCLI(LightningCLI):
    """Wires any LightningModule to any LightningDataModule by config.

    Each run writes to `<trainer.default_root_dir>/<time>-<command>`: config, CSV and TensorBoard logs, checkpoints,
    results. A `trainer.logger` in the config takes the place of TensorBoard's; false leaves out the folder as well. A
    fit that was killed goes on when the same command is given again: its newest run with the same config that has not
    ended is continued in its folder, which one command at a time may write to.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Parse the arguments and run the command; where it has written nothing, its folder goes."""
        self._own_folder: Path | None = None
        self._resumed: Path | None = None
        try:
            super().__init__(*args, **kwargs)
        finally:
            if self._own_folder is not None:
                with suppress(OSError):  # it is not empty
                    self._own_folder.rmdir()

    @classmethod
    def run(cls) -> IPVRMCLI:
        """Parse the process's arguments and run the command."""
        bound_values()
        carry_parts_over()
        return cls(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults={
                "use_distributed_sampler": False,
                "callbacks": [
                    *(ResultsTable(), PredictionFile(), ResponseFile()),
                    *(RandomState(), OptimizerSettings(), WholeEpochs(), AtomicCheckpoints(), StopSignal()),
                ],
            },
            save_config_kwargs={"overwrite": True},
        )

    @classmethod
    def parsers(cls) -> dict[str, LightningArgumentParser]:
        """The parsers of all commands, without running one."""

        class Parsers(cls):  # type: ignore[misc, valid-type]
            def parse_arguments(self, *_: Any) -> None:
                raise _Prepared(self._subcommand_parsers)

        try:
            Parsers.run()
        except _Prepared as prepared:
            return prepared.parsers
        raise AssertionError("arguments were not parsed")

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose errors are raised, for `cli.main` to tell them in one line."""
        return super().init_parser(**{**kwargs, "exit_on_error": False})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The command that was typed, or all of them: each costs half a second to prepare."""
        known = LightningCLI.subcommands()
        return {name: known[name] for name in sys.argv[1:2] if name in known} or known

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        read_counts_as_counts(parser)
        describe_options(parser, _HELP)
        if subcommand == "fit":
            parser.add_argument(
                "--resume",
                type=Literal["auto", "never"],
                default="auto",
                help="go on with a run of the same config that has not ended, or never; --ckpt_path wins over both",
            )
            parser.add_argument(
                "--checkpoint_minutes",
                type=float,
                default=15.0,
                help="minutes between checkpoints to go on from, beside those that callbacks write",
            )
        if subcommand == "test":
            parser.add_argument(
                "--keep_tokens",
                type=NonNegativeInt,
                default=2_000_000,
                help="response tokens of judged solutions to keep, for `ipvrm report`; about 30 bytes each, 0 for none",
            )
        return parser

    def before_instantiate_classes(self) -> None:
        """Settle what configs leave open: the checkpoint, the run's folder, and the callbacks of the command."""
        command = str(self.subcommand)
        config = self.config[command]
        check_class_paths(config.clone().as_dict())
        expand_home(config)
        config.trainer.default_root_dir = config.trainer.default_root_dir or "outputs"  # not where the command is given
        # parsing has checked it: to do so again takes longer than all the rest of writing it
        values = json.loads(self._parser(command).dump(config, format="json", skip_validation=True))
        root, fingerprint = Path(config.trainer.default_root_dir), config_fingerprint(values)
        self._resumed = resumed = self._choose_checkpoint(config, root, values)
        change = None
        if resumed is not None and (changed := changed_divisions(run_of(resumed), values)):
            change = {"from": str(resumed), "was_and_is": changed}
            said = ", ".join(f"{plain_name(key)} {one} (was {other})" for key, (other, one) in changed.items())
            drawn = "by which a policy in half precision may draw other responses"
            rank_zero_info(f"Other than before, which changes no result but for rounding ({drawn}): {said}")
        check_output_folder(root)
        if config.trainer.logger is not False:
            known = os.environ.get("IPVRM_RUN") or (resumed and run_of(resumed).name)
            # for the processes that this one starts, too
            os.environ["IPVRM_RUN"] = run = known or self._new_run(root, command).name
            config.trainer.logger = loggers_of_run(root, run, resumed, config.trainer.logger)
        for note in config_notes(values) if command == "fit" else ():
            rank_zero_info(note)
        self.trainer_defaults["callbacks"] = [
            *self.trainer_defaults["callbacks"],
            RunRecord(config=fingerprint, settings=logged_settings(values), change=change),
            *self._callbacks_of_command(config, continues=resumed is not None),
        ]

    def _new_run(self, root: Path, command: str) -> Path:
        """A folder for a run; the first process says where all of them write."""
        if getattr(rank_zero_only, "rank", 0) != 0:
            return root / command
        self._own_folder = new_run(root, command)
        return self._own_folder

    def _choose_checkpoint(self, config: Namespace, root: Path, values: dict[str, Any]) -> Path | None:
        """Set `ckpt_path` where the command left it open, and refuse what cannot be loaded before anything is built.

        Args:
            config: of the command.
            root: folder of the runs.
            values: the config as plain values, as it was given.

        Returns:
            The checkpoint of a run that goes on in its own folder, None for a run of its own.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            ValueError: pickles are asked for, the checkpoint does not do, or the run is still going on.
        """
        if config.get("weights_only") is False:
            raise ValueError("weights_only: false would run whatever code a checkpoint holds; no checkpoint needs it")
        config.weights_only = True  # Lightning leaves it off for addresses
        if config.get("ckpt_path") == "last":
            config.ckpt_path = str(newest_checkpoint(root, what="--ckpt_path last"))
        _check_given(config.get("ckpt_path"), root)
        trains, resumed = self.subcommand == "fit", None
        if trains and config.trainer.logger is False and not config.trainer.fast_dev_run:
            rank_zero_info("trainer.logger: false: the run has no folder of its own, and to go on it needs --ckpt_path")
        elif trains and not (config.trainer.fast_dev_run or config.get("ckpt_path") or config.resume == "never"):
            resumed = _checkpoint_to_resume(root, values)
            config.ckpt_path = None if resumed is None else str(resumed)
        path = Path(config.get("ckpt_path") or "")
        if path.is_file():
            stored = read_checkpoint(path, mmap=True)
            if trains and not holds_training(path):
                raise ValueError(f"{path} holds weights alone (save_weights_only): training cannot go on from it")
            rank_zero_info(f"Checkpoint: {origin(path, stored)}")
        return resumed

    def _callbacks_of_command(self, config: Namespace, *, continues: bool) -> list[Callback]:
        """Of a fit: checkpoints by the clock, and at the end where the config asks for none. Of a test: its tokens."""
        if self.subcommand == "test" and config.keep_tokens:
            return [TokenFile(max_tokens=config.keep_tokens)]
        if self.subcommand != "fit" or config.trainer.enable_checkpointing is False:
            return []
        chosen = config.trainer.callbacks or []
        kinds = [resolve_name(one.class_path) for one in (chosen if isinstance(chosen, list) else [chosen])]
        asked = any(issubclass(kind, ModelCheckpoint) for kind in kinds)
        by_clock = ResumePoint(minutes=config.checkpoint_minutes, continues=continues)
        return [by_clock, *([] if asked else [ModelCheckpoint(save_last=True)])]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer, unless its settings and the module cannot work together."""
        settings = self._get(self.config_init, "trainer")
        _check_command(str(self.subcommand), self.model)
        check_trainer(settings, self.model)
        check_fit(settings.strategy, self.model)
        if self._resumed is not None:
            # the run keeps what was given: a config with this checkpoint would make other runs begin where it went on
            self.config[self.subcommand].ckpt_path = None
        return super().instantiate_trainer(accelerator=accelerator_for(self.model, settings.accelerator), **kwargs)

    def instantiate_classes(self) -> None:
        """Build trainer, module and data module: their constructors take nothing but the config.

        Raises:
            ValueError: one of them cannot be built; says why.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:  # of a constructor, within what the parser says of each type it has tried
            raise ValueError(mistakes(str(error))) from error
        except (TypeError, AttributeError, KeyError, RuntimeError, ImportError) as error:
            raise ValueError(f"this config cannot be built: {error}") from error

    def _dump_config(self) -> None:
        """Write the config as modules keep it among their hyper-parameters, without a check like that of parsing it."""
        self.parser.dump = partial(self.parser.dump, skip_validation=True)
        try:
            super()._dump_config()
        finally:
            del self.parser.dump

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the command, and say where it is of a model that was not trained; a disk that is full is named."""
        trainable = getattr(getattr(self.model, "objective", None), "trainable", True)
        if subcommand != "fit" and trainable and not self._get(self.config, "ckpt_path"):
            what = "policy" if hasattr(self.model, "evaluation") else "model"
            rank_zero_info(f"This is the {what} as it starts. The newest checkpoint: --ckpt_path last")
        try:
            with names_full_disk(self._get(self.config, "trainer.default_root_dir")):
                super()._run_subcommand(subcommand)
        except BaseException:
            _end_started_processes(self.trainer)
            raise

    def _parse_ckpt_path(self) -> None:
        """Leave the config as it is: Lightning would let a checkpoint's hyper-parameters override it."""


def _check_given(path: Any, root: Path) -> None:
    """Refuse a checkpoint that is not there now, or a folder of some: Lightning does once data and model are loaded.

    Args:
        path: as given; an address is left to Lightning.
        root: folder of the runs.

    Raises:
        FileNotFoundError: there is none, or no name, as of a variable of the shell that is not set.
        IsADirectoryError: names the newest in it.
    """
    if path is None or "://" in str(path):
        return
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"--ckpt_path {path or repr(path)}: no such checkpoint; give the path of one (a run's best lies beside its"
            f" last.ckpt), or last for the newest of all runs in {root}"
        )
    if (newest := newest_in(Path(path))) is not None:  # one that is itself a folder, of shards, holds none
        raise IsADirectoryError(f"--ckpt_path {path}: is a folder; give a checkpoint in it, the newest is {newest}")


def _check_command(command: str, module: LightningModule) -> None:
    """Refuse a command that the module has no step for, before data and model are loaded.

    Raises:
        ValueError: names the commands that it has steps for.
    """
    if any(is_overridden(step, module) for step in _STEPS[command]):
        return
    known = [name for name, steps in _STEPS.items() if any(is_overridden(step, module) for step in steps)]
    raise ValueError(f"{type(module).__name__} has no step for `ipvrm {command}`, only for {', '.join(known)}")


def _checkpoint_to_resume(root: Path, values: dict[str, Any]) -> Path | None:
    """Where a run with this config goes on that has not ended, None where a new one starts.

    Raises:
        ValueError: it is still going on, or has saved a folder of shards.
    """
    run = unfinished_run(root, config_fingerprint(values))
    if run is None:
        _name_similar_run(root, values)
        return None
    hold(run, "look").close()
    found = checkpoint_to_resume(run)
    if found is not None and found.is_dir():
        raise ValueError(
            f"{run} has not ended, and its logs cannot go on from a folder of shards: go on in a new folder with"
            f" --ckpt_path {found}, or start anew with --resume never"
        )
    if found is not None:
        rank_zero_info(f"This run has not ended: going on from {found}. A new one: --resume never")
        # said of the run's own folders, in which nothing is deleted
        warnings.filterwarnings("ignore", message=r"(Experiment logs|Checkpoint) directory .* is not empty")
    elif newest_in(run / "checkpoints") is not None:
        rank_zero_info(f"{run} has not ended, but its checkpoints hold weights alone (save_weights_only): a new run")
    return found


def _name_similar_run(root: Path, values: dict[str, Any]) -> None:
    """Say how to go on with a run that has stopped, and that this one may have been meant to be."""
    if (found := similar_run(root, values)) is None:
        return
    run, keys = found
    try:
        hold(run, "look").close()
        checkpoint = checkpoint_to_resume(run)
    except (ValueError, OSError):  # it is still going on, or is broken, which is no reason to refuse this one
        return
    if checkpoint is not None:
        # of no key, and yet another fingerprint
        unknown = "trainer.logger, or was started by another version of ipvrm_lightning"
        rank_zero_info(
            f"{run} has not ended and differs in {', '.join(map(plain_name, keys)) or unknown}: this is a new run."
            f" To go on from that one: --ckpt_path {checkpoint}"
        )


def _end_started_processes(trainer: Trainer) -> None:
    """End the processes that Lightning has started on this machine, which would wait for this one for ever."""
    started: list[Any] = getattr(trainer.strategy.launcher, "procs", [])
    for process in started:
        process.kill()
    for process in started:
        process.join() if hasattr(process, "join") else process.wait()  # of multiprocessing, of subprocess
    started.clear()  # else Lightning, which watches them, ends this process before it has said what failed
