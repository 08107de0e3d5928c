"""What runs on the simulated device, each of it in processes of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from ipvrm_lightning.rollouts.sources import Answered, InProcess, Sampling
from ipvrm_lightning.scoring import PrefixValueModel, ScoreRequest, SolutionScore
from ipvrm_lightning.strategies import FullyShard
from ipvrm_lightning.types import PromptExample

from ..modules.distrl_cases import TinyPolicy
from ..strategies import cases
from . import collectives, device

ALONE = ("ipvrm", "ipvrm cached", "ipvrm packed", "ipvrm adapters", "qrm", "sft", "distrl", "distrl adapters")
RESUMED = "distrl adapters"
HALF = ("ipvrm", "ipvrm adapters", "distrl adapters")
TOGETHER = {"ddp": ("distrl",), "fsdp2": ("ipvrm", "distrl adapters")}


class Replicas(DDPStrategy):
    def determine_ddp_device_ids(self) -> None: ...  # torch knows how to move inputs to CUDA's


def alone(folder: Path, library: Path) -> None:
    """One process: training in full and in half precision, going on, rollouts and scores."""
    device.join(library)
    for name in ALONE:
        cases.run(name, folder / "alone", **on_device())
    cases.run(RESUMED, folder / "alone", resume=folder / "alone", **on_device())
    for name in HALF:
        cases.run(name, folder / "half", **on_device(), plugins=[MixedPrecision("bf16-mixed", device="simulated")])
    torch.save([rollouts("simulated"), scores(folder, "simulated")], folder / "judged.pt")


def on_device() -> dict[str, Any]:
    """A trainer's options."""
    return {"accelerator": device.Simulated(), "strategy": SingleDeviceStrategy(torch.device("simulated", 0))}


def together(folder: Path, library: Path) -> None:
    """Two processes, started by torchrun."""
    device.join(library)
    kept = collectives.join()
    torch.distributed.init_process_group("simulated")
    for name in TOGETHER["ddp"]:
        cases.run(name, folder / "ddp", accelerator=device.Simulated(), strategy=Replicas(), devices=2)
    for name in TOGETHER["fsdp2"]:
        cases.run(name, folder / "fsdp2", accelerator=device.Simulated(), strategy=FullyShard(), devices=2)
    del kept


def rollouts(place: str) -> list[Answered]:
    """Responses of a small policy."""
    source = InProcess(language_model=TinyPolicy(), device=place, batch_size=4, stop_tokens=["0"])
    prompts = [PromptExample([3, 4, 5 + i], "text", str(i), "tiny", f"prompt {i}") for i in range(3)]
    return list(source.respond(prompts, Sampling(group_size=3, max_new_tokens=12)))


def scores(folder: Path, place: str) -> list[SolutionScore]:
    """Scores of a model in `folder` against another."""
    model = PrefixValueModel.from_pretrained(
        str(folder / "model"), reference=str(folder / "reference"), beta=2.0, device=place
    )
    return model.score_many([ScoreRequest("1 + 2 ?", ["1 + 2", "3"]), ScoreRequest("2", ["2", "2", "1"])], tokens=True)
