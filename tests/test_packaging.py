"""A wheel holds what its users need, and runs outside the repository; a source distribution is the repository."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from ipvrm_lightning.cli import main
from ipvrm_lightning.packaged_configs import CONFIGS, with_packaged_configs

from .conftest import REPOSITORY


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git repository: there is no telling which files are the project's")
    return [name for name in listed.stdout.splitlines() if (REPOSITORY / name).is_file()]


@pytest.fixture(scope="module")
def built(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both distributions; the wheel is built from the other one."""
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("building a wheel needs uv on the PATH")
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, source / name)
    done = subprocess.run([uv, "build", "--out-dir", str(out), str(source)], capture_output=True, text=True)
    if "error sending request" in done.stderr or "dns error" in done.stderr:
        pytest.skip("building a wheel needs the package index")
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return next(built.glob("*.whl"))


def test_a_source_distribution_is_the_whole_repository(built: Path, tracked: list[str]) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert not set(tracked) - inside
    assert not [name for name in inside if "__pycache__" in name or name.startswith("outputs")]


def test_a_wheel_holds_configs_types_and_the_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for file in (REPOSITORY / "configs").rglob("*.yaml"):
        assert f"ipvrm_lightning/{file.relative_to(REPOSITORY)}" in names
    assert "ipvrm_lightning/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "configs"))]


def test_a_wheel_finds_its_configs_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    script = (
        "from ipvrm_lightning import packaged_configs as p; print(p.__file__);"
        "print(p.with_packaged_configs(['fit', '--config', 'configs/ipvrm_qwen.yaml'])[2])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
    )  # fmt: skip
    module, config = done.stdout.splitlines()
    assert Path(module).is_relative_to(tmp_path)
    assert config == str(tmp_path / "installed" / "ipvrm_lightning" / "configs" / "ipvrm_qwen.yaml")
    assert "configs/ipvrm_qwen.yaml: taken from" in done.stderr


def test_configs_that_are_there_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "ipvrm_qwen.yaml").touch()
    given = ["fit", "--config", "configs/ipvrm_qwen.yaml", "--config=configs/strategy/lora.yaml", "-c", "other.yaml"]
    assert CONFIGS == REPOSITORY / "configs"
    packaged = f"--config={CONFIGS / 'strategy' / 'lora.yaml'}"
    assert with_packaged_configs(given) == [*given[:3], packaged, *given[4:]]


def test_a_config_in_place_of_a_files_name_may_be_longer_than_one(capsys: pytest.CaptureFixture[str]) -> None:
    for option in (["--config", "{}"], ["--config={}"]):
        given = json.dumps({"data": {"init_args": {"system_prompt": "x" * 300}}})
        with pytest.raises(SystemExit) as ended:
            words = [word.replace("{}", given) for word in option]
            main(["fit", "--config", "configs/ipvrm_qwen.yaml", *words, "--print_config"])
        printed = capsys.readouterr().out
        assert ended.value.code == 0 and yaml.safe_load(printed)["data"]["init_args"]["system_prompt"] == "x" * 300


def test_the_page_of_configs_is_what_the_code_says() -> None:
    spec = importlib.util.spec_from_file_location("page", REPOSITORY / "docs" / "make_configs_reference.py")
    assert spec is not None and spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert maker.page() == (REPOSITORY / "docs" / "configs.md").read_text(encoding="utf-8"), "make it again"
