"""What an export would score otherwise is refused before weights are loaded: the model of these runs is nowhere."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule

from ipvrm_lightning.callbacks import HFExport
from ipvrm_lightning.exporting import export_checkpoint
from ipvrm_lightning.models import FrozenCopy
from ipvrm_lightning.models.token_scores import TokenScores
from ipvrm_lightning.modules import IPVRMModule
from ipvrm_lightning.objectives import IPVRM, QRM, build_objective
from ipvrm_lightning.types import TrajectoryBatch

IPVRM_MODULE = "ipvrm_lightning.modules.IPVRMModule"
CACHED = "ipvrm_lightning.models.CachedReference"


class Learned(IPVRM):
    """With a weight that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))


class Counting(IPVRM):
    """With a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("prior", torch.ones(()))


class AnotherReference(FrozenCopy):
    """Of other weights, say."""


class Hotter(IPVRMModule):
    """Reads scores at another temperature."""

    def token_scores(self, batch: TrajectoryBatch) -> TokenScores:
        found = super().token_scores(batch)
        return found._replace(scores=found.scores / 2)


class Named(IPVRMModule):
    """Changes nothing that an export needs."""


def own(name: str) -> str:
    return f"{__name__}.{name}"


def write_run(folder: Path, objective: dict[str, Any], *, module: str = IPVRM_MODULE, reference: Any = None) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    stored = {"state_dict": {"model.a.weight": torch.ones(1)}, "objective": objective}
    torch.save(stored, folder / "checkpoints" / "last.ckpt")
    model = {"class_path": "ipvrm_lightning.models.PretrainedLanguageModel", "init_args": {"name": "./nowhere"}}
    arguments = {"language_model": model, "reference": reference}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"class_path": module, "init_args": arguments}}))
    return folder


REFUSED = {
    "own weights": ({"class_path": own("Learned"), "init_args": {}}, {}, r"Learned has weights .* \(scale\)"),
    "own buffer": ({"class_path": own("Counting"), "init_args": {}}, {}, r"Counting has weights .* \(prior\)"),
    "own scores": (IPVRM().describe(), {"module": own("Hotter")}, r"Hotter has a token_scores of its own"),
    "own reference": (
        IPVRM().describe(),
        {"reference": {"class_path": own("AnotherReference")}},
        r"trained against .*AnotherReference, which an export cannot hold",
    ),
    "own source": (
        IPVRM().describe(),
        {"reference": {"class_path": CACHED, "init_args": {"source": {"class_path": own("AnotherReference")}}}},
        r"trained against .*AnotherReference",
    ),
    "no module": (IPVRM().describe(), {"module": "elsewhere.Module"}, r"^elsewhere\.Module, .* \(PYTHONPATH\)"),
    "no objective": ({"class_path": "elsewhere.Loss", "init_args": {}}, {}, r"^elsewhere\.Loss, .* \(PYTHONPATH\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_an_export_cannot_hold_is_refused(case: str, tmp_path: Path) -> None:
    objective, options, message = REFUSED[case]
    run = write_run(tmp_path / "run", objective, **options)
    with pytest.raises(ValueError, match=message) as caught:
        export_checkpoint(run, tmp_path / "out")
    assert "\n" not in str(caught.value) and not list(tmp_path.glob("*out*"))


def test_an_adapter_on_4_bit_weights_is_not_merged(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", IPVRM().describe())
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["init_args"]["language_model"]["init_args"] |= {"quantization": "nf4", "lora": {"r": 2}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"^an adapter on 4-bit weights cannot be merged without loss"):
        export_checkpoint(run, tmp_path / "out", merge=True)
    with pytest.raises(FileNotFoundError, match=r"\./nowhere"):
        export_checkpoint(run, tmp_path / "out")


@pytest.mark.parametrize("case", [name for name in REFUSED if name != "no objective"])
def test_the_callback_refuses_it_before_training(case: str, tmp_path: Path) -> None:
    objective, options, message = REFUSED[case]
    run = write_run(tmp_path / "run", objective, **options)
    module = LightningModule()
    module.objective = build_objective(objective)
    trainer: Any = SimpleNamespace(log_dir=str(run), is_global_zero=True, checkpoint_callback=object())
    with pytest.raises(ValueError, match=message):
        HFExport().on_fit_start(trainer, module)


def test_the_callback_lets_a_policy_train(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", IPVRM().describe())
    trainer: Any = SimpleNamespace(log_dir=str(run), is_global_zero=True, checkpoint_callback=object())
    HFExport().on_fit_start(trainer, LightningModule())  # no objective, which the ones above refuse
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_callback_refuses_a_run_without_config_or_checkpoints(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(log_dir=str(tmp_path), is_global_zero=True, checkpoint_callback=object())
    with pytest.raises(FileNotFoundError, match=rf"^HFExport needs the config .* {tmp_path}/config.yaml$"):
        HFExport().on_fit_start(trainer, LightningModule())
    trainer.checkpoint_callback = None
    with pytest.raises(ValueError, match=r"^HFExport needs a ModelCheckpoint$"):
        HFExport().on_fit_start(trainer, LightningModule())


def test_the_callback_refuses_a_place_that_is_taken_before_training(tmp_path: Path) -> None:
    """An export of an earlier end of the run is written over; what is none would be refused when training has ended."""
    run = write_run(tmp_path / "run", IPVRM().describe())
    trainer: Any = SimpleNamespace(log_dir=str(run), is_global_zero=True, checkpoint_callback=object())
    taken = tmp_path / "models" / "mine"
    taken.mkdir(parents=True)
    with pytest.raises(FileExistsError, match=rf"^{taken} is no export"):
        HFExport(folder=str(taken)).on_fit_start(trainer, LightningModule())
    (taken / "ipvrm_config.json").touch()
    HFExport(folder=str(taken)).on_fit_start(trainer, LightningModule())


@pytest.mark.parametrize("hook", ["on_fit_start", "on_fit_end"])
def test_every_process_asks_for_the_run_s_folder(hook: str, tmp_path: Path) -> None:
    """Lightning broadcasts it: a process that did not ask would leave the others waiting for ever."""
    asked = []

    class Another(SimpleNamespace):
        is_global_zero = False

        @property
        def log_dir(self) -> str:
            asked.append(hook)
            return str(tmp_path)

    getattr(HFExport(), hook)(Another(), LightningModule())
    assert asked == [hook]


ACCEPTED = {
    "a subclass": (IPVRM().describe(), {"module": own("Named")}),
    "a cache": (IPVRM().describe(), {"reference": {"class_path": CACHED}}),
    "an unread reference": (QRM().describe(), {"reference": {"class_path": own("AnotherReference")}}),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_an_export_holds_gets_as_far_as_its_weights(case: str, tmp_path: Path) -> None:
    objective, options = ACCEPTED[case]
    run = write_run(tmp_path / "run", objective, **options)
    with pytest.raises(FileNotFoundError, match=r"\./nowhere"):
        export_checkpoint(run, tmp_path / "out")
