"""`ipvrm compare`: results of test runs in, one row per setting with its spread over runs out. Loads no model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ipvrm_lightning.failures import OneLineParser
from ipvrm_lightning.score_cli import PROTOCOLS

FORMATS = ("table", "json", "csv")
ORIGINS = ("cross_fitted", "oracle")


def build_parser() -> argparse.ArgumentParser:
    """The options of `ipvrm compare`; mistakes are raised."""
    parser = OneLineParser(prog="ipvrm compare", description=__doc__)
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="results.json that `ipvrm test` wrote, the folder of its run, or a folder of runs",
    )
    parser.add_argument(
        "--by",
        action="append",
        default=[],
        metavar="SETTING",
        help="one row for each value of this key of the runs' configs, such as model.optimizer.lr; may be repeated "
        "(default: the objective, and the fewest other settings that tell the runs apart; seeds aside)",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="RUN",
        help="show what the other rows differ by from the row of this run, with paired intervals",
    )
    parser.add_argument("--protocol", choices=PROTOCOLS, default="step_sum", help="of step scores (default: step_sum)")
    parser.add_argument(
        "--threshold", choices=ORIGINS, default="cross_fitted", help="its origin (default: cross_fitted)"
    )
    parser.add_argument("--format", choices=FORMATS, default="table", help="default table")
    return parser


def main(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: after `ipvrm compare`.

    Raises:
        ArgumentError: an option that does not exist or cannot be read.
        ValueError: runs that cannot be compared; `cli.main` tells it in one line.
        OSError: a file that cannot be read.
    """
    chosen = build_parser().parse_args(arguments)
    from ipvrm_lightning.comparing.comparison import compare
    from ipvrm_lightning.comparing.measures import Choice
    from ipvrm_lightning.comparing.output import print_tables, to_csv, to_json
    from ipvrm_lightning.comparing.runs import find_runs

    runs = find_runs(chosen.runs)
    against = [] if chosen.against is None else find_runs([chosen.against])
    given = {run.path.resolve() for run in runs}
    runs += [run for run in against if run.path.resolve() not in given]
    found = compare(runs, Choice(chosen.protocol, chosen.threshold), by=chosen.by, against=against)
    if chosen.format == "table":
        print_tables(found)
    else:
        print({"json": to_json, "csv": to_csv}[chosen.format](found), end="")
    for note in found.notes:
        print(f"Note: {note}", file=sys.stderr)
