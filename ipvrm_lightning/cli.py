"""The `ipvrm` command: Lightning's fit, validate, test and predict on stacked configs, and the commands beside them.

Heavy libraries are imported where they are used, so that `--help` and bad arguments answer at once.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from argparse import ArgumentError
from importlib import import_module

from ipvrm_lightning.config_checks import check_config_files
from ipvrm_lightning.failures import exit_status, failure_line, reader_left, tell_in_one_line
from ipvrm_lightning.packaged_configs import with_packaged_configs
from ipvrm_lightning.tokenizer_threads import one_thread

USAGE = """usage: ipvrm <command> [options]

Train reward models from outcome labels, judge them on first wrong steps.

commands:
  fit       train what a config describes            ipvrm fit --config configs/ipvrm_arithmetic.yaml
  validate  metrics on validation rollouts
  test      step F1, best-of-n, calibration          ipvrm test --config ... --ckpt_path last
  predict   values and advantages per token and step
  rollout   sample responses to prompts, check them  ipvrm rollout --config configs/rollout_qwen.yaml
  export    a checkpoint as a Hugging Face folder    ipvrm export outputs/ipvrm_qwen --out my-reward-model
  score     values and first errors of solutions     ipvrm score --model my-reward-model solutions.jsonl
  serve     the same over HTTP                       ipvrm serve --model my-reward-model --port 8000
  report    one HTML page to look at a run           ipvrm report outputs/ipvrm_qwen
  compare   runs of several settings and seeds       ipvrm compare outputs/sweep
  judge     recompute step F1 from a scores.jsonl, without a model
  completion  a script that makes bash, zsh or fish complete all this

Configs stack: later --config files and --key=value arguments win. `--ckpt_path last` is the newest checkpoint under the
config's trainer.default_root_dir. `ipvrm <command> --help` lists its options, `--print_config` shows the whole config,
`--debug` the traceback of an error.
"""


def main(argv: list[str] | None = None) -> None:
    """Run the command line; a failure gives one line on standard error, and an exit status.

    Args:
        argv: arguments after the program name, those of the process where none are given.

    Raises:
        SystemExit: with 2 for arguments and configs that cannot be parsed, 1 for everything else that fails, 141 where
            the reader of the output has hung up, 143 where a fit was told to stop (SIGTERM) and has not ended.
        KeyboardInterrupt: Ctrl-C, of which the process dies after a line: else a shell would go on with its loop.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in given or ("LOCAL_RANK" in os.environ and os.environ.get("IPVRM_DEBUG") == "1")
    os.environ["IPVRM_DEBUG"] = str(int(debug))  # tells the processes that Lightning starts, which lack the option
    arguments = with_packaged_configs([argument for argument in given if argument != "--debug"]) or ["--help"]
    try:
        _run(arguments)
        sys.stdout.flush()
    except Exception as error:
        if isinstance(error, BrokenPipeError) and reader_left():
            raise SystemExit(128 + signal.SIGPIPE) from None
        if debug:
            raise
        print(failure_line(arguments[0], error), file=sys.stderr)
        raise SystemExit(exit_status(error)) from error
    except (KeyboardInterrupt, SystemExit) as ended:
        # what Lightning makes of it is an exit with status 1
        interrupted = isinstance(ended, KeyboardInterrupt) or isinstance(ended.__context__, KeyboardInterrupt)
        if argv is not None or debug or not interrupted:
            raise
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:  # a terminal interrupts all of a run's processes
            print(f"ipvrm {arguments[0]}: stopped by Ctrl-C", file=sys.stderr)
        sys.excepthook = lambda *_: None  # no traceback
        raise KeyboardInterrupt from None


def _run(arguments: list[str]) -> None:
    if arguments[0] in {"-h", "--help"}:
        print(USAGE)
        return
    if arguments[0] == "--version":
        from ipvrm_lightning import __version__

        print(f"ipvrm_lightning {__version__}")
        return
    if sys.platform == "win32":
        raise ValueError("not on Windows itself: install and run it in WSL2 (https://learn.microsoft.com/windows/wsl)")
    if arguments[0] not in COMMANDS and arguments[0] not in LIGHTNING and not arguments[0].startswith("-"):
        raise ArgumentError(None, f"no such command; there are {', '.join((*LIGHTNING, *COMMANDS))}")
    check_config_files(arguments)
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)
    for logger in QUIET_RECORDS:
        logging.getLogger(logger).addFilter(_is_of_use)
    one_thread()
    if arguments[0] in COMMANDS:
        import_module(f"ipvrm_lightning.{COMMANDS[arguments[0]]}").main(arguments[1:])
    else:
        _run_lightning(arguments)


def _run_lightning(arguments: list[str]) -> None:
    if "LOCAL_RANK" not in os.environ:
        os.environ.pop("IPVRM_RUN", None)
    # LightningCLI reads the process's arguments, and processes it starts for DDP are given them again
    sys.argv[1:] = arguments
    if os.environ.get("IPVRM_DEBUG") != "1":
        threading.excepthook = tell_in_one_line
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from ipvrm_lightning.lightning_cli import IPVRMCLI

    try:
        IPVRMCLI.run()
    except SIGTERMException as stopped:  # ends with 0 of itself, as if the run were done
        if isinstance(stopped.__cause__, KeyboardInterrupt):
            raise stopped.__cause__ from None
        raise SystemExit(128 + signal.SIGTERM) from stopped


def _is_of_use(record: logging.LogRecord) -> bool:
    """Whether a logger's message is none of those that are left out."""
    return QUIET_RECORDS[record.name] not in record.getMessage()


#: What libraries tell each other, of no use to who runs a command.
QUIET = (
    r".*isinstance\(treespec, LeafSpec\).*",
    ".*is_gradient_checkpointing.*",
    "`gradient_checkpointing_enable` is deprecated.*",  # its successor is not in every transformers that is allowed
    ".*does not have many workers.*",
    "The dirpath has changed from.*",  # said by every `ipvrm test`, whose run has a folder of its own
    "Total length of `list` across ranks is zero.*",  # of validation data, where none are asked for
    "Couldn't infer the batch indices.*",  # in `ipvrm predict`, whose records carry their rows
    # the rate follows the run's steps: one in which nothing was learned, or whose update was skipped, counts
    r"Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step\(\)`.*",
)

#: The same by logger: a part of the message.
QUIET_RECORDS = {
    "lightning.pytorch.utilities.rank_zero": "Tip: For seamless",  # advertises another package
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",  # a faster kernel, which is not used here
}

LIGHTNING = ("fit", "validate", "test", "predict")
#: Modules whose `main` takes what follows the command; imported when they are run, for `--help` to answer at once.
COMMANDS = {
    "compare": "comparing.command",
    "completion": "completion",
    "export": "export_cli",
    "judge": "metrics.judge",
    "report": "reporting.command",
    "rollout": "rollout_cli",
    "score": "score_cli",
    "serve": "serve_cli",
}
