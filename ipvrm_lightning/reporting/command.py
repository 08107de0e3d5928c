"""`ipvrm report`: the folder of a run in, one HTML file to look at it out."""

from __future__ import annotations

import argparse
from pathlib import Path

from ipvrm_lightning.failures import OneLineParser


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


_count.__name__ = "whole number from 0"


def build_parser() -> argparse.ArgumentParser:
    """The options of `ipvrm report`; mistakes are raised."""
    parser = OneLineParser(prog="ipvrm report", description=__doc__)
    parser.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="RUN_OR_FILE",
        help="folder of a test or fit run, folder of runs for the newest, or results.json, scores.jsonl, tokens.jsonl, "
        "metrics.csv; the fit run of a test run is found by its checkpoint",
    )
    parser.add_argument("--out", type=Path, help="file to write (default: report.html in the first folder given)")
    parser.add_argument(
        "--max-solutions", type=_count, default=200, help="solutions to show one by one, at most (default: 200)"
    )
    return parser


def main(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: after `ipvrm report`.

    Raises:
        ArgumentError: an option that does not exist or cannot be read.
        ValueError: files that cannot be used; `cli.main` tells it in one line.
        OSError: a file that cannot be read or written.
    """
    chosen = build_parser().parse_args(arguments)
    from ipvrm_lightning.reporting.inputs import find_inputs
    from ipvrm_lightning.reporting.page import render
    from ipvrm_lightning.whole_files import write_atomically

    files = find_inputs(chosen.paths)
    first = chosen.paths[0]
    out = chosen.out or (first if first.is_dir() else first.parent) / "report.html"
    if out.is_dir():
        raise ValueError(f"--out: {out} is a folder; expected a file to write")
    path = write_atomically(out, render(files, max_solutions=chosen.max_solutions))
    print(f"Report: {path} ({path.stat().st_size / 1e6:.1f} MB)")
