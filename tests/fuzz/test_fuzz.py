"""A few of the cases of `benchmarks/fuzz.py`, the same ones each time, and some of them in processes of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ipvrm_lightning.cli import main

from ..conftest import REPOSITORY
from .bases import write_bases
from .configs import configs
from .driver import Case, Result, fill, run_case, write_files
from .folders import folders
from .records import prompts, scores, solutions, trajectories

Kind = Callable[[str], st.SearchStrategy[Case]]

#: Kind to the number of its cases here; `benchmarks/fuzz.py` runs more of each.
COUNTS: dict[Kind, int] = {trajectories: 20, prompts: 40, solutions: 20, scores: 120, configs: 45, folders: 25}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_bases(tmp_path_factory.mktemp("bases"))


@pytest.mark.parametrize("kind", COUNTS, ids=lambda kind: kind.__name__)
def test_every_input_is_accepted_or_refused_in_one_line(kind: Kind, bases: str, tmp_path: Path) -> None:
    verdicts: list[str] = []

    @settings(
        max_examples=COUNTS[kind],
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(kind(bases))
    def answered(case: Case) -> None:
        result: Result = run_case(case, tmp_path / "case")
        verdicts.append(result.verdict)
        assert result.verdict != "failed", f"{case.label}\n{result.text}"

    answered()
    assert {"accepted", "refused"} <= set(verdicts)


#: What larger runs have found, once each: files, arguments after the config, and what the line should say.
FOUND = {
    "an answer that is an object": (
        "fit",
        {"r.jsonl": b'{"prompt": "1?", "responses": ["2"], "scores": [1], "answers": [{"x": 1}]}\n'},
        ("--data.test", "{here}/r.jsonl"),
        "r.jsonl, row 1, field 'answers[0]': answer is neither text nor a number",
    ),
    "null for a number": (
        "fit",
        {},
        ("--data.batch_size", "null"),
        "data.init_args.batch_size: expected int, found null",
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_is_refused_in_one_line(name: str, bases: str, tmp_path: Path) -> None:
    command, files, options, expected = FOUND[name]
    words = (command, "--config", f"{bases}/{command}.yaml", "--trainer.default_root_dir", "{out}", *options)
    result = run_case(Case("found", name, dict(files), words, mentions=(expected,)), tmp_path / "case")
    assert result.verdict == "refused", result.text


REAL = {
    "fit": ({"rollouts.jsonl": b'{"prompt": "1?", "completion": "2", "label": 7}\n'}, "row 1, field 'label'"),
    "test": ({"bench/gsm8k.json": b'[{"problem": "1?"'}, "gsm8k.json: broken JSON in line 1"),
    "rollout": ({"prompts.parquet": b"PAR1"}, "prompts.parquet: not readable as parquet"),
    "judge": ({"scores.jsonl": b"\x1b[31m\xff\n"}, "scores.jsonl, line 1: not UTF-8"),
}
OPTIONS = {
    "fit": ("--data.train", "{here}/rollouts.jsonl", "--trainer.default_root_dir", "{out}"),
    "test": ("--data.path", "{here}/bench", "--trainer.default_root_dir", "{out}"),
    "rollout": ("--prompts.train", "{here}/prompts.parquet", "--output", "{out}"),
    "judge": ("{here}/scores.jsonl",),
}


@pytest.mark.parametrize("command", ["fit", "judge"])
def test_in_a_process_of_its_own(command: str, bases: str, tmp_path: Path) -> None:
    words, expected = bad_command(command, bases, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "ipvrm_lightning", *words],
        capture_output=True, text=True, cwd=REPOSITORY, stdin=subprocess.DEVNULL, timeout=500,
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if line.startswith("ipvrm ")]
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and done.stderr.splitlines()[-1:] == lines
    assert expected in lines[0] and lines[0].startswith(f"ipvrm {command}: ") and lines[0].isprintable()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", REAL)
def test_debug_raises_the_error_itself(command: str, bases: str, tmp_path: Path) -> None:
    words, expected = bad_command(command, bases, tmp_path)
    with pytest.raises(ValueError, match=re.escape(expected)):
        main([*words, "--debug"])


def bad_command(command: str, bases: str, folder: Path) -> tuple[list[str], str]:
    """A command whose input is bad, and what it should say of it."""
    files, expected = REAL[command]
    write_files(files, folder)
    config = () if command == "judge" else ("--config", f"{bases}/{command}.yaml")
    return [command, *config, *(fill(word, folder) for word in OPTIONS[command])], expected
