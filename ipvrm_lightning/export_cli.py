"""`ipvrm export`: a run or a checkpoint in, a Hugging Face folder out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ipvrm_lightning.failures import OneLineParser


def build_parser() -> argparse.ArgumentParser:
    """The options of `ipvrm export`; mistakes are raised."""
    parser = OneLineParser(prog="ipvrm export", description=__doc__)
    parser.add_argument("source", type=Path, help="checkpoint, folder of a run, or folder of runs for the newest")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--part", choices=("policy", "reward"), default="policy", help="model of a policy optimisation; default policy"
    )
    parser.add_argument(
        "--merge", action="store_true", help="add the adapter to the weights, in float32; default: adapter alone"
    )
    parser.add_argument(
        "--with_reference", action="store_true", help="put the reference's weights in, by default its name"
    )
    parser.add_argument("--protocol", default="step_sum", help="of step scores, by default: step_sum, prefix_sum, ...")
    parser.add_argument(
        "--threshold_origin",
        choices=("cross_fitted", "oracle"),
        default="cross_fitted",
        help="which thresholds are used",
    )
    parser.add_argument(
        "--results", type=Path, help="results.json of `ipvrm test`, or its run's folder: thresholds, and the card"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an export that is there")
    parser.add_argument(
        "--push_to_hub", metavar="OWNER/NAME", help="upload the folder to this repository, made private"
    )
    return parser


def main(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: after `ipvrm export`.

    Raises:
        ArgumentError: an option that does not exist or cannot be read.
    """
    options = vars(build_parser().parse_args(arguments))
    from ipvrm_lightning.exporting import export_checkpoint
    from ipvrm_lightning.exporting.source import find_run
    from ipvrm_lightning.models.exported import CONFIG_NAME, read_exported_config, rounding_note

    repository = options.pop("push_to_hub")
    run = find_run(options.pop("source"))
    folder = export_checkpoint(run.checkpoint, options.pop("out"), **options)
    print(f"{run.origin()}\nin {folder}")
    record = read_exported_config(folder / CONFIG_NAME)
    if record.thresholds and (note := rounding_note(record.thresholds_precision)):
        print(f"note: {note}, and export again", file=sys.stderr)
    if options["results"] and record.objective and record.protocol not in record.thresholds:
        lacks = f"{options['results']} holds no {options['threshold_origin']} threshold of {record.protocol}"
        print(f"note: {lacks}: no step will be called wrong", file=sys.stderr)
    if repository:
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        print(api.upload_folder(repo_id=repository, folder_path=folder))
