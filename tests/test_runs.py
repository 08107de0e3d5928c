"""Folders of runs by the command line: who may write to them, and what they hold whatever the logger."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers.logger import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from ipvrm_lightning.callbacks.run_record import RunRecord
from ipvrm_lightning.cli import main
from ipvrm_lightning.exporting.source import find_run
from ipvrm_lightning.loggers import loggers_of_run
from ipvrm_lightning.models.checkpoints import newest_checkpoint, newest_in
from ipvrm_lightning.modules import DistRLModule
from ipvrm_lightning.modules.distrl_settings import Collecting, PolicyUpdate
from ipvrm_lightning.run_folders import (
    checkpoint_to_resume,
    config_fingerprint,
    hold,
    logged_settings,
    new_run,
    similar_run,
    unfinished_run,
    write_record,
)

from .conftest import REPOSITORY
from .processes import Started
from .test_cli import real_inputs, tiny_overlay  # noqa: F401

Command = Callable[..., None]


class ServiceLogger(Logger):
    """As loggers of services: a folder, a project and a run, and no `log_dir`."""

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.folder = save_dir

    save_dir = property(lambda self: self.folder)
    name = property(lambda self: "project")
    version = property(lambda self: "abc123")

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        pass

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


@pytest.fixture
def command(tmp_path: Path, real_inputs: dict[str, str]) -> Command:  # noqa: F811
    """Runs a command for two steps on a tiny model, with values of the trainer's part of the config."""

    def run(name: str, *options: str, **trainer: Any) -> None:
        (tmp_path / "more.yaml").write_text(yaml.safe_dump({"trainer": {"max_steps": 2, **trainer}}))
        main(
            [
                *(name, "--config", str(REPOSITORY / "configs" / "ipvrm_smollm2.yaml")),
                *("--config", tiny_overlay(tmp_path, real_inputs, "ipvrm_smollm2.yaml")),
                *("--config", str(tmp_path / "more.yaml"), "--data.train", real_inputs["rollouts"]),
                *("--model.init_args.reference.init_args.cache_dir", str(tmp_path / "cache"), *options),
            ]
        )

    return run


def test_a_run_is_whole_whatever_the_logger_and_belongs_to_one_process(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = {"class_path": "tests.test_runs.ServiceLogger", "init_args": {"save_dir": str(tmp_path / "service")}}
    # no checkpoint of a run that goes well
    failures = {"class_path": "OnExceptionCheckpoint", "init_args": {"dirpath": str(tmp_path / "failures")}}
    options: dict[str, Any] = {"logger": logger, "callbacks": [failures]}
    command("fit", **options)
    (run,) = tmp_path.glob("*-fit")
    assert {"config.yaml", "run.json", "metrics.csv"} <= {path.name for path in run.iterdir()}
    assert newest_checkpoint(tmp_path, what="test") == find_run(run).checkpoint == run / "checkpoints" / "last.ckpt"
    assert not list(tmp_path.glob("service/**/*.ckpt"))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "ended": None}))
    # a worker may outlive its parent by a while, as those of a loader do
    script = (
        "import os, sys, time; from pathlib import Path; from ipvrm_lightning.run_folders import hold\n"
        "file = hold(Path(sys.argv[1]))\n"
        "print(os.getpid() if os.fork() else '', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(run)], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline()
        with pytest.raises(SystemExit):
            command("fit", **options)
        assert f"{run}: this run is still going on in another process; --resume never" in capsys.readouterr().err
        holder.kill()
        holder.wait()
        command("fit", **options)
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
    assert json.loads((run / "run.json").read_text())["ended"] and list(tmp_path.glob("*-fit")) == [run]


class Notifier(Callback):
    """Of one's own, with a key to a service."""

    def __init__(self, api_key: str, channel: str) -> None:
        super().__init__()


def test_loggers_are_told_the_config_and_no_secret(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("ipvrm_lightning.lightning_cli.rank_zero_info", said.append)
    told = {"class_path": f"{__name__}.Notifier", "init_args": {"api_key": "hunter2", "channel": "runs"}}
    options: dict[str, Any] = {"callbacks": [told]}
    command("fit", "--model.optimizer.lr", "0.003", **options)
    assert [line.partition(" ")[0] for line in said] == ["objective", "optimizer"]
    (run,) = tmp_path.glob("*-fit")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "ended": None}))
    command("fit", "--model.optimizer.lr", "0.003", **options)  # goes on
    assert list(tmp_path.glob("*-fit")) == [run]
    text = (run / "hparams.yaml").read_text()
    settings = yaml.safe_load(text)
    assert "hunter2" in (run / "config.yaml").read_text() and "hunter2" not in text
    assert settings.keys() == {"seed_everything", "model", "data", "trainer"} and "logger" not in settings["trainer"]
    assert settings["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.003
    assert settings["trainer"]["callbacks"][0]["init_args"] == {"channel": "runs"}
    board = EventAccumulator(str(run)).Reload()
    start = HParamsPluginData.FromString(board.PluginTagToContent("hparams")["_hparams_/session_start_info"])
    told_board = start.session_start_info.hparams
    assert told_board["model/init_args/optimizer/init_args/lr"].number_value == 0.003
    assert told_board["data/init_args/train"].string_value.endswith("rollouts.jsonl")


def test_names_say_what_is_a_secret() -> None:
    kept = {"max_tokens": 5, "tokenizer": "t", "pad_token_id": 0, "key": "metric", "passwords_file": "f"}
    names = ("token", "hf_token", "api_key", "APIKEY", "secret_key", "client_secret", "db_password")
    secret = dict.fromkeys(names, "hunter2")
    told = logged_settings({"model": [{**kept, **secret}], "ckpt_path": "last", "trainer": {"logger": kept}, **secret})
    assert told == {"model": [kept], "trainer": {}}


def test_the_newest_run_of_a_config_goes_on_unless_it_has_ended(tmp_path: Path) -> None:
    config = {"data": {"a": 1, "b": 2}, "resume": "auto", "ckpt_path": None}
    first, second = config_fingerprint(config), config_fingerprint({"data": {"a": 1, "b": 3}})
    assert first != second
    assert first == config_fingerprint({"ckpt_path": "last", "data": {"b": 2, "a": 1}, "resume": "never"})
    records = [(first, None), (first, "2026"), (second, "2026"), (second, None)]
    for number, (fingerprint, ended) in enumerate(records):
        (tmp_path / f"{number}-fit").mkdir()
        write_record(tmp_path / f"{number}-fit", {"config": fingerprint})
        write_record(tmp_path / f"{number}-fit", {"ended": ended})
    for number, broken in enumerate(("{", "[]"), len(records)):
        (tmp_path / f"{number}-fit").mkdir()
        (tmp_path / f"{number}-fit" / "run.json").write_text(broken)
    found = [unfinished_run(tmp_path, fingerprint) for fingerprint in (first, second, "another")]
    assert found == [None, tmp_path / "3-fit", None]


def test_the_newest_run_is_the_one_that_began_last_whatever_its_clock_showed(tmp_path: Path) -> None:
    """A container has UTC, its host another time; in autumn an hour comes twice."""
    records = [("20261025-090000-fit", "00:00", "yes"), ("20261025-020000-fit", "02:00", None)]
    for name, hour, ended in records:
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("{a: 1}")
        write_record(tmp_path / name, {"config": "same", "time": f"2026-10-25T{hour}:00+00:00", "ended": ended})
    newest = tmp_path / records[1][0]
    assert unfinished_run(tmp_path, "same") == newest
    assert similar_run(tmp_path, {"a": 2}) == (newest, ["a"])


def test_what_only_divides_the_work_makes_no_other_run() -> None:
    def config(module: str, **changes: Any) -> dict[str, Any]:
        arguments = {"language_model": {"class_path": "any.Factory"}, "collecting": {}, "update": {}}
        whole: dict[str, Any] = {
            "model": {"class_path": f"ipvrm_lightning.modules.{module}", "init_args": arguments},
            "data": {"class_path": "ipvrm_lightning.data.TrajectoryDataModule", "init_args": {}},
        }
        verifier = {"class_path": "ipvrm_lightning.rollouts.MathVerifier", "init_args": {}}
        whole["model"]["init_args"]["verifier"] = verifier
        for key, value in changes.items():
            *path, last = key.replace("init__args", "init_args").split("__")
            part = whole
            for one in path:
                part = part.setdefault(one, {})
            part[last] = value
        return whole

    def same(module: str, key: str, **both: Any) -> bool:
        one, other = (config_fingerprint(config(module, **{key: value}, **both)) for value in (1, 2))
        return one == other

    model, data = "model__init_args__", "data__init_args__"
    for key in ("chunk_size", "language_model__init_args__gradient_checkpointing"):
        assert all(same(module, model + key) for module in ("IPVRMModule", "SFTModule", "DistRLModule"))
    for key in ("eval_batch_size", "collecting__batch_size", "update__max_tokens", "verifier__init_args__workers"):
        assert same("DistRLModule", model + key)
    assert same("IPVRMModule", f"{data}max_tokens") and same("IPVRMModule", f"{data}num_workers")
    assert same("DistRLModule", f"{data}eval_batch_size", data__class_path="ipvrm_lightning.data.PromptDataModule")
    for key in ("update__mini_batches", "collecting__oversampling", "verifier__init_args__time_limit"):
        assert not same("DistRLModule", model + key)
    assert not same("IPVRMModule", f"{data}batch_size") and not same("IPVRMModule", "trainer__devices")
    # of a class that does not say so, an argument may mean anything
    assert not same("IPVRMModule", f"{data}max_tokens", data__class_path="lightning.LightningDataModule")
    # a part of a validation is so many of its batches
    for limit in (2, 1, 0, 0.5):
        assert not same("IPVRMModule", f"{data}max_tokens", trainer__limit_val_batches=limit)
    assert same("IPVRMModule", f"{data}max_tokens", trainer__limit_val_batches=1.0)
    assert not same("IPVRMModule", f"{data}max_tokens", trainer__overfit_batches=2)
    assert same("IPVRMModule", f"{data}num_workers", trainer__limit_val_batches=2)
    assert same("DistRLModule", f"{model}update__max_tokens", trainer__limit_val_batches=2)


def test_a_config_holds_the_budgets_that_it_does_not_name(capsys: pytest.CaptureFixture[str]) -> None:
    """Else one that names its first would differ in a whole block of settings from what it was before."""
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(REPOSITORY / "configs" / "distrl_arithmetic.yaml"), "--print_config"])
    given = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert given["collecting"] == {"oversampling": 1.0, "max_refills": 1, "batch_size": 256}
    arguments = {"collecting", "update"}
    defaults = {name: inspect.signature(DistRLModule).parameters[name].default for name in arguments}
    assert defaults == {"collecting": Collecting(), "update": PolicyUpdate()}


class OutOfMemory(Callback):
    """Fails as a GPU does: from the second step on, where a micro-batch holds too many tokens."""

    def __init__(self, largest: int) -> None:
        self.largest = largest

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step and max(part.input_ids.numel() for part in batch.micro_batches) > self.largest:
            raise torch.OutOfMemoryError("made to fail")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr("ipvrm_lightning.lightning_cli.rank_zero_info", lines.append)
    return lines


SHORT = ("--checkpoint_minutes", "0", "--data.validation_fraction", "0.0")


def failing(largest: int) -> dict[str, Any]:
    fails = {"class_path": "tests.test_runs.OutOfMemory", "init_args": {"largest": largest}}
    return {"callbacks": [fails, {"class_path": "ModelCheckpoint", "init_args": {"save_last": True}}]}


def test_a_run_goes_on_with_less_memory_and_says_what_is_otherwise(
    tmp_path: Path, command: Command, said: list[str]
) -> None:
    options, trainer = (*SHORT, "--model.optimizer.lr", "0.01"), {"max_steps": 4, **failing(200)}
    with pytest.raises(SystemExit):
        command("fit", *options, **trainer)
    (run,) = tmp_path.glob("*-fit")
    stopped = run / "checkpoints" / "resume-1.ckpt"
    assert stopped.is_file() and not json.loads((run / "run.json").read_text())["ended"]
    said.clear()
    command("fit", *options, "--data.max_tokens", "150", "--model.chunk_size", "16", **trainer)
    assert [said[0], said[2]] == [  # between them stands which checkpoint it is
        f"This run has not ended: going on from {stopped}. A new one: --resume never",
        "Other than before, which changes no result but for rounding (by which a policy in half precision may draw"
        " other responses): model.chunk_size 16 (was 256), data.max_tokens 150 (was 2048)",
    ]
    assert list(tmp_path.glob("*-fit*")) == [run]
    record, kept = json.loads((run / "run.json").read_text()), yaml.safe_load((run / "config.yaml").read_text())
    assert record["ended"] and kept["data"]["init_args"]["max_tokens"] == 150
    assert kept["ckpt_path"] is None  # as it was given: another run of this config begins at its start
    (change,) = record["changes"]
    changed = {"model.init_args.chunk_size": [256, 16], "data.init_args.max_tokens": [2048, 150]}
    assert (change["was_and_is"], change["from"]) == (changed, str(stopped))
    # one that was never stopped, and had the larger budget throughout
    command("fit", *options, "--resume", "never", max_steps=4)
    (whole,) = set(tmp_path.glob("*-fit*")) - {run}
    own, expected = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for folder in (run, whole)
    )
    assert own.keys() == expected.keys() and len(own)
    for name, weight in expected.items():
        torch.testing.assert_close(own[name], weight, rtol=0, atol=1e-5)
    assert max(weight.abs().max() for name, weight in own.items() if "lora_B" in name) > 0.01  # they began at 0


def test_a_run_that_stopped_and_differs_in_few_keys_is_named(
    tmp_path: Path, command: Command, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*more: str) -> list[str]:
        said.clear()
        with pytest.raises(SystemExit):
            command("fit", *SHORT, *more, max_steps=3, **failing(0))
        return [line for line in said if "not ended" in line]

    assert fit() == []
    (run,) = tmp_path.glob("*-fit")
    assert fit("--data.batch_size", "8", "--model.optimizer.lr", "0.1") == [
        f"{run} has not ended and differs in model.optimizer.lr, data.batch_size: this is a new run."
        f" To go on from that one: --ckpt_path {run / 'checkpoints' / 'resume-1.ckpt'}"
    ]
    # the newest is meant: in more than three keys it differs from this one
    more = ("--data.max_length", "100", "--data.seed", "1", "--seed_everything", "1", "--data.batch_size", "8")
    assert fit(*more) == []

    def going_on(*_: Any) -> None:
        raise ValueError("this run is still going on in another process")

    newest = max(tmp_path.glob("*-fit*"))
    monkeypatch.setattr("ipvrm_lightning.lightning_cli.hold", going_on)
    assert fit(*more[:-1], "16") == [] and newest.is_dir()


def test_a_run_that_stopped_and_differs_in_no_known_key_is_named(
    tmp_path: Path, command: Command, said: list[str]
) -> None:
    """Its loggers are other ones, or another version has taken another fingerprint of the same config."""
    command("fit")
    (run,) = tmp_path.glob("*-fit")
    write_record(run, {"ended": None, "config": "0123456789abcdef"})
    kept, last = (run / "config.yaml").read_text(), run / "checkpoints" / "last.ckpt"

    def fit(*more: str) -> tuple[list[str], bool]:
        said.clear()
        command("fit", *more)
        (new,) = set(tmp_path.glob("*-fit*")) - {run}
        ended = json.loads((new / "run.json").read_text())["ended"] is not None
        shutil.rmtree(new)
        return [line for line in said if "not ended" in line], ended

    end = f"this is a new run. To go on from that one: --ckpt_path {last}"
    unknown = "trainer.logger, or was started by another version of ipvrm_lightning"
    named = ([f"{run} has not ended and differs in {unknown}: {end}"], True)
    assert fit() == fit("--data.max_tokens", "300", "--model.chunk_size", "16") == named
    assert fit("--trainer.limit_val_batches", "1") == (
        [f"{run} has not ended and differs in trainer.limit_val_batches: {end}"],
        True,
    )
    (run / "config.yaml").write_text(kept.replace("limit_val_batches: null", "limit_val_batches: 1.0"))
    assert fit("--trainer.limit_val_batches", "1")[0] == [
        f"{run} has not ended and differs in trainer.limit_val_batches: {end}"
    ]
    for broken in (b"{", b"\xff"):  # then nothing is known of it
        (run / "config.yaml").write_bytes(broken)
        assert fit() == ([], True)
    (run / "config.yaml").write_text(kept)
    assert fit() == named
    last.write_bytes(last.read_bytes()[:1000])  # of another run, which is no reason to refuse this one
    assert fit() == ([], True)


def test_runs_that_start_in_the_same_second_have_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        folders = list(threads.map(lambda _: new_run(tmp_path / "runs", "fit"), range(32)))
    assert len(set(folders)) == 32 and all(folder.is_dir() for folder in folders)
    assert min(folders).name.endswith("-fit")
    (tmp_path / "unmounted").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="unmounted"):
        new_run(tmp_path / "unmounted", "fit")


def test_a_run_whose_folder_is_named_from_home_lies_there_whole(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No shell expands `~/` in a config or after `--key=`, and Lightning does for a part of a run's files."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    options = ("--trainer.default_root_dir=~/runs", "--model.init_args.reference.init_args.cache_dir=~/cache")
    command("fit", *options)
    (run,) = home.glob("runs/*-fit")
    assert {"config.yaml", "run.json", "metrics.csv", "checkpoints"} <= {path.name for path in run.iterdir()}
    command("validate", *options, "--ckpt_path", "last")
    assert list(home.glob("cache/*/*.safetensors")) and not list(here.iterdir())


def test_without_a_folder_the_checkpoints_of_a_run_are_where_they_are_looked_for(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command("fit", "--trainer.default_root_dir", "null", "--trainer.logger", "false")
    command("validate", "--trainer.default_root_dir", "null", "--ckpt_path", "last")
    assert (tmp_path / "outputs" / "checkpoints" / "last.ckpt").is_file()
    assert not (tmp_path / "outputs" / "run.lock").exists()  # which belongs to no run


def test_a_checkpoint_that_is_no_file_is_refused_before_a_folder_is_made(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    last = tmp_path / "before" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.touch()
    expected = {
        "": "--ckpt_path '': no such checkpoint; give the path of one",  # of a variable that is not set
        str(last.parent.parent): f"is a folder; give a checkpoint in it, the newest is {last}",
    }
    for given, told in expected.items():
        for name in ("fit", "validate"):
            with pytest.raises(SystemExit):
                command(name, "--ckpt_path", given)
            assert told in capsys.readouterr().err
    assert not list(tmp_path.glob("*-fit*")) and not list(tmp_path.glob("*-validate*"))


def test_a_config_that_is_refused_leaves_no_folder(tmp_path: Path, command: Command) -> None:
    with pytest.raises(SystemExit):
        command("fit", "--model.init_args.gradient_clip_val", "-1")
    assert not list(tmp_path.glob("*-fit*"))


def test_a_run_that_kept_weights_alone_is_started_anew(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    monkeypatch.setattr("ipvrm_lightning.lightning_cli.rank_zero_info", said.append)
    kept = {"save_weights_only": True, "every_n_train_steps": 1, "monitor": None, "save_last": False}
    options = {"callbacks": [{"class_path": "ModelCheckpoint", "init_args": kept}]}
    command("fit", **options)
    (run,) = tmp_path.glob("*-fit")
    (run / "checkpoints" / "last.ckpt").rename(tmp_path / "last.ckpt")  # what a run that was killed does not have
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "ended": None}))
    assert checkpoint_to_resume(run) is None and newest_in(run / "checkpoints") is not None
    command("fit", **options)
    lines = [line for line in said if not line.startswith(("objective", "optimizer"))]
    assert lines == [f"{run} has not ended, but its checkpoints hold weights alone (save_weights_only): a new run"]
    assert len(list(tmp_path.glob("*-fit*"))) == 2
    alone = newest_in(run / "checkpoints")
    monkeypatch.setenv("HOME", str(tmp_path))
    from_home = f"--ckpt_path=~/{alone.relative_to(tmp_path)}"
    with pytest.raises(SystemExit):
        command("fit", from_home, **options)
    problem = f"{alone} holds weights alone (save_weights_only): training cannot go on from it"
    assert problem in capsys.readouterr().err
    command("validate", from_home, **options)
    whole = (tmp_path / "last.ckpt").rename(run / "checkpoints" / "last.ckpt")
    os.utime(whole, (0, 0))
    assert checkpoint_to_resume(run) == whole


def test_a_run_goes_on_from_a_checkpoint_whose_name_has_a_slash(tmp_path: Path, command: Command) -> None:
    """As of `{train/loss}`: it lies in a folder within `checkpoints`."""
    kept = {
        "class_path": "ModelCheckpoint",
        "init_args": {"filename": "{train/loss}", "monitor": None, "every_n_train_steps": 1},
    }
    command("fit", "--checkpoint_minutes", "600", callbacks=[kept])
    (run,) = tmp_path.glob("*-fit")
    (best,) = (run / "checkpoints").glob("train/*.ckpt")
    (run / "checkpoints" / "last.ckpt").unlink()
    write_record(run, {"ended": None})
    assert (
        checkpoint_to_resume(run) == newest_checkpoint(tmp_path, what="test") == find_run(tmp_path).checkpoint == best
    )
    command("fit", "--checkpoint_minutes", "600", callbacks=[kept])
    assert list(tmp_path.glob("*-fit")) == [run] and (run / "checkpoints" / "last.ckpt").is_file()
    assert json.loads((run / "run.json").read_text())["ended"]


def test_a_run_goes_on_from_what_was_written_last(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for when, name in ((3, "a"), (5, "b"), (4, "c")):
        torch.save({"state_dict": {}, "optimizer_states": []}, folder / f"{name}.ckpt")
        os.utime(folder / f"{name}.ckpt", (when, when))
    assert checkpoint_to_resume(tmp_path) == folder / "b.ckpt"
    for when, name in ((1, "resume-9"), (2, "resume-10")):
        (folder / f"{name}.ckpt").touch()
        os.utime(folder / f"{name}.ckpt", (when, when))
    assert checkpoint_to_resume(tmp_path) == folder / "resume-10.ckpt"


def keep(run: Path, how: Literal["alone", "look"]) -> None:
    """A process that writes to a run's folder, or looks whether another one does."""
    with hold(run, how):
        (run / how).touch()
        time.sleep(100)


def test_all_processes_may_look_at_once_and_one_writes(tmp_path: Path) -> None:
    """Those of a run that goes on look at the same time: one of them alone would be let on."""
    for how in ("look", "alone"):
        other = Started(keep, tmp_path, how)
        try:
            while not (tmp_path / how).exists():
                assert other.poll() is None, other.said()
                time.sleep(0.02)
            if how == "look":
                hold(tmp_path, "look").close()
            for refused in ("alone", *(["look"] if how == "alone" else [])):
                with pytest.raises(ValueError, match="this run is still going on in another process"):
                    hold(tmp_path, refused)  # type: ignore[arg-type]
        finally:
            other.kill()
            other.wait()
    hold(tmp_path, "alone").close()


def test_a_fit_that_failed_in_a_notebook_leaves_its_run_to_others(tmp_path: Path) -> None:
    record, trainer = RunRecord(), SimpleNamespace(log_dir=str(tmp_path), is_global_zero=True, loggers=[object()])
    record.setup(trainer, LightningModule(), "fit")  # type: ignore[arg-type]
    record.on_exception(trainer, LightningModule(), ValueError())  # type: ignore[arg-type]
    other = Started(keep, tmp_path, "alone")
    try:
        while not (tmp_path / "alone").exists():
            assert other.poll() is None, other.said()
            time.sleep(0.02)
    finally:
        other.kill()
        other.wait()


def test_a_run_that_saved_shards_does_not_go_on_by_itself(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning's strategies for modules of one's own may save a folder, which does not say how far the logs are."""
    command("fit")
    (run,) = tmp_path.glob("*-fit")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "ended": None}))
    shards = run / "checkpoints" / "resume-2.ckpt"
    shards.mkdir()
    with pytest.raises(SystemExit):
        command("fit")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ipvrm fit:")]
    assert f"go on in a new folder with --ckpt_path {shards}" in line
    command("fit", "--resume", "never")
    assert len(list(tmp_path.glob("*-fit*"))) == 2


def test_the_config_that_a_run_has_kept_writes_to_a_folder_of_its_own() -> None:
    def names(loggers: list[Any]) -> list[tuple[str, str]]:
        return [(one.class_path.rpartition(".")[2], one.init_args.version) for one in loggers]

    root = Path("runs")
    first = loggers_of_run(root, "first", None, None)
    assert names(first) == [("MetricsFile", "first"), ("TensorBoardLogger", "first")]
    assert loggers_of_run(root, "first", None, True) == first and first[1].init_args.purge_step is None
    assert names(loggers_of_run(root, "second", None, first)) == [
        ("MetricsFile", "second"),
        ("TensorBoardLogger", "second"),
    ]
    service = Namespace(class_path="tests.test_runs.ServiceLogger", init_args=Namespace(version="own"))
    kept = loggers_of_run(root, "first", None, service)
    assert names(loggers_of_run(root, "second", None, kept)) == [("MetricsFile", "second"), ("ServiceLogger", "own")]


def test_tensorboard_forgets_the_steps_that_are_done_again_and_no_other(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import TensorBoardLogger

    torch.save({"log": {"step": 3, "rows": 4, "pending": None}}, tmp_path / "resume-4.ckpt")
    for resumed, steps in ((None, range(6)), (tmp_path / "resume-4.ckpt", range(4, 5))):
        _, board = loggers_of_run(tmp_path, "run", resumed, None)
        logger = TensorBoardLogger(**vars(board.init_args))
        for step in steps:
            logger.log_metrics({"loss": step + 10.0 * (resumed is not None)}, step)
        logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    kept = [(one.step, one.value) for one in events.Scalars("loss")]
    assert kept == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, 14.0)]


def test_without_a_logger_the_newest_checkpoint_is_found_and_predictions_start_anew(
    tmp_path: Path, command: Command
) -> None:
    command("fit", logger=False)
    for name in ("predictions.jsonl", "predictions.rank1.jsonl"):
        (tmp_path / name).write_text('{"index": "of an earlier command"}\n')
    command("predict", "--ckpt_path", "last", logger=False)
    rows = [json.loads(line)["index"] for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert rows and all(isinstance(row, int) for row in rows)
    assert not (tmp_path / "predictions.rank1.jsonl").exists()
