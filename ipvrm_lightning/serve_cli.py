"""`ipvrm serve`: what `ipvrm score` says, over HTTP."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from ipvrm_lightning.failures import OneLineParser
from ipvrm_lightning.score_cli import add_model_options

#: Libraries of the extra `serve`.
NEEDED = ("fastapi", "uvicorn")


def build_parser() -> argparse.ArgumentParser:
    """The options of `ipvrm serve`; mistakes are raised."""
    parser = OneLineParser(prog="ipvrm serve", description=__doc__, epilog="See docs/serving.md.")
    add_model_options(parser, max_length=8192)
    open_to = parser.add_argument_group("who may ask")
    open_to.add_argument("--host", default="127.0.0.1", help="address to listen at; default this machine alone")
    open_to.add_argument("--port", type=int, default=8000, help="default 8000; 0 for a free one")
    open_to.add_argument("--token_file", type=Path, help="file with a bearer token; default that in IPVRM_TOKEN")
    open_to.add_argument("--without_token", action="store_true", help="let other machines ask without one")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--timeout", type=float, default=60.0, help="seconds to answer a request in; default 60")
    limits.add_argument("--max_waiting", type=int, default=256, help="solutions accepted at a time; default 256")
    limits.add_argument("--max_body", type=int, default=2**20, help="bytes of a request; default 1 MiB")
    return parser


def main(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: after `ipvrm serve`.

    Raises:
        ArgumentError: an option that does not exist or cannot be read.
        ValueError: the libraries of the extra are not installed, or see `serve_command`.
    """
    chosen = build_parser().parse_args(arguments)
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ValueError(f'{" and ".join(missing)} not installed: pip install -e ".[serve]" in the repository')
    from ipvrm_lightning.serving.command import serve_command

    serve_command(chosen)
