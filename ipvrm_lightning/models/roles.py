"""Policy, reward model and reference: adapters on one base, or models of their own.

With adapters, policy and reward model share one copy of the base, whose bare weights are the reference. PEFT's own
`set_adapter` and `disable_adapter` switch `requires_grad` off on adapters that are not active, and a loss already in
the graph would then train nothing without a word: here layers are only told which adapter to use, and told back. Under
gradient checkpointing the forward pass is repeated in backward, so backward belongs within `use` as well.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ipvrm_lightning.failures import library_errors
from ipvrm_lightning.models.checkpoints import check_same_parameters
from ipvrm_lightning.models.exported import ADAPTER_WEIGHTS
from ipvrm_lightning.models.language_model import LanguageModelFactory
from ipvrm_lightning.models.logprobs import check_output_head
from ipvrm_lightning.models.output_head import base_language_model
from ipvrm_lightning.models.product_precision import multiplies_shorter, shorten_frozen
from ipvrm_lightning.models.shard_loading import load_safetensors
from ipvrm_lightning.models.sharding import fill, is_sharded, seemingly_whole
from ipvrm_lightning.pretrained import load_model, positions

Role = Literal["policy", "reward", "reference"]

_MODEL = "model."
#: Rates of what is drawn in training besides dropout: layers left out, and factors on what a router reads.
_NOISE = {"layerdrop", "jitter_noise", "input_jitter_noise", "moe_jitter_eps"}


class Roles(nn.Module, ABC):
    """The models of a reinforcement-learning run by the part they play."""

    @abstractmethod
    def use(self, role: Role) -> AbstractContextManager[Any]:
        """The model in a role, for as long as the context is open. Contexts nest.

        The reference is the supervised model that training started from, in evaluation mode and without gradient.
        """

    @abstractmethod
    def trained(self, role: Role) -> dict[str, nn.Parameter]:
        """What an optimiser updates for a role, by its name in this module."""

    @abstractmethod
    def add_reward(self) -> None:
        """Make the reward model, equal to the reference: only training needs it."""

    @abstractmethod
    def load_reward(self, weights: dict[str, Tensor]) -> None:
        """Load the reward model.

        Args:
            weights: `state_dict` of a checkpoint of `IPVRMModule`, which holds what was trained.

        Raises:
            ValueError: names or shapes differ from this config's; names the first that does.
        """

    @abstractmethod
    def load_exported_reward(self, folder: Path) -> None:
        """Load the reward model.

        Args:
            folder: that `ipvrm export` wrote: an adapter alone for roles that are adapters, else a whole model.

        Raises:
            ValueError: names or shapes differ from this config's; names the first that does.
        """


class SharedBase(Roles):
    """Adapters for policy and reward model on one base.

    Args:
        factory: builds the base with one adapter, which becomes the policy's.
    """

    _ADAPTERS: dict[Role, str] = {"policy": "default", "reward": "reward"}  # noqa: RUF012

    def __init__(self, factory: LanguageModelFactory) -> None:
        super().__init__()
        self.model: Any = _prepared(factory)

    def add_reward(self) -> None:
        """Add an adapter of the policy's shape for the reward model."""
        model: Any = self.model
        with seemingly_whole(model):
            model.add_adapter("reward", model.peft_config["default"])
        _without_dropout(model)
        for parameter in (self.trained("policy") | self.trained("reward")).values():
            parameter.requires_grad_(True)
        self._set((["default"], False))

    @contextmanager
    def use(self, role: Role) -> Iterator[Any]:
        """The base with the role's adapter, or with none."""
        before = self._state()
        was_training = self.model.training
        self._set(([self._ADAPTERS[role]], False) if role != "reference" else (before[0], True))
        try:
            if role != "reference":
                yield self.model
                return
            self.model.eval()
            with torch.no_grad():
                yield self.model
        finally:
            self._set(before)
            if role == "reference":
                self.model.train(was_training)

    def trained(self, role: Role) -> dict[str, nn.Parameter]:
        """Parameters of the role's adapter."""
        part = f".{self._ADAPTERS[role]}."
        return {name: parameter for name, parameter in self.named_parameters() if part in f"{name}."}

    def load_reward(self, weights: dict[str, Tensor]) -> None:
        """Load an adapter that `IPVRMModule` trained."""
        _load(self.trained("reward"), {name.replace(".default", ".reward"): w for name, w in weights.items()})

    def load_exported_reward(self, folder: Path) -> None:
        """Load an adapter."""
        from peft import get_peft_model_state_dict
        from safetensors.torch import load_file

        # by the names that PEFT gives its files
        own = get_peft_model_state_dict(self.model, adapter_name="reward", save_embedding_layers=False)
        with library_errors(f"{folder / ADAPTER_WEIGHTS}: the adapter cannot be read"):
            weights = load_file(folder / ADAPTER_WEIGHTS)
        _load(own, weights)

    def _layers(self) -> Iterator[Any]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        return (module for module in self.model.modules() if isinstance(module, BaseTunerLayer))

    def _state(self) -> tuple[list[str], bool]:
        """Active adapters, and whether all are off."""
        layer = next(self._layers())
        return list(layer.active_adapters), bool(layer.disable_adapters)

    def _set(self, state: tuple[list[str], bool]) -> None:
        for layer in self._layers():
            layer._active_adapter, layer._disable_adapters = list(state[0]), state[1]


class SeparateModels(Roles):
    """A model for each role, all of them trained whole; the reference is loaded on first use.

    Args:
        factory: builds the supervised model that each of them starts from.
    """

    def __init__(self, factory: LanguageModelFactory) -> None:
        super().__init__()
        self.policy: Any = _prepared(factory)
        self.reward: Any = None
        self._factory = factory
        # in a list: a frozen copy is no part of the state that checkpoints hold
        self._reference: list[nn.Module] = []

    def add_reward(self) -> None:
        """Build the reward model."""
        self.reward = _prepared(self._factory)

    @contextmanager
    def use(self, role: Role) -> Iterator[Any]:
        """The role's model."""
        if role != "reference":
            yield getattr(self, role)
            return
        if not self._reference:
            reference: Any = self._factory.build_model().requires_grad_(False).eval()
            if multiplies_shorter(self.policy.device):
                shorten_frozen(reference)
            self._reference = [reference.to(self.policy.device)]
        with torch.no_grad():
            yield self._reference[0]

    def trained(self, role: Role) -> dict[str, nn.Parameter]:
        """Parameters of the role's model."""
        return {name: parameter for name, parameter in self.named_parameters() if name.startswith(f"{role}.")}

    def load_reward(self, weights: dict[str, Tensor]) -> None:
        """Load a model that `IPVRMModule` trained."""
        _load(self.trained("reward"), {f"reward.{name.removeprefix(_MODEL)}": w for name, w in weights.items()})

    def load_exported_reward(self, folder: Path) -> None:
        """Load a whole model."""
        if any(map(is_sharded, self.trained("reward").values())):
            load_safetensors(self.reward, folder)
            return
        trust = getattr(self._factory, "trust_remote_code", False)
        stored = load_model(str(folder), dtype=self.reward.dtype, trust_remote_code=trust)
        _load(dict(self.reward.named_parameters()), dict(stored.named_parameters()))


def build_roles(factory: LanguageModelFactory) -> Roles:
    """Adapters on one base where the language model has adapters, else models of their own; no reward model yet."""
    return (SharedBase if factory.has_adapters else SeparateModels)(factory)


def _prepared(factory: LanguageModelFactory) -> Any:
    model = factory.build_model()
    _without_dropout(model)
    check_output_head(model)
    return model


def _without_dropout(model: nn.Module) -> None:
    """With it, a policy's ratio to itself would not be 1. Some models keep its rate as a number, or in their config."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        config = vars(module).get("config")
        for holder in (module,) if config is None else (module, config):
            for name, value in vars(holder).items():
                if isinstance(value, float) and ("dropout" in name or name in _NOISE):
                    setattr(holder, name, 0.0)


@torch.no_grad()
def check_repeats(model: nn.Module) -> None:
    """Refuse a policy that still draws random numbers while it trains: its ratio to itself would not be 1.

    Args:
        model: the policy.

    Raises:
        ValueError: names the model.
    """
    language_model = base_language_model(model)
    embedding = language_model.get_input_embeddings().weight
    if embedding.device.type == "meta":
        return
    length = min(64, positions(language_model.config) or 64)  # tokens that are drawn for now and then are among them
    input_ids = torch.arange(length, device=embedding.device)[None] % embedding.shape[0]
    cuda = embedding.is_cuda
    was_training = language_model.training
    language_model.train()
    with torch.random.fork_rng([embedding.device] if cuda else []):
        state = torch.cuda.get_rng_state if cuda else torch.get_rng_state
        before = state()
        first, second = (language_model(input_ids=input_ids, use_cache=False).logits for _ in range(2))
        drawn = not torch.equal(before, state())  # else a GPU has added up in another order
    language_model.train(was_training)
    if drawn and not torch.equal(first, second):
        raise ValueError(
            f"{type(language_model).__name__} draws random numbers while it trains, which cannot be switched off: a"
            " policy's ratio to itself would not be 1, so that it cannot be trained as one"
        )


@torch.no_grad()
def _load(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    check_same_parameters(parameters, weights, what="the reward model's checkpoint")
    for name, parameter in parameters.items():
        fill(parameter, lambda start, end, name=name: weights[name][start:end])  # type: ignore[misc]
