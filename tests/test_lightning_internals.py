"""What is relied upon in Lightning without a promise that it stays: where to look first when a new version comes.

Most of it is set rather than read. Setting a name that is gone fails nowhere: a run would hang, or go on from another
step. What the parts do is tested where they are used, in `callbacks`, `strategies`, `test_resume` and `test_runs`.
"""

from __future__ import annotations

import ast
import inspect
import re
import signal

import pytest
from lightning import __version__
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher, _SubprocessScriptLauncher
from lightning.pytorch.trainer.call import _call_and_handle_interrupt
from lightning.pytorch.trainer.connectors.logger_connector import _LoggerConnector
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from .test_architecture import PACKAGE

#: Class, file that relies on it, what for, names.
RELIED_ON: list[tuple[type, str, str, str]] = [
    (Trainer, "callbacks/stop_signal.py", "leads to the handler of SIGTERM", "_signal_connector"),
    (_SignalConnector, "callbacks/stop_signal.py", "set: our handler, without Lightning's", "_sigterm_notifier_fn"),
    (_SignalConnector, "callbacks/stop_signal.py", "set: loops end after what is going on", "received_sigterm"),
    (_SubprocessScriptLauncher, "callbacks/stop_signal.py", "passes the signal on", "kill"),
    (_MultiProcessingLauncher, "callbacks/stop_signal.py", "passes the signal on", "kill"),
    (_SubprocessScriptLauncher, "lightning_cli.py", "are ended where a run fails, and the list emptied", "procs"),
    (_MultiProcessingLauncher, "lightning_cli.py", "are ended where a run fails, and the list emptied", "procs"),
    (_FitLoop, "callbacks/resume_point.py", "says whether a validation follows", "_data_fetcher"),
    (_TrainingEpochLoop, "callbacks/resume_point.py", "the same", "batch_progress _should_check_val_fx"),
    (_TrainingEpochLoop, "callbacks/resume_point.py", "the step that loggers are told", "_batches_that_stepped"),
    (Trainer, "callbacks/resume_point.py", "leads to what a step has yet to log", "_logger_connector"),
    (_LoggerConnector, "callbacks/resume_point.py", "what a step has yet to log", "metrics"),
    (ModelCheckpoint, "callbacks/resume_point.py", "set: a run's own files written over", "_enable_version_counter"),
    (ModelCheckpoint, "callbacks/resume_point.py", "whether last.ckpt is the last", "_last_global_step_saved"),
    (ModelCheckpoint, "callbacks/resume_point.py", "set: no second one", "_last_checkpoint_saved last_model_path"),
    (_FitLoop, "callbacks/whole_epochs.py", "whether an epoch is over", "epoch_progress epoch_loop"),
    (_TrainingEpochLoop, "callbacks/whole_epochs.py", "the same by its data", "_num_ready_batches_reached"),
    (_FitLoop, "callbacks/whole_epochs.py", "where a checkpoint was saved", "restarted_on_epoch_end"),
    (_TrainingEpochLoop, "callbacks/whole_epochs.py", "the same", "restarted_on_train_batch_end"),
    (_FitLoop, "callbacks/whole_epochs.py", "begins the next epoch", "reset_restart_stage"),
    (_Loop, "callbacks/whole_epochs.py", "set: the next epoch is no restart", "restarting _restarting"),
    (LightningOptimizer, "modules/distrl.py", "set: not counted as a step", "_on_before_step _on_after_step"),
    (WeightAveraging, "modules/averages.py", "leads to how weights are averaged", "_average_model"),
    (LightningModule, "modules/policy.py", "whether there is a trainer", "_trainer"),
    (ModelParallelStrategy, "strategies.py", "set: FSDP2", "_data_parallel_size _tensor_parallel_size"),
    (_TrainingEpochLoop, "strategies.py", "leads to validation within a fit", "val_loop"),
    (_EvaluationLoop, "strategies.py", "set: weights are gathered as those in training", "inference_mode"),
    (CSVLogger, "loggers.py", "set: a writer with the run's earlier rows", "_experiment"),
    (ExperimentWriter, "loggers.py", "overridden: a new column leaves the file whole", "_rewrite_with_new_header"),
    (ExperimentWriter, "loggers.py", "set: a run's earlier rows", "metrics save"),
    (LightningCLI, "lightning_cli.py", "overridden: options of our own", "_prepare_subcommand_parser"),
    (LightningCLI, "lightning_cli.py", "overridden: failures", "_run_subcommand"),
    (LightningCLI, "lightning_cli.py", "overridden: checkpoints settle no config", "_parse_ckpt_path"),
    (LightningCLI, "lightning_cli.py", "overridden: the config is checked once", "_dump_config"),
    (LightningCLI, "lightning_cli.py", "parsers and their values", "_parser _get _subcommand_parsers"),
]

#: Of torch and Python in files that import Lightning.
OF_OTHERS = {"_last_lr", "_asdict"}


@pytest.mark.parametrize(("owner", "file", "why", "names"), RELIED_ON)
def test_lightning_has_what_is_relied_upon(owner: type, file: str, why: str, names: str) -> None:
    source = "\n".join(inspect.getsource(kind) for kind in owner.__mro__ if kind.__module__.startswith("lightning."))
    text = (PACKAGE / file).read_text(encoding="utf-8")
    for name in names.split():
        assert re.search(rf"(self\.|def ){name}\b", source), (
            f"Lightning {__version__}: {owner.__name__} has no {name} any more, on which {file} relies: {why}"
        )
        assert re.search(rf"\b{name}\b", text), f"{file} does not rely on {name} any more: leave it out here"


def test_counts_lie_in_checkpoints_where_they_are_corrected() -> None:
    state = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True).fit_loop.state_dict()
    for progress in ("epoch_progress", "epoch_loop.batch_progress"):
        for count in ("total", "current"):
            assert {"processed", "completed"} <= state[progress][count].keys()
    assert "_batches_that_stepped" in state["epoch_loop.state_dict"]


def test_an_exit_on_ctrl_c_can_be_told_from_others() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as ended:
            _call_and_handle_interrupt(Trainer(accelerator="cpu", logger=False), interrupted)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert isinstance(ended.value.__context__, KeyboardInterrupt)  # `cli.main` looks at it


def test_every_private_part_is_named_here() -> None:
    named = {name for *_, names in RELIED_ON for name in names.split()} | OF_OTHERS
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if not re.search(r"^from lightning\b", text, re.MULTILINE):
            continue
        for node in ast.walk(ast.parse(text)):
            own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
            if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr) and not own:
                assert node.attr in named, f"{file}, line {node.lineno}: {node.attr} is not named in RELIED_ON"
