"""`make` takes a Python that the package allows, or says so before it has made anything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import REPOSITORY

MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
PYPROJECT = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
REFUSED = "{} is not Python 3.10 to 3.14: name one that is, as in make demo PYTHON=python3.12\n"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A clone's Makefile, and in `bin` the programs that it finds."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    (tmp_path / "bin").mkdir()
    for name in ("touch", "rm"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    return tmp_path


def program(folder: Path, name: str, script: str) -> None:
    """A program that notes how it was called."""
    file = folder / "bin" / name
    file.write_text(f'#!/bin/sh\necho "{name} $*" >> called\n{script}\n')
    file.chmod(0o755)


def python(folder: Path, name: str, version: tuple[int, ...]) -> None:
    """A Python of that version, as far as code can see."""
    program(folder, name, f'[ "$1" = -c ] && exec {sys.executable} -c "import sys; sys.version_info = {version}; $2"')


def install(folder: Path, *arguments: str) -> tuple[int, str, list[str]]:
    """Exit status, the line that tells why, and what was called beside checks of versions."""
    done = subprocess.run(
        [str(shutil.which("make")), "--no-print-directory", ".venv/.installed", *arguments],
        cwd=folder, capture_output=True, text=True, env={"PATH": str(folder / "bin"), "HOME": os.environ["HOME"]},
    )  # fmt: skip
    called = (folder / "called").read_text().splitlines() if (folder / "called").exists() else []
    return done.returncode, done.stderr.partition("make: ***")[0], [line for line in called if " -c import" not in line]


@pytest.mark.parametrize("version", [(3, 9, 18, "final", 0), (3, 15, 0, "final", 0)])
@pytest.mark.parametrize("with_uv", [False, True])
def test_a_python_that_is_not_allowed_is_one_line_and_leaves_nothing(
    folder: Path, version: tuple[int, ...], with_uv: bool
) -> None:
    python(folder, "python3", version)
    if with_uv:
        program(folder, "uv", "")
    status, told, called = install(folder, *(["PYTHON=python3"] if with_uv else []))
    assert (status, told, called) == (2, REFUSED.format("python3"), [])
    assert not (folder / ".venv").exists()


def test_a_python_that_is_not_there_is_one_line(folder: Path) -> None:
    assert install(folder)[:2] == (2, REFUSED.format("python3"))
    assert install(folder, "PYTHON=python3.12")[:2] == (2, REFUSED.format("python3.12"))


@pytest.mark.parametrize("version", [(3, 10, 0, "final", 0), (3, 14, 10, "final", 0)])
def test_the_oldest_and_the_newest_are_taken(folder: Path, version: tuple[int, ...]) -> None:
    python(folder, "python3.x", version)
    assert install(folder, "PYTHON=python3.x")[2] == ["python3.x -m venv .venv"]


@pytest.mark.parametrize("with_uv", [False, True])
def test_an_environment_that_was_left_half_made_is_made_anew(folder: Path, with_uv: bool) -> None:
    """As by a Debian without python3-venv: a folder, and in it nothing that runs."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").symlink_to("nowhere")
    python(folder, "python3", (3, 12, 0, "final", 0))
    if with_uv:
        program(folder, "uv", "")
    assert install(folder)[2][0] == ("uv venv --python >=3.10,<3.15 .venv" if with_uv else "python3 -m venv .venv")
    assert not (folder / ".venv").exists()


def test_uv_chooses_among_those_allowed_or_takes_what_is_named(folder: Path) -> None:
    python(folder, "python3", (3, 9, 18, "final", 0))  # that of macOS
    python(folder, "python3.11", (3, 11, 0, "final", 0))
    program(folder, "uv", "")
    (allowed,) = re.findall(r'^requires-python = "(.*)"', PYPROJECT, flags=re.MULTILINE)
    packages = "uv pip install --python .venv/bin/python -c constraints.txt -e .[dev]"
    install(folder)
    _, _, called = install(folder, "PYTHON=python3.11")
    assert called == [f"uv venv --python {allowed} .venv", packages, "uv venv --python python3.11 .venv", packages]


def test_the_versions_are_those_of_the_package_and_of_ci() -> None:
    assert 'requires-python = ">=3.10,<3.15"' in PYPROJECT and "(3, 10) <= sys.version_info < (3, 15)" in MAKEFILE
    workflow = (REPOSITORY / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    assert 'python: ["3.10", "3.11", "3.12", "3.13", "3.14"]' in workflow
