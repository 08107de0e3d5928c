"""A device with memory of its own changes no number but for rounding: what is on it and what is not never meet."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..conftest import REPOSITORY
from ..modules.distrl_cases import TinyPolicy
from ..strategies import cases
from ..strategies.test_equivalence import assert_same_numbers
from . import device, runs

pytestmark = pytest.mark.skipif(not device.usable(), reason="needs Linux, a C++20 compiler and PyTorch 2.13")
FULL = [("alone", name) for name in runs.ALONE] + [
    (kind, name) for kind, names in runs.TOGETHER.items() for name in names
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of one process on the CPU, and of one and of two on the device."""
    root = tmp_path_factory.mktemp("simulated")
    library = device.compiled(root)
    for name, seed in (("model", 1), ("reference", 2)):
        factory = TinyPolicy(seed=seed)
        factory.build_model().save_pretrained(root / name)
        factory.build_tokenizer().save_pretrained(root / name)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    started = [start(root, library, "alone", []), start(root, library, "together", torchrun)]
    with sdpa_kernel(SDPBackend.MATH):  # the device's attention
        for name in runs.ALONE:
            cases.run(name, root / "cpu")
        for name in runs.HALF:
            cases.run(name, root / "cpu half", precision="bf16-mixed")
    for process in started:
        said, _ = process.communicate(timeout=500)
        wrong = [line for line in said.splitlines() if "Error" in line]
        assert process.returncode == 0, wrong or said[-4000:]
    return root


def start(root: Path, library: Path, what: str, launcher: list[str]) -> subprocess.Popen[str]:
    script = root / f"{what}.py"
    script.write_text(
        f"from pathlib import Path; from tests.simulated_device.runs import {what};"
        f" {what}(Path({str(root)!r}), Path({str(library)!r}))"
    )
    return subprocess.Popen(
        [sys.executable, *launcher, str(script)], cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def load(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(folder / f"{name}.pt", map_location="cpu", weights_only=True)


@pytest.mark.parametrize(("kind", "name"), FULL)
def test_runs_have_the_numbers_of_the_cpu(kind: str, name: str, folder: Path) -> None:
    here, there = load(folder / "cpu", name), load(folder / kind, name)
    assert len(here["steps"]) == len(there["steps"]) == cases.STEPS
    for number, (first, second) in enumerate(zip(here["steps"], there["steps"], strict=True)):
        for key, value in first.items():
            # a token whose ratio lies on the bound of the clip may fall on either side of it
            bound = 1e-3 if "clipped" in key else 1e-5
            assert second[key] == pytest.approx(value, abs=bound, rel=0 if "loss" in key else 1e-5), (number, key)
    metrics = [{k: v for k, v in found["metrics"].items() if "second" not in k} for found in (here, there)]
    assert_same_numbers(*metrics)
    assert_same_numbers(here["reports"], there["reports"])
    for key, value in here["state"].items():
        torch.testing.assert_close(there["state"][key], value, rtol=0, atol=1e-5)


def test_a_run_goes_on_from_its_checkpoint(folder: Path) -> None:
    whole, rest = (load(folder / "alone", runs.RESUMED + suffix)["steps"] for suffix in ("", " resumed"))
    assert len(whole) > len(rest) > 0 and whole[-len(rest) :] == rest


@pytest.mark.parametrize("name", runs.HALF)
def test_half_precision_is_near_the_cpus(name: str, folder: Path) -> None:
    """Autocast rounds in other places on a GPU; where a policy samples another token for it, its steps are others."""
    here, there = (load(folder / kind, name)["steps"] for kind in ("cpu half", "half"))
    assert all(math.isfinite(value) for step in there for value in step.values())
    if not name.startswith("distrl"):
        losses = [[step["loss"] for step in steps] for steps in (here, there)]
        assert losses[1] == pytest.approx(losses[0], abs=0.05)


def test_responses_and_scores_are_those_of_the_cpu(folder: Path) -> None:
    responses, scores = torch.load(folder / "judged.pt", weights_only=False)
    assert responses == runs.rollouts("cpu")
    for there, here in zip(scores, runs.scores(folder, "cpu"), strict=True):
        assert there.final_value == pytest.approx(here.final_value, abs=1e-5) and abs(here.final_value) > 1e-3
        assert [token.value for token in there.tokens] == pytest.approx([t.value for t in here.tokens], abs=1e-5)
