from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ipvrm_lightning.permissions import follow_umask
from ipvrm_lightning.whole_files import write_atomically


@pytest.fixture(params=[0o022, 0o027])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_folder_becomes_as_readable_as_any_other(umask: int, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    (folder / "reference").mkdir(parents=True, mode=0o700)
    save_file({"a": torch.zeros(1)}, folder / "reference" / "model.safetensors")
    (folder / "config.json").touch(mode=0o600)
    follow_umask(folder)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}
    files, folders = 0o666 & ~umask, 0o777 & ~umask
    assert modes == {"export": folders, "reference": folders, "model.safetensors": files, "config.json": files}


def test_results_do_too(umask: int, tmp_path: Path) -> None:
    assert write_atomically(tmp_path / "results.json", "{}").stat().st_mode & 0o777 == 0o666 & ~umask
