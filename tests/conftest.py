from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from filelock import FileLock

from ipvrm_lightning.worlds.arithmetic import ArithmeticWorld
from ipvrm_lightning.worlds.arithmetic.build import ensure_built

from . import processes

torch.set_num_threads(1)
processes.start_quickly()

REPOSITORY = Path(__file__).parent.parent

#: Files that take longest: pytest's workers begin with them, so that none is left with one at the end.
LONGEST = (
    "strategies/test_equivalence.py",
    "simulated_device/test_runs.py",
    "test_resume.py",
    "test_tutorials.py",
    "models/test_compilation.py",
    "modules/test_distributed.py",
    "strategies/test_overlays.py",
    "test_cli.py",
    "test_rollout_cli.py",
    "models/test_language_model.py",
    "fuzz/test_fuzz.py",
    "rollouts/test_verifiers.py",
    "modules/test_distrl.py",
    "modules/test_distrl_kill.py",
)


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # of pytest-xdist: it would begin with the files of most tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {REPOSITORY / "tests" / file: place for place, file in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(autouse=True)
def nothing_handed_on() -> Iterator[None]:
    """What belongs to a process: a strategy's place among several, the handler of a command that serves."""
    before, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Conformance cases and real data that are not part of the project."""
    folder = Path(os.environ.get("IPVRM_SHARED_DIR", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no conformance cases and real data at {folder} (set IPVRM_SHARED_DIR)")
    return folder


#: Problems so easy that a policy learns their form, and some of their answers, in seconds.
MICRO = {
    "difficulty": {"min_steps": 1, "max_steps": 2, "side_share": 0.0, "weights": [["max", 1.0], ["min", 1.0]]},
    "hidden_size": 48,
    "intermediate_size": 96,
    "layers": 2,
    "format_shares": [1.0, 0.0, 0.0],
    "sft_problems": 1500,
    "sft_target": None,
    "sft_tokens": 60_000,
    "ramp": 0.6,
    "window_tokens": 400,
    "train_prompts": 24,
    "train_rollouts": 4,
    "validation_prompts": 8,
    "test_prompts": 16,
    "best_of_prompts": 6,
    "truth_solutions": 5,
    "truth_continuations": 6,
}


@pytest.fixture(scope="session")
def micro_world(tmp_path_factory: pytest.TempPathFactory) -> ArithmeticWorld:
    """A world built as users build it: in a process of its own, and once for all of pytest's workers."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    world = ArithmeticWorld("small", 7, str(folder / "worlds"), MICRO)
    with FileLock(folder / "worlds.lock"):
        ensure_built(world)
    return world
