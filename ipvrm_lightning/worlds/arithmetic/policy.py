"""`ArithmeticPolicy`: the policy of a built-in world, as a language model that any module can train or judge with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ipvrm_lightning.models.language_model import LanguageModelFactory, PretrainedLanguageModel
from ipvrm_lightning.worlds.arithmetic.settings import ArithmeticWorld, Size

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ArithmeticPolicy(LanguageModelFactory):
    """The fine-tuned policy of an arithmetic world, from which its rollouts were sampled; built if it is absent.

    Args:
        size: "small" for demonstrations, "full" for comparisons.
        seed: of the world.
        root: folder of worlds; None for the environment variable IPVRM_WORLDS, else outputs/worlds.
        overrides: settings of the world to replace, see `WorldSettings`.
    """

    def __init__(
        self,
        *,
        size: Size = "small",
        seed: int = 0,
        root: str | None = None,
        overrides: dict[str, Any] | None = None,
    ) -> None:
        self.world = ArithmeticWorld(size, seed, root, overrides)

    @property
    def has_adapters(self) -> bool:
        """False: the policy is small enough to be trained whole."""
        return False

    def build_model(self) -> PreTrainedModel:
        """Load the policy.

        Raises:
            ValueError: the world is absent and building it failed.
        """
        return self._pretrained().build_model()

    def build_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load its tokenizer.

        Raises:
            ValueError: the world is absent and building it failed.
        """
        return self._pretrained().build_tokenizer()

    def _pretrained(self) -> PretrainedLanguageModel:
        from ipvrm_lightning.worlds.arithmetic.build import ensure_built

        return PretrainedLanguageModel(name=str(ensure_built(self.world) / "policy"))


def check_policy(data: LightningDataModule, world: ArithmeticWorld) -> None:
    """Refuse data of another world than that of the policy they are used with.

    Args:
        data: data module of a world.
        world: that world.

    Raises:
        ValueError: the policy in use is another world's.
    """
    module: Any = None if data.trainer is None else data.trainer.lightning_module
    model = getattr(module, "language_model", None)
    if isinstance(model, ArithmeticPolicy) and model.world.folder != world.folder:
        raise ValueError(
            f"the data are of the arithmetic world {world.folder}, the policy is of {model.world.folder}: give"
            " both the same size, seed, root and overrides"
        )
