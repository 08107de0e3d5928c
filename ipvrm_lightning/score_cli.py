"""`ipvrm score`: solutions in, per step the value, what it adds, and the first wrong step out."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ipvrm_lightning.failures import OneLineParser

FORMATS = ("table", "json", "jsonl")
PROTOCOLS = ("step_sum", "prefix_sum", "prefix_mean", "step_mean")
OBJECTIVES = ("ipvrm", "implicit_prm", "dpo_rm", "endo_rm")


def json_object(text: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ArgumentTypeError: it is none.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"broken JSON ({error})") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"not a JSON object: {text}")
    return found


def add_model_options(parser: argparse.ArgumentParser, *, max_length: int | None = None) -> None:
    """Options that say which reward model is used and how: those of `ipvrm score` and `ipvrm serve`.

    Args:
        parser: to add them to.
        max_length: default of `--max_length`, tokens.
    """
    longest = "what the models can read" if max_length is None else f"{max_length}, or what the models can read"
    parser.add_argument("--model", required=True, help="export, model, adapter or .gguf file: path, or name on the hub")
    parser.add_argument("--reference", help="the like; of an export, where its reference or its adapter's base is now")
    read = parser.add_argument_group("how scores read; an export says so itself")
    read.add_argument("--objective", choices=OBJECTIVES, help="what log-ratios mean; default ipvrm, their mean")
    read.add_argument("--beta", type=float, help="scale of log-ratios")
    read.add_argument("--protocol", choices=PROTOCOLS, help="of step scores; default that of the export, or step_sum")
    read.add_argument("--threshold", type=float, help="steps that score below it are called wrong")
    read.add_argument("--prompt_format", choices=("auto", "chat", "plain"), help="chat by the tokenizer's template")
    read.add_argument("--system_prompt", help="put before problems")
    read.add_argument(
        "--chat_template_kwargs",
        type=json_object,
        help="what else the template is told, in JSON, such as '{\"enable_thinking\": false}'",
    )
    read.add_argument(
        "--step_template", help="text of a step, with {number} and {step}; default 'Step {number}: {step}'"
    )
    read.add_argument("--separator", help="between steps; \\n is a line break; default a blank line")
    run = parser.add_argument_group("how it is run")
    run.add_argument("--device", help="cpu, cuda, cuda:1, ...; default a GPU where there is one")
    run.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default that of training, or float32")
    run.add_argument("--max_tokens", type=int, default=16384, help="rows times longest row of a forward pass, at most")
    run.add_argument(
        "--max_length", type=int, default=max_length, help=f"longest solution in tokens; default {longest}"
    )
    run.add_argument("--revision", help="branch, tag or commit of the model on the hub")
    run.add_argument("--gguf_file", help="GGUF file in the model's folder")
    run.add_argument("--trust_remote_code", action="store_true", help="run code that a repository brings")


def build_parser() -> argparse.ArgumentParser:
    """The options of `ipvrm score`; mistakes are raised."""
    parser = OneLineParser(
        prog="ipvrm score",
        description=__doc__,
        epilog="Without an export, say how log-ratios read: --beta 0.05 --objective implicit_prm, for instance.",
    )
    parser.add_argument(
        "solutions", nargs="*", help="JSON, JSONL or parquet with problem and steps (or solution); - for standard input"
    )
    add_model_options(parser)
    asked = parser.add_argument_group("one solution")
    asked.add_argument("--problem", help="text of the problem")
    asked.add_argument("--solution", help="text of its solution, steps parted by blank lines; - for standard input")
    shown = parser.add_argument_group("output")
    shown.add_argument("--format", choices=FORMATS, help="default table")
    shown.add_argument("--out", type=Path, help="JSONL file; what it holds is not scored again")
    shown.add_argument("--tokens", action="store_true", help="values of every token, too, in JSON and JSONL")
    return parser


def main(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: after `ipvrm score`.

    Raises:
        ArgumentError: an option that does not exist or cannot be read, or options that do not go together.
    """
    chosen = build_parser().parse_args(arguments)
    single = (chosen.problem is not None) + (chosen.solution is not None)
    if single == 1 or bool(chosen.solutions) == bool(single):
        raise argparse.ArgumentError(None, "give files of solutions, or --problem and --solution")
    if chosen.out is not None and chosen.format not in (None, "jsonl"):
        raise argparse.ArgumentError(None, f"--out writes JSONL, which --format {chosen.format} is not")
    if chosen.tokens and chosen.out is None and chosen.format not in ("json", "jsonl"):
        raise argparse.ArgumentError(None, "--tokens needs --format json or jsonl, or --out")
    from ipvrm_lightning.scoring.command import score_command

    score_command(chosen)
