from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from jsonargparse import ArgumentParser
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning_utilities.core.imports import RequirementCache

from ipvrm_lightning.cli import COMMANDS, main
from ipvrm_lightning.failures import (
    exit_status,
    failure_line,
    library_errors,
    mistakes,
    names_full_disk,
    one_line,
    tell_in_one_line,
)
from ipvrm_lightning.lightning_cli import IPVRMCLI

from .processes import Started


def test_an_error_of_the_input_is_its_message_alone() -> None:
    assert failure_line("fit", ValueError("a.jsonl, row 1:\n  bad")) == "ipvrm fit: a.jsonl, row 1: bad"
    assert failure_line("fit", ValueError()) == "ipvrm fit: ValueError"
    for expected in (torch.OutOfMemoryError, MisconfigurationException):
        assert failure_line("fit", expected("CUDA\nis full")) == "ipvrm fit: CUDA is full"
    assert exit_status(ValueError()) == 1 and exit_status(argparse.ArgumentError(None, "x")) == 2


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"rollout"}))
def test_a_bad_option_is_one_line_for_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--bogus"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ipvrm {command}: ") and line.endswith("(see --help)")


@pytest.mark.parametrize(("rank", "asked"), [(None, "0"), ("1", "0"), (None, "1"), ("1", "1")])
def test_a_traceback_is_shown_to_those_who_ask_for_it(
    rank: str | None, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And by the processes that Lightning starts, which are given another command line."""
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setenv("IPVRM_DEBUG", asked)  # as of a command that is over, where this one was not started by it
    expected = FileNotFoundError if (rank, asked) == ("1", "1") else SystemExit
    with pytest.raises(expected):
        main(["judge", "nowhere.jsonl"])
    with pytest.raises(FileNotFoundError):
        main(["judge", "nowhere.jsonl", "--debug"])
    assert os.environ["IPVRM_DEBUG"] == "1"


@pytest.mark.parametrize(("command", "said", "told"), [("rollout", "x", "x"), ("-c=a/b", "\ud800", r"\ud800")])
def test_an_error_nobody_expected_keeps_its_traceback(command: str, said: str, told: str) -> None:
    try:
        raise RuntimeError(said)
    except RuntimeError as error:
        line = failure_line(command, error)
    assert line.startswith(f"ipvrm {command}: unexpected RuntimeError: {told} (traceback in ")
    file = Path(line.rpartition("traceback in ")[2].rstrip(")"))
    assert "raise RuntimeError" in file.read_text()
    file.unlink()


def _wait_for_another(folder: Path, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    dist.barrier()
    if rank == 0:
        try:
            dist.all_reduce(torch.ones(3))
        except RuntimeError as error:
            print(failure_line("fit", error))
            os._exit(0)
    os._exit(1)


def test_one_that_loses_another_process_does_not_call_it_a_defect(tmp_path: Path) -> None:
    waiting, _ = (Started(_wait_for_another, tmp_path, rank) for rank in range(2))
    assert waiting.wait(60) == 0
    (line,) = [line for line in waiting.said().splitlines() if line.startswith("ipvrm fit:")]
    assert line.startswith("ipvrm fit: another process of this run has ended, or does not answer ([")


def test_a_line_harms_no_terminal_and_is_not_endless() -> None:
    assert one_line("a\n\tb\0\x1b[31m\ud800") == r"a b\x00\x1b[31m\ud800"
    assert one_line("a" * 5000 + "end", 20) == "aaaaaaaaaa ... aaaaaaaend"


def test_what_the_parser_says_becomes_one_sentence() -> None:
    message = """Parser key "data":
      Does not validate against any of the Union subtypes
      Subtypes: [<class 'LightningDataModule'>, <class 'NoneType'>]
      Errors:
        - Problem with given class_path 'a.B':
            Option 'bogus' is not accepted
        - Expected a <class 'NoneType'>
      Given value type: <class 'jsonargparse._util.NestedArg'>
      Given value: NestedArg(key='bogus', val='x')"""
    line = failure_line("fit", argparse.ArgumentError(None, message))
    assert (
        line
        == "ipvrm fit: key \"data\": Problem with given class_path 'a.B': Option 'bogus' is not accepted (see --help)"
    )


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("- Expected a dot import path string: OneLineParsr\nGiven value: OneLineParsr", "did you mean OneLineParser?"),
        ("- Expected a dot import path string: Nothing.", "give its whole path, a.module.Class"),
    ],
)
def test_a_word_that_names_no_class_is_said_to_be_so(said: str, told: str) -> None:
    word = said.split()[7].rstrip(".")
    line = failure_line("fit", argparse.ArgumentError(None, f'Parser key "x":\n{said}'))
    assert line == f'ipvrm fit: key "x": {word} is no class here; {told} (see --help)'


class NeedsModule(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        import there_is_none  # type: ignore[import-not-found]  # noqa: F401


class NeedsVersion(DummyLogger):
    """As Lightning's own loggers say it."""

    def __init__(self) -> None:
        super().__init__()
        raise ModuleNotFoundError(str(RequirementCache("there-is-none>=0.12.10")))


@pytest.mark.parametrize(
    ("kind", "package"), [(NeedsModule, "there_is_none"), (NeedsVersion, "there-is-none>=0.12.10")]
)
def test_a_package_that_is_missing_is_named(kind: type, package: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--logger", type=Logger | Iterable[Logger] | bool | None)  # type: ignore[arg-type]
    own = {"class_path": "CSVLogger", "init_args": {"save_dir": "."}}
    chosen = [own, {"class_path": f"{__name__}.{kind.__name__}"}]
    with pytest.raises(ValueError) as refused:
        parser.instantiate_classes(parser.parse_object({"logger": chosen}))
    assert mistakes(str(refused.value)) == f"{kind.__name__} needs {package}, which is not installed"


def test_a_module_that_is_not_found_is_not_asked_for() -> None:
    message = "Problem with given class_path 'my_module.Mine':\n  No module named 'my_module'"
    assert mistakes(message) == "Problem with given class_path 'my_module.Mine': No module named 'my_module'"


def test_a_word_that_is_no_number_is_said_to_be_so() -> None:
    message = """Parser key "optimizer":
      Type typing.Callable[[Iterable], torch.Optimizer] expects a function or a callable class: Parser key "lr":
        - Expected a <class 'float'>
        - Expected a dot import path string: abc
      Given value: abc. Got value: Namespace(class_path='A', init_args=Namespace(lr='abc'))"""
    line = failure_line("fit", argparse.ArgumentError(None, message))
    assert line == 'ipvrm fit: key "optimizer": key "lr": Expected a <class \'float\'>; Given value: abc (see --help)'


@pytest.mark.parametrize("prompt", ["You are a tutor: explain", "- be brief"])
def test_text_that_yaml_reads_as_something_else_is_said_to_be_so(
    prompt: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--config", "configs/ipvrm_qwen.yaml", "--data.system_prompt", prompt, "--print_config"])
    said = capsys.readouterr().err
    assert "key \"system_prompt\": expected text: in quotes in a config file; what has ': ' in it" in said


def test_windows_is_told_what_to_use(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", "nowhere.yaml"])
    told = "ipvrm fit: not on Windows itself: install and run it in WSL2 (https://learn.microsoft.com/windows/wsl)\n"
    assert (ended.value.code, capsys.readouterr().err) == (1, told)
    main(["--version"])


def test_what_libraries_advertise_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["judge", "nowhere.jsonl"])
    said = {
        "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from kernels-community: %s",
        "lightning.pytorch.utilities.rank_zero": "A Tip: For seamless cloud uploads and versioning, %s",
    }
    for name, message in said.items():
        logging.getLogger(name).warning(message, "no kernels")
        logging.getLogger(name).warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"] * 2


def test_a_fit_that_was_told_to_stop_has_not_succeeded(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        raise SIGTERMException

    monkeypatch.setattr(IPVRMCLI, "run", stop)
    with pytest.raises(SystemExit) as ended:
        main(["fit"])
    assert ended.value.code == 143


def test_a_fit_that_ctrl_c_has_stopped_after_a_step_dies_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        raise SIGTERMException from KeyboardInterrupt()

    monkeypatch.setattr(IPVRMCLI, "run", stop)
    with pytest.raises(KeyboardInterrupt):
        main(["fit"])


@pytest.mark.parametrize("command", ["score", "fit"])
def test_ctrl_c_is_one_line_and_a_death_that_a_shell_understands(command: str) -> None:
    as_lightning = (
        "    try: raise KeyboardInterrupt\n"
        "    except KeyboardInterrupt: sys.exit(1)\n"
    )  # fmt: skip
    script = (
        "import sys; from ipvrm_lightning import cli\n"
        f"def interrupted(_):\n{as_lightning if command == 'fit' else '    raise KeyboardInterrupt'}\n"
        f"cli._run, sys.argv = interrupted, ['ipvrm', '{command}']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, f"ipvrm {command}: stopped by Ctrl-C\n")


def test_errors_of_libraries_say_what_could_not_be_done() -> None:
    expected = r"^model: cannot be read \(RuntimeError: in two lines\)$"
    with pytest.raises(ValueError, match=expected), library_errors("model: cannot be read"):
        raise RuntimeError("in two\nlines")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_full_disk_is_named() -> None:
    with pytest.raises(OSError, match=r"No space left on device: 'out'$"), names_full_disk("out"):
        Path("/dev/full").write_text("x")


def test_other_errors_keep_their_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"'nowhere'$"), names_full_disk("out"):
        Path("nowhere").read_text()
    with pytest.raises(OSError, match=r"'a file'$"), names_full_disk("out"):
        raise OSError(errno.ENOSPC, "No space left on device", "a file")


def test_a_thread_ends_in_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def write() -> None:
        raise OSError(28, "No space\nleft")

    monkeypatch.setattr(threading, "excepthook", tell_in_one_line)
    thread = threading.Thread(target=write, name="writer")
    thread.start()
    thread.join()
    assert capsys.readouterr().err == "writer ended: OSError: [Errno 28] No space left\n"


def socket_pair() -> tuple[int, int]:
    """A pipe in which one that was hung up is told by POLLHUP: on Linux a socket, on macOS any."""
    reading, writing = socket.socketpair()
    return reading.detach(), writing.detach()


@pytest.mark.parametrize("pipe", [os.pipe, socket_pair])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_seen_enough_is_no_failure(unbuffered: str, pipe: Callable[[], tuple[int, int]]) -> None:
    """As in `ipvrm --help | head -1`."""
    reading, writing = pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "ipvrm_lightning", "--help"],
        stdout=writing, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
