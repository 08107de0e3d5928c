"""`OptimizerSettings`: a run that goes on from a checkpoint is trained at the learning rate that its config says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

#: A setting of each parameter group of each optimiser.
Settings = list[list[dict[str, Any]]]


class OptimizerSettings(Callback):
    """Gives optimisers that were restored the settings of the config, where those have changed since the checkpoint.

    Lightning restores learning rate, weight decay and all else beside the moments. What is compared is what optimisers
    were built with, for a schedule changes rates, and some change momentum too: a run whose config says the same goes
    on bit for bit.
    """

    def __init__(self) -> None:
        self._own: Settings = []
        self._stored: Settings = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember what the config says: optimisers are built, and not restored yet."""
        self._own = [[_settings(group) for group in optimizer.param_groups] for optimizer in trainer.optimizers]

    def state_dict(self) -> dict[str, Any]:
        """What optimisers were built with."""
        return {"optimizers": self._own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember what those of the checkpoint were built with."""
        self._stored = state_dict["optimizers"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the config's settings in place of the checkpoint's, and say so."""
        for optimizer, own, stored in zip(trainer.optimizers, self._own, self._stored, strict=False):
            said = []
            for group, new, old in zip(optimizer.param_groups, own, stored, strict=True):
                changed = {name: value for name, value in new.items() if name in old and value != old[name]}
                kept = {name for name in changed if _shapes_state(name, old[name])}
                said += [f"{name} stays {old[name]}, for which the checkpoint has its state" for name in kept]
                said += [f"{name} {new[name]}, in the checkpoint {old[name]}" for name in changed if name not in kept]
                if "lr" in changed:
                    _scale(group, new["lr"], old["lr"])
                group.update({name: value for name, value in changed.items() if name not in ("lr", *kept)})
            _follow(trainer, optimizer, moved=bool(said))
            if said:
                rank_zero_info(f"{type(optimizer).__name__}: {'; '.join(dict.fromkeys(said))}")
        self._stored = []


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """Plain values of a parameter group; as its rate, the one that a schedule multiplies."""
    kinds = (bool, int, float, str, tuple, type(None))
    kept = {name: value for name, value in group.items() if isinstance(value, kinds)}  # all but the parameters
    rate = kept.pop("initial_lr", None)
    return kept if rate is None else {**kept, "lr": rate}


def _shapes_state(name: str, value: Any) -> bool:
    """Whether an optimiser with another value keeps other state: what is switched (`amsgrad`), momentum from none."""
    return value is None or isinstance(value, bool) or (name == "momentum" and not value)


def _scale(group: dict[str, Any], new: float, old: float) -> None:
    """Set a group's rate, at the share of it to which a schedule has come."""
    group["lr"] = new * (group["lr"] / old) if old else new
    if "initial_lr" in group:
        group["initial_lr"] = new


def _follow(trainer: Trainer, optimizer: Optimizer, *, moved: bool) -> None:
    """Have the schedules of an optimiser go on from its rates where they were moved.

    One of this package's has another share of them now if the config gives it another shape or more steps.
    """
    for config in trainer.lr_scheduler_configs:
        for scheduler in _with_parts(config.scheduler):
            if getattr(scheduler, "optimizer", None) is not optimizer or not hasattr(scheduler, "base_lrs"):
                continue
            ours = scheduler is config.scheduler and type(scheduler) is LambdaLR
            if not (ours or moved):
                continue
            scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
            if ours:
                shares = [share(scheduler.last_epoch) for share in scheduler.lr_lambdas]
                for group, share in zip(optimizer.param_groups, shares, strict=True):
                    group["lr"] = group["initial_lr"] * share
            scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]


def _with_parts(scheduler: Any) -> Iterator[Any]:
    """A scheduler, and those that it is made of."""
    yield scheduler
    for part in getattr(scheduler, "_schedulers", ()):
        yield from _with_parts(part)
