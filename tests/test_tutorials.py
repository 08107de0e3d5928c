"""The tutorials run as they stand, one after the other in one folder, as a reader runs them."""

from __future__ import annotations

import os
import re
import runpy
import sys
from pathlib import Path
from unittest import mock

import pytest

from .conftest import REPOSITORY

FOLDER = REPOSITORY / "tutorials"
TUTORIALS = sorted(FOLDER.glob("[0-9]_*.py"))
#: Modules beside them that they import.
BESIDE = ("extension", "tiny_world")


@pytest.fixture(scope="module")
def written_to(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where they write `outputs/`: the tiny world is built once for all of them."""
    return tmp_path_factory.mktemp("tutorials")


def test_there_are_six_and_the_index_names_each() -> None:
    assert [path.name[0] for path in TUTORIALS] == list("123456")
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert not [path.name for path in TUTORIALS if path.name not in index]


@pytest.mark.parametrize("file", TUTORIALS, ids=lambda file: file.stem)
def test_it_runs(file: Path, written_to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(written_to)
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [str(file)])
    try:
        with mock.patch.dict(os.environ):  # seeds and names of runs are left there
            runpy.run_path(str(file), run_name="__main__")
    finally:
        for name in BESIDE:
            sys.modules.pop(name, None)
    written = written_to / "outputs" / "tutorials" / file.stem
    pictures = {path.name for path in written.glob("*.png")}
    assert pictures == set(re.findall(r'OUT / "(\w+\.png)"', file.read_text(encoding="utf-8")))
    assert {path.name for path in written_to.iterdir()} == {"outputs"}


@pytest.mark.parametrize("file", TUTORIALS, ids=lambda file: file.stem)
def test_it_reads_as_cells_and_names_what_exists(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.startswith("# %% [markdown]\n# # ")
    assert text.count("\n# %%\n") >= 5
    files = set(re.findall(r"(?<!outputs/)(?:configs|benchmarks|docs|tutorials)/[\w./-]+\.(?:yaml|py|md)", text))
    assert not [name for name in files if not (REPOSITORY / name).exists()]
