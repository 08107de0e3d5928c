"""The simulated device as PyTorch and Lightning know one. A process that has joined it cannot leave it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator
from torch.torch_version import TorchVersion

COMPILER = shutil.which("c++")


def usable() -> bool:
    """Whether this machine can make the device, and its PyTorch shards a model on one that is not its own."""
    if COMPILER is None or sys.platform != "linux" or torch.__version__ < TorchVersion("2.13"):
        return False
    command = [COMPILER, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    return subprocess.run(command, input="#include <set>", text=True, capture_output=True).returncode == 0


def compiled(folder: Path) -> Path:
    """Compile `device.cpp` against the PyTorch that is installed."""
    assert COMPILER
    torch_folder, library = Path(torch.__file__).parent, folder / "device.so"
    libraries = [f"-L{torch_folder / 'lib'}", "-lc10", "-ltorch_cpu"]
    done = subprocess.run(
        [COMPILER, "-shared", "-fPIC", "-std=c++20", "-O0", "-w", f"-I{torch_folder / 'include'}",
         str(Path(__file__).with_name("device.cpp")), *libraries, "-o", str(library)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return library


class Simulated(Accelerator):
    """For Lightning's Trainer; processes share the device."""

    def setup_device(self, device: torch.device) -> None:
        assert device.type == "simulated"

    def teardown(self) -> None: ...

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: int) -> list[torch.device]:
        return [torch.device("simulated", 0)] * devices

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return "simulated"


def join(library: Path) -> None:
    """Make the device known to this process.

    Args:
        library: what `compiled` has made.
    """
    torch.ops.load_library(str(library))
    torch.utils.rename_privateuse1_backend("simulated")
    torch._register_device_module("simulated", _module())
    torch.utils.generate_methods_for_privateuse1_backend()
    torch.serialization.register_package(
        0,
        lambda storage: "simulated:0" if storage.device.type == "simulated" else None,
        lambda storage, place: storage.simulated() if place.startswith("simulated") else None,
    )
    # else a module's parameters are others once they are moved there, and no longer tied
    torch.__future__.set_swap_module_params_on_conversion(True)


def _module() -> ModuleType:
    module: Any = ModuleType("torch.simulated")
    module.is_available = module.is_initialized = lambda: True
    module._is_in_bad_fork = lambda: False
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.set_device = module.synchronize = lambda *_: None
    module.manual_seed = module.manual_seed_all = lambda seed: None  # random numbers are the CPU's
    module.get_rng_state = lambda *_: torch.get_rng_state()
    module.set_rng_state = lambda state, *_: torch.set_rng_state(state)
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    module.Stream = module.current_stream = lambda *_, **__: torch.Stream(device="simulated")
    module.Event = lambda *_, **__: torch.Event(device="simulated")
    module.stream = module.device = lambda *_: nullcontext()
    sys.modules["torch.simulated"] = module
    return module
