"""On a Mac the trainer is given the CPU, and Apple's GPU is refused by name."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from lightning.fabric.accelerators.mps import MPSAccelerator as FabricMPS
from lightning.pytorch import LightningModule
from lightning.pytorch.accelerators import MPSAccelerator

from ipvrm_lightning.cli import main
from ipvrm_lightning.lightning_cli import IPVRMCLI
from ipvrm_lightning.modules import IPVRMModule, SFTModule
from ipvrm_lightning.strategies import accelerator_for

from .conftest import REPOSITORY
from .modules.conftest import InMemoryData, quiet_trainer, tiny
from .modules.distrl_cases import TinyPrompts
from .modules.distrl_cases import module as distrl_module


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which Lightning sees Apple's GPU."""
    for kind in (FabricMPS, MPSAccelerator):
        monkeypatch.setattr(kind, "is_available", staticmethod(lambda: True))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[IPVRMCLI]:
    """What the command line has made; nothing is run."""
    seen: list[IPVRMCLI] = []
    monkeypatch.setattr(IPVRMCLI, "_run_subcommand", lambda self, subcommand: seen.append(self))
    return seen


def fit(folder: Path, config: str, *more: str) -> None:
    main(["fit", "--config", str(REPOSITORY / "configs" / config), "--trainer.default_root_dir", str(folder), *more])


@pytest.mark.parametrize("more", [(), ("--trainer.accelerator", "auto"), ("--trainer.strategy", "ddp")])
@pytest.mark.parametrize("config", ["ipvrm_qwen.yaml", "distrl_qwen.yaml"])
def test_a_config_without_an_accelerator_runs_on_the_cpu(
    config: str,
    more: tuple[str, ...],
    tmp_path: Path,
    mac: None,
    made: list[IPVRMCLI],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        fit(tmp_path, config, *more)
    assert type(made[0].trainer.accelerator).__name__ == "CPUAccelerator"
    assert len([line for line in caplog.messages if "this runs on the CPU" in line]) == 1


def test_a_cpu_that_was_asked_for_is_not_remarked_on(
    tmp_path: Path,
    mac: None,
    made: list[IPVRMCLI],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    with caplog.at_level(logging.INFO):
        fit(tmp_path, "ipvrm_qwen.yaml", "--trainer.accelerator", "cpu")
    assert type(made[0].trainer.accelerator).__name__ == "CPUAccelerator"
    assert "Apple" not in caplog.text
    assert not [one for one in recwarn if "GPU available" in str(one.message)]


@pytest.mark.parametrize("asked", ["mps", "gpu"])
def test_the_gpu_by_name_is_one_line(
    asked: str, tmp_path: Path, mac: None, made: list[IPVRMCLI], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        fit(tmp_path, "ipvrm_qwen.yaml", "--trainer.accelerator", asked)
    assert ended.value.code == 1 and not made
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ipvrm fit:")]
    why = "Apple's GPU has no float64, which draws, scores and metrics need: use cpu"
    assert line == f"ipvrm fit: trainer.accelerator {asked}: {why}"


def test_modules_of_ones_own_and_other_machines_keep_their_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, module in ((True, LightningModule()), (False, SFTModule(language_model=tiny()))):
        monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda found=available: found))
        for asked in ("auto", "gpu", "mps"):
            assert accelerator_for(module, asked) == asked


@pytest.mark.parametrize("kind", ["ipvrm", "sft", "distrl"])
def test_a_trainer_in_python_is_refused_before_a_model_is_built(kind: str, tmp_path: Path, mac: None) -> None:
    module: LightningModule = (
        distrl_module() if kind == "distrl" else {"ipvrm": IPVRMModule, "sft": SFTModule}[kind](language_model=tiny())
    )
    data = TinyPrompts() if kind == "distrl" else InMemoryData()
    with pytest.raises(ValueError, match=r'Apple\'s GPU has no float64.*use cpu, as in Trainer\(accelerator="cpu"\)'):
        quiet_trainer(tmp_path, accelerator="auto").fit(module, datamodule=data)
    assert getattr(module, "model", None) is None and getattr(module, "roles", None) is None
