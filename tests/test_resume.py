"""`ipvrm fit`, killed and started again with the same command, ends as if it had not been: real processes, kill -9."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer

from ipvrm_lightning.cli import main
from ipvrm_lightning.worlds.arithmetic import ArithmeticWorld

from .conftest import REPOSITORY
from .processes import Started

#: Differ from run to run, and say nothing of what was computed.
TIMED = ("seconds", "tokens_per_second")


def overlay(world: ArithmeticWorld, config: str, folder: Path) -> Path:
    """The micro world in place of a config's own, and a folder for its runs."""
    place = {"size": "small", "seed": world.seed, "root": world.root, "overrides": world.overrides}
    model: dict[str, Any] = {"language_model": {"init_args": place}}
    data: dict[str, Any] = {**place, "batch_size": 8}
    trainer: dict[str, Any] = {"default_root_dir": str(folder / "runs"), "log_every_n_steps": 1, "max_epochs": 2}
    if config == "distrl_arithmetic.yaml":
        model["reward"] = {"checkpoint": None}
        model["sampling"] = {"group_size": 4, "max_new_tokens": 40}
        model["evaluation"] = {"group_size": 2, "max_new_tokens": 40}
        data["batch_size"] = 4
        trainer |= {"limit_train_batches": 3, "val_check_interval": 3, "limit_val_batches": 1}
    else:
        cache = {"cache_dir": str(folder / "cache")}
        model["reference"] = {"init_args": cache}
    file = folder / f"{config}-overlay.yaml"
    whole = {"model": {"init_args": model}, "data": {"init_args": data}, "trainer": trainer}
    file.write_text(yaml.safe_dump(whole))
    return file


Process = subprocess.Popen[bytes] | Started


def arguments(config: str, extra: Path, *options: str) -> list[str]:
    command = ["fit", "--config", str(REPOSITORY / "configs" / config)]
    return [*command, "--config", str(extra), "--checkpoint_minutes", "0.0001", *options]


def start_by_command(command: list[str]) -> subprocess.Popen[bytes]:
    """`ipvrm`, which Lightning calls again to start a second process."""
    return subprocess.Popen(
        [sys.executable, "-m", "ipvrm_lightning", *command], cwd=REPOSITORY, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
        # a shell has its background jobs, these tests perhaps, ignore Ctrl-C, and all that they start
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def start(config: str, extra: Path, *options: str) -> Process:
    """A process group of its own: a kill reaches every process of the run."""
    command = arguments(config, extra, *options)
    return start_by_command(command) if "ddp" in options else Started(main, command)


def rows(folder: Path) -> list[dict[str, str]]:
    """What the run's only metrics file says, without times."""
    files = list(folder.glob("runs/*-fit/metrics.csv"))
    if not files:
        return []
    (file,) = files
    with file.open(newline="") as text:
        found = list(csv.DictReader(text))
    return [{k: v for k, v in row.items() if v and not any(part in k for part in TIMED)} for row in found]


def names(folder: Path) -> list[str]:
    """Of the run's checkpoints."""
    return sorted(file.name for file in folder.glob("runs/*-fit/checkpoints/*.ckpt"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("runs/*-fit/checkpoints/last.ckpt")
    found: dict[str, torch.Tensor] = torch.load(file, weights_only=True)["state_dict"]
    return found


def stop_after(process: Process, folder: Path, count: int, delay: float, how: signal.Signals = signal.SIGKILL) -> None:
    """Stop a run some time after it has logged so many rows."""
    while len(rows(folder)) < count:
        assert process.poll() is None, process.communicate()[1].decode()[-2000:]
        time.sleep(0.01)
    time.sleep(delay)
    os.killpg(process.pid, how)
    process.communicate()
    # one that is told to stop ends by itself, and does not say that it is done
    assert process.returncode == (143 if how is signal.SIGTERM else -how)


@pytest.mark.parametrize(
    ("config", "options", "counts"),
    [
        ("ipvrm_arithmetic.yaml", (), (3, 17)),
        ("ipvrm_arithmetic.yaml", ("--trainer.strategy", "ddp", "--trainer.devices", "2"), (8,)),
        ("distrl_arithmetic.yaml", (), (3,)),
    ],
    ids=["one process", "two processes", "distrl"],
)
def test_a_killed_fit_goes_on_with_the_same_command(
    config: str, options: tuple[str, ...], counts: tuple[int, ...], tmp_path: Path, micro_world: ArithmeticWorld
) -> None:
    draw = random.Random(str(counts))
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole, killed = (overlay(micro_world, config, tmp_path / name) for name in ("whole", "killed"))
    # one after the other: two runs at once could take each other's ports
    undisturbed = start(config, whole, *options)
    messages = undisturbed.communicate()[1].decode()
    assert undisturbed.returncode == 0, messages[-2000:]
    for number, count in enumerate(counts):
        how = signal.SIGTERM if number else signal.SIGKILL
        stop_after(start(config, killed, *options), tmp_path / "killed", count, draw.random() * 0.3, how)
    last = start(config, killed, *options)
    messages = last.communicate()[1].decode()
    assert last.returncode == 0, messages[-2000:]
    assert "This run has not ended: going on from" in messages
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole") != []
    assert names(tmp_path / "killed") == names(tmp_path / "whole")
    own, expected = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert own.keys() == expected.keys() and all(torch.equal(own[name], expected[name]) for name in own)


def test_a_run_that_has_ended_or_another_config_is_not_continued(tmp_path: Path, micro_world: ArithmeticWorld) -> None:
    extra = overlay(micro_world, "ipvrm_arithmetic.yaml", tmp_path)
    for options in ((), (), ("--model.init_args.objective.init_args.margin", "1.0")):
        process = start("ipvrm_arithmetic.yaml", extra, "--trainer.limit_train_batches", "2", *options)
        messages = process.communicate()[1].decode()
        assert process.returncode == 0, messages[-2000:]
        assert "going on" not in messages
    assert len(list(tmp_path.glob("runs/*-fit/checkpoints/last.ckpt"))) == 3


class Uneven(Callback):
    """From the third step on, the second process is late, and the first one fails where that is asked for."""

    def __init__(self, late: float, fails: bool = False) -> None:
        self.late, self.fails = late, fails

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step < 2:
            return
        if trainer.global_rank == 1:
            time.sleep(self.late)
        elif self.fails:
            raise ValueError("made to fail")


def start_uneven(folder: Path, world: ArithmeticWorld, **uneven: Any) -> subprocess.Popen[bytes]:
    """Two processes, and no checkpoint by the clock."""
    callback = {"class_path": "tests.test_resume.Uneven", "init_args": uneven}
    options = ("--trainer.strategy", "ddp", "--trainer.devices", "2", "--checkpoint_minutes", "60")
    extra = overlay(world, "ipvrm_arithmetic.yaml", folder)
    callbacks = f"--trainer.callbacks+={json.dumps(callback)}"
    return start_by_command(arguments("ipvrm_arithmetic.yaml", extra, *options, callbacks))


def messages_at_the_end(process: subprocess.Popen[bytes], timeout: float) -> str:
    """What the run said; none of its processes may be left by then."""
    try:
        messages = process.communicate(timeout=timeout)[1].decode()
        with pytest.raises(ProcessLookupError):
            for _ in range(500):  # Python's own process for resources ends when it sees that this one has
                os.killpg(process.pid, 0)
                time.sleep(0.01)
        return messages
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("ctrl_c", [False, True])
def test_a_run_of_two_processes_stops_after_the_same_step(
    ctrl_c: bool, tmp_path: Path, micro_world: ArithmeticWorld
) -> None:
    process = start_uneven(tmp_path, micro_world, late=0.5)
    while len(rows(tmp_path)) < 3:
        assert process.poll() is None, process.communicate()[1].decode()[-2000:]
        time.sleep(0.01)
    time.sleep(0.25)  # the first waits for the second
    if ctrl_c:  # a terminal sends it to all of them
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    messages = messages_at_the_end(process, timeout=30)
    assert process.returncode == (-signal.SIGINT if ctrl_c else 143), messages[-2000:]
    assert "Traceback" not in messages and messages.count("stopped by Ctrl-C") == ctrl_c
    done = len(rows(tmp_path))
    assert 4 <= done <= 6 and names(tmp_path) == [f"resume-{done}.ckpt"]


def test_no_process_outlives_a_run_that_fails(tmp_path: Path, micro_world: ArithmeticWorld) -> None:
    process = start_uneven(tmp_path, micro_world, late=600.0, fails=True)
    messages = messages_at_the_end(process, timeout=300)
    said = [line for line in messages.splitlines() if line.startswith("ipvrm fit:")]
    # from 3.14 on Python itself may have a word to say of the second process, which was killed, at any moment
    assert process.returncode == 1 and said == ["ipvrm fit: made to fail"] and "Traceback" not in messages
