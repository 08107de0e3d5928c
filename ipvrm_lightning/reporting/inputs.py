"""Which files a report is made of: those of run folders, and files given one by one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

NAMES = {
    "results": "results.json",
    "scores": "scores.jsonl",
    "tokens": "tokens.jsonl",
    "metrics": "metrics.csv",
    "record": "run.json",
}


@dataclass
class InputFiles:
    """The files of one run; None for what is not there.

    Args:
        results: reports of a test run.
        scores: its raw step scores.
        tokens: its tokens, with their TD advantages and values.
        metrics: curves of a fit run.
        record: command, versions and time of the run; the test run's where there are two.
    """

    results: Path | None = None
    scores: Path | None = None
    tokens: Path | None = None
    metrics: Path | None = None
    record: Path | None = None

    def put(self, kind: str, path: Path) -> None:
        """Take a file.

        Raises:
            ValueError: there is one of its kind already.
        """
        taken = getattr(self, kind)
        if taken is not None and kind != "record":
            raise ValueError(f"{path}: {taken} is given already, and a report shows one {NAMES[kind]}")
        if taken is None:
            setattr(self, kind, path)

    def present(self) -> dict[str, Path]:
        """The files there are, by kind."""
        return {field.name: path for field in fields(self) if (path := getattr(self, field.name)) is not None}


def find_inputs(paths: Sequence[Path]) -> InputFiles:
    """The files that a report of these paths is made of.

    Args:
        paths: folders of runs (a test run, its fit run), folders that hold such folders (the newest of each is taken),
            or files. The fit run of a test run is found by the checkpoint that was tested.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: a path that holds nothing to report on, or two files of a kind.
    """
    found = InputFiles()
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        if not path.is_dir():
            found.put(_kind(path), path)
            continue
        for folder in [path] if _holds_run(path) else _newest_runs(path):
            for kind, file in _files_of(folder):
                found.put(kind, file)
    if found.tokens is not None and found.scores is None:
        raise ValueError(f"{found.tokens}: needs the {NAMES['scores']} of the same run beside it")
    if found.metrics is None and found.results is not None:
        found.metrics = _metrics_of_fit(found.results.parent)
    return found


def _holds_run(folder: Path) -> bool:
    return any((folder / name).is_file() for kind, name in NAMES.items() if kind != "record")


def _files_of(folder: Path) -> Iterable[tuple[str, Path]]:
    files = {kind: folder / name for kind, name in NAMES.items() if (folder / name).is_file()}
    if "results" in files:
        files.pop("metrics", None)  # a test run's own holds no curve, only the numbers of its results
    return files.items()


def _newest_runs(root: Path) -> list[Path]:
    """The newest test run, or where there is none the newest fit run."""
    for kind in ("results", "metrics"):
        # run folders begin with their time
        if runs := sorted(path.parent for path in root.glob(f"*/{NAMES[kind]}")):
            return [runs[-1]]
    known = ", ".join(name for kind, name in NAMES.items() if kind != "record")
    raise ValueError(f"{root}: nothing to report on; a run's folder holds {known}")


def _metrics_of_fit(folder: Path) -> Path | None:
    """Curves of the run whose checkpoint a test run loaded, None where it cannot be told or is gone."""
    import yaml

    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        checkpoint = Path(config["ckpt_path"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError):
        return None
    # a name with a slash (`{val/auroc}`) puts it deeper than `checkpoints`
    run = next((one.parent for one in checkpoint.parents if one.name == "checkpoints"), checkpoint.parent.parent)
    for place in (folder.parent / run.name, run):
        if run.name and (place / NAMES["metrics"]).is_file():
            return place / NAMES["metrics"]
    return None


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return "metrics"
    if suffix == ".json":
        return "results"
    if suffix == ".jsonl":
        return "tokens" if _has_tokens(path) else "scores"
    raise ValueError(f"{path}: expected the folder of a run, or a file that ends in .json, .jsonl or .csv")


def _has_tokens(path: Path) -> bool:
    with open(path, encoding="utf-8", errors="replace") as file:
        first = next((line for line in file if line.strip()), "")
    try:
        return "tokens" in json.loads(first)
    except (ValueError, TypeError, RecursionError):
        return False
