"""Which strategies a module can run under, and `FullyShard`: FSDP2 with checkpoints that any strategy reads."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.distributed.tensor import distribute_tensor
from torch.utils._pytree import tree_map_only

from ipvrm_lightning.devices import NO_MPS
from ipvrm_lightning.models.checkpoints import own_buffers
from ipvrm_lightning.models.language_model import LanguageModelFactory
from ipvrm_lightning.models.packing import VARLEN
from ipvrm_lightning.models.sharding import fill, is_sharded, same_everywhere, whole


def check_fit(strategy: Any, module: Any) -> None:
    """Refuse a strategy that would give wrong numbers or fail inside torch, before anything is loaded.

    Args:
        strategy: of a trainer, or its name.
        module: with a `language_model`; any other is left alone.

    Raises:
        ValueError: says which pair cannot work, and what can.
    """
    factory = getattr(module, "language_model", None)
    if not isinstance(factory, LanguageModelFactory):
        return
    reference = getattr(module, "reference", None)
    if reference is not None:
        reference.check(factory)
    if getattr(module, "evaluation", None) is not None:  # how a policy samples
        factory.check_sampling()
    precision = getattr(getattr(strategy, "precision_plugin", None), "precision", "32-true")
    _check_precision(precision, module)
    accelerator = type(getattr(strategy, "accelerator", None)).__name__
    if accelerator == "MPSAccelerator":  # of a Trainer in Python; the command line has none of it
        raise ValueError(f'{type(module).__name__}: {NO_MPS}, as in Trainer(accelerator="cpu")')
    on_gpu = accelerator == "CUDAAccelerator"
    in_full = precision == "32-true" and getattr(factory, "dtype", "float32") == "float32"
    if on_gpu and in_full and getattr(factory, "attn_implementation", None) == VARLEN:
        raise ValueError(
            "attn_implementation varlen is for half precision on a GPU, in float32 it would go sequence by sequence:"
            " set trainer.precision to bf16-mixed, or attn_implementation to sdpa"
        )
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    kinds = [name] if isinstance(strategy, str) else [kind.__name__ for kind in type(strategy).__mro__]
    why_not = next((why for kind in kinds for start, why in _WHY_NOT.items() if kind.lower().startswith(start)), None)
    if why_not is not None and factory.quantized:
        raise ValueError(
            f"weights in 4 bits cannot be divided over processes ({name}):"
            " use configs/strategy/ddp.yaml with qlora.yaml, or fsdp2.yaml with lora.yaml"
        )
    if isinstance(strategy, FullyShard):
        factory.check_sharding()
    elif why_not is not None:
        raise ValueError(f"{type(module).__name__} does not run under {name}: {why_not}")


def check_trainer(settings: Any, module: Any) -> None:
    """Refuse settings that the module leaves no place for, and a precision that Lightning takes for another on a CPU.

    Args:
        settings: of the trainer, as the config has them.
        module: with a `language_model`; any other is left alone.

    Raises:
        ValueError: names the setting, and what to give in its place.
    """
    if not isinstance(getattr(module, "language_model", None), LanguageModelFactory):
        return
    precision = str(settings.precision)
    _check_precision({"16": "16-mixed", "64": "64-true"}.get(precision, precision), module)
    if settings.accumulate_grad_batches not in (None, 1):
        raise ValueError(
            "trainer.accumulate_grad_batches: leave it out; batch_size is the optimiser's already, and max_tokens"
            " divides it into passes"
        )
    if settings.gradient_clip_val:
        own = "gradient_clip_val" if hasattr(module, "gradient_clip_val") else "update.gradient_clip_val"
        raise ValueError(
            f"trainer.gradient_clip_val: use model.init_args.{own}, which clips the whole batch's gradient"
        )
    callbacks = settings.callbacks if isinstance(settings.callbacks, list) else [settings.callbacks]
    if any(isinstance(callback, StochasticWeightAveraging) for callback in callbacks):
        raise ValueError(
            "trainer.callbacks: StochasticWeightAveraging copies the model before its weights are there, and would"
            " average nothing: use EMAWeightAveraging"
        )
    averaging = [type(callback).__name__ for callback in callbacks if isinstance(callback, WeightAveraging)]
    if averaging and any(isinstance(one, ModelCheckpoint) and one.save_weights_only for one in callbacks):
        raise ValueError(
            "trainer.callbacks: with save_weights_only a checkpoint holds the weights in training, and not the averages"
            f" of {averaging[0]}, which validation judges: leave it out"
        )
    if averaging and isinstance(settings.strategy, FullyShard):
        raise ValueError(
            f"trainer.callbacks: {averaging[0]} copies the model, which cannot be where it is divided over processes:"
            " use configs/strategy/ddp.yaml, or leave it out"
        )


def accelerator_for(module: Any, accelerator: Any) -> Any:
    """The trainer's accelerator: the CPU where Lightning would choose Apple's GPU.

    Args:
        module: with a `language_model`; any other has what was asked for.
        accelerator: as the config has it.

    Raises:
        ValueError: Apple's GPU is asked for.
    """
    if not isinstance(getattr(module, "language_model", None), LanguageModelFactory):
        return accelerator
    if not MPSAccelerator.is_available():
        return accelerator
    if accelerator in ("gpu", "mps"):
        raise ValueError(f"trainer.accelerator {accelerator}: {NO_MPS}")
    warnings.filterwarnings("ignore", message="GPU available but not used")  # Lightning's advice to take it
    if accelerator not in ("auto", None):
        return accelerator
    rank_zero_info("Apple's GPU is left alone, for it has no float64: this runs on the CPU (trainer.accelerator: cpu)")
    return "cpu"


def _check_precision(precision: str, module: Any) -> None:
    if precision in _WHY_NO_PRECISION:
        raise ValueError(
            f"trainer.precision {precision} is not for {type(module).__name__}: {_WHY_NO_PRECISION[precision]}"
        )


_FSDP2 = "use configs/strategy/fsdp2.yaml, which divides the same things"
#: Why strategies cannot run this package's modules, by how their names begin.
_WHY_NOT = {
    "fsdp": f"FSDP1 allows no backward pass within the training step, where micro-batches are added up; {_FSDP2}",
    "deepspeed": f"its gradients cannot be seen, so that norm, clipping and guard would not apply; {_FSDP2}",
    "modelparallel": f"Lightning's default divides matrices, not the batch; {_FSDP2}",
}


_DTYPE = "it would convert the model but not its reference; weights have the precision of language_model's `dtype`"
#: Why the trainer cannot be asked for a precision.
_WHY_NO_PRECISION = {
    "16-mixed": "it scales gradients, whose norm is measured, guarded and clipped here; use bf16-mixed or 32-true",
    **dict.fromkeys(("16-true", "bf16-true", "64-true"), f"{_DTYPE}, with trainer.precision 32-true"),
}


class FullyShard(ModelParallelStrategy):
    """Parameters, gradients and optimiser states divided over all processes (FSDP2).

    Departs from `ModelParallelStrategy` in two points. All processes share one model, where Lightning's default divides
    matrices within a node (tensor parallelism). And a checkpoint is one file in the form that one process writes, of
    what is trained only: gathered tensor by tensor on the first process, so that it resumes under any other strategy,
    and the other way round.

    Args:
        process_group_backend: of torch.distributed; None for NCCL on GPUs and gloo on CPUs.
    """

    def __init__(self, *, process_group_backend: str | None = None) -> None:
        super().__init__(save_distributed_checkpoint=False, process_group_backend=process_group_backend)

    def setup_environment(self) -> None:
        """Join the other processes."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Make what is not sharded the same everywhere; keep evaluation out of inference mode.

        Tensors that are made in inference mode cannot take part in training, and weights are gathered into such.
        """
        for loop in (
            trainer.fit_loop.epoch_loop.val_loop,
            trainer.validate_loop,
            trainer.test_loop,
            trainer.predict_loop,
        ):
            loop.inference_mode = False
        assert self.model is not None
        self.model.to(self.root_device)
        same_everywhere(parameter for parameter in self.model.parameters() if parameter.requires_grad)
        super().setup(trainer)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Checkpoints hold the states in torch's form, which Lightning hands to `load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Trained weights, whole, and buffers on the first process; nothing on the others. Collective."""
        module = self.lightning_module
        assert module is not None
        trained: dict[str, Tensor] = {name: p for name, p in module.named_parameters() if p.requires_grad}
        trained |= own_buffers(module)
        return {name: value for name, p in trained.items() if (value := self._kept(p.detach())) is not None}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """An optimiser's state in torch's form, whole, on the first process. Collective."""
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        state = tree_map_only(Tensor, self._kept, optimizer.state_dict())
        return state if self.is_global_zero else {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write the file on the first process, by the checkpoint plugin."""
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Map the file into memory; each process reads the pages that it needs."""
        path = self.broadcast(checkpoint_path)
        return torch.load(
            path, map_location="cpu", mmap=True, weights_only=True if weights_only is None else weights_only
        )

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Each process takes its rows; the module has checked names and shapes."""
        assert self.lightning_module is not None
        own: dict[str, Tensor] = dict(self.lightning_module.named_parameters()) | own_buffers(self.lightning_module)
        for name, weight in checkpoint["state_dict"].items():
            rows = weight if weight.ndim else weight[None]
            fill(own[name], lambda start, end, rows=rows: rows[start:end])  # type: ignore[misc]

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Each process takes its rows of the states, which have the shapes of their parameters."""
        for optimizer, stored in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {
                number: {name: _like(value, parameters[number]) for name, value in values.items()}
                for number, values in stored["state"].items()
            }
            optimizer.load_state_dict({**stored, "state": state})

    def _kept(self, tensor: Tensor) -> Tensor | None:
        gathered = whole(tensor)
        return gathered.cpu() if self.is_global_zero else None


def _like(value: Any, parameter: Tensor) -> Any:
    """A part of an optimiser's state, divided as its parameter is."""
    if not is_sharded(parameter) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    sharded: Any = parameter
    return distribute_tensor(value.to(sharded.device), sharded.device_mesh, sharded.placements, src_data_rank=None)
