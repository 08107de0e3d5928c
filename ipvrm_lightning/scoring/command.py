"""What `ipvrm score` does: read and check everything, then load the model, then score and write as it goes."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ipvrm_lightning.data.schema import DataError
from ipvrm_lightning.failures import names_full_disk
from ipvrm_lightning.models.exported import ADAPTER_CONFIG, Layout
from ipvrm_lightning.objectives import DPORM, IPVRM, EndoRM, ImplicitPRM, Objective
from ipvrm_lightning.pretrained import add_config, add_content, find_file
from ipvrm_lightning.scoring.description import Description, Part, describe
from ipvrm_lightning.scoring.encoding import EncodedSolution, SolutionEncoder
from ipvrm_lightning.scoring.model import WINDOW, PrefixValueModel
from ipvrm_lightning.scoring.opening import open_encoder
from ipvrm_lightning.scoring.requests import STANDARD_INPUT, Asked, check_request, read_requests, split_solution
from ipvrm_lightning.scoring.results import SolutionScore
from ipvrm_lightning.scoring.store import ScoreStore, settings_file
from ipvrm_lightning.scoring.tables import score_table, table_console

_OBJECTIVES: dict[str, type[Objective]] = {
    "ipvrm": IPVRM,
    "implicit_prm": ImplicitPRM,
    "dpo_rm": DPORM,
    "endo_rm": EndoRM,
}
_WEIGHTS = "*.safetensors"


def score_command(chosen: argparse.Namespace) -> None:
    """Run the command.

    Args:
        chosen: options, see `ipvrm_lightning.score_cli`.

    Raises:
        DataError: a row that cannot be scored, by file, row and field, before any weights are loaded.
        ValueError: a model that is not what it should be, or an output file of something else.
    """
    own = () if chosen.out is None else (chosen.out, settings_file(chosen.out))
    description = described(chosen)
    template = description.layout.step_template
    if chosen.solutions:
        asked = read_requests(chosen.solutions, step_template=template, leave_out=own)
    else:
        asked = [_single(chosen, template)]
    encoder = open_encoder(description, max_length=chosen.max_length)
    solutions = list(_encoded(encoder, asked))

    def score(pending: Sequence[EncodedSolution]) -> Iterator[tuple[EncodedSolution, SolutionScore]]:
        if not pending:
            return
        model = PrefixValueModel(description, encoder=encoder, device=chosen.device, max_tokens=chosen.max_tokens)
        with tqdm(total=len(pending), desc="solutions", disable=None) as bar:
            for start in range(0, len(pending), WINDOW):
                window = pending[start : start + WINDOW]
                yield from zip(window, model.score_encoded(window, tokens=chosen.tokens), strict=True)
                bar.update(len(window))

    if chosen.out is None:
        _print((found for _, found in score(solutions)), chosen.format or "table")
        return
    settings = {**_settings(description), "tokens": chosen.tokens}
    with names_full_disk(chosen.out), ScoreStore(chosen.out, settings) as file:
        pending = [solution for solution in solutions if not file.holds(solution)]
        for solution, found in score(pending):
            file.append(solution, found)
    print(f"{len(solutions)} solutions, {len(pending)} of them scored in this run\nin {chosen.out}")


def _single(chosen: argparse.Namespace, step_template: str) -> Asked:
    """The solution on the command line, or on standard input."""
    # editors may begin a file with a byte order mark, which would be a token of step 1
    text = sys.stdin.read().removeprefix("\ufeff") if chosen.solution == STANDARD_INPUT else chosen.solution
    return Asked(check_request(chosen.problem, split_solution(text, step_template), "solution"), "command line", 1)


def described(chosen: argparse.Namespace) -> Description:
    """The reward model that the options name, as they say it is read.

    Args:
        chosen: options of `ipvrm_lightning.score_cli.add_model_options`.

    Raises:
        ValueError: a model that is not what it should be, or options that do not go together.
    """
    objective = None
    if chosen.objective is not None:
        objective = _OBJECTIVES[chosen.objective](**({} if chosen.beta is None else {"beta": chosen.beta}))
    found = describe(
        chosen.model,
        reference=chosen.reference,
        objective=objective,
        beta=None if objective is not None else chosen.beta,
        revision=chosen.revision,
        gguf_file=chosen.gguf_file,
        dtype=chosen.dtype,
        trust_remote_code=chosen.trust_remote_code,
    )
    given = {one.name: value for one in fields(Layout) if (value := getattr(chosen, one.name)) is not None}
    if "separator" in given:
        given["separator"] = given["separator"].replace("\\n", "\n")
    read = found.read_as(
        layout=replace(found.layout, **given), protocol=chosen.protocol, threshold=chosen.threshold
    )  # fmt: skip
    if found.thresholds and not read.thresholds:
        print("note: the export's thresholds are for its own layout; no step is judged", file=sys.stderr)
    if (note := read.rounding_note) is not None:
        print(f"note: {note} (ipvrm export --results), or give --threshold", file=sys.stderr)
    if read.dtype not in (None, "float32") and (recorded := read.reward.model.dtype) == "float32":
        print(f"note: the model is of {recorded}; in {read.dtype} rounding can exceed its log-ratios", file=sys.stderr)
    return read


def _encoded(encoder: SolutionEncoder, asked: Sequence[Asked]) -> Iterator[EncodedSolution]:
    for start in range(0, len(asked), WINDOW):
        window = asked[start : start + WINDOW]

        def place(error: DataError, position: int, window: Sequence[Asked] = window) -> DataError:
            return error.at(window[position].source, window[position].row)

        yield from encoder.encode([one.request for one in window], place)


def _print(scores: Iterator[SolutionScore], form: str) -> None:
    """Write each score as soon as it is there."""
    if form == "table":
        console = table_console()
        for score in scores:
            console.print(score_table(score))
        return
    opened = False
    for score in scores:
        before = "" if form == "jsonl" else ",\n" if opened else "[\n"
        after = "\n" if form == "jsonl" else ""
        sys.stdout.write(f"{before}{json.dumps(score.to_dict(), ensure_ascii=False)}{after}")
        sys.stdout.flush()
        opened = True
    if form == "json":
        sys.stdout.write("\n]\n" if opened else "[]\n")


def _settings(description: Description) -> dict[str, Any]:
    """What decides the numbers, but for the solutions' tokens."""
    return {
        "model": _identity(description.reward),
        "reference": None if description.reference is None else _identity(description.reference),
        "objective": description.objective.describe(),
        "temperature": description.temperature,
        "dtype": description.dtype or description.reward.model.dtype,
        "layout": asdict(description.layout),
        "protocol": description.protocol,
        "threshold": description.threshold,
    }


def _identity(part: Part) -> str:
    """A hash of a model's files, or the commit of a repository and the GGUF file in it; a name alone does not tell."""
    digest = hashlib.blake2b(digest_size=12)
    model, files, configs = part.model, [], []
    if not Path(model.name).exists():
        named = model.gguf_file or "config.json"
        found = find_file(model.name, named, revision=model.revision)
        commit = found and Path(str(found).removesuffix(named)).name  # which the hub's cache calls a folder by
        digest.update(f"{model.name} {commit}{model.gguf_file or ''}".encode())
    elif model.gguf_file:
        files = [Path(model.name, model.gguf_file)]
    else:
        files, configs = sorted(Path(model.name).glob(_WEIGHTS)), [Path(model.name, "config.json")]
    if part.adapter is not None:
        files += sorted(Path(part.adapter).glob(_WEIGHTS))
        configs.append(Path(part.adapter, ADAPTER_CONFIG))
    for config in configs:
        add_config(digest, config)
    for file in files:
        digest.update(file.name.encode())
        add_content(digest, file)
    return digest.hexdigest()
