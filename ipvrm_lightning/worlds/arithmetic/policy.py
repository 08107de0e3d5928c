"""`ArithmeticPolicy`: the policy of a built-in world, as a language model that any module can train or judge with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ipvrm_lightning.models.four_bits import check_quantization
from ipvrm_lightning.models.language_model import (
    Divide,
    LanguageModelFactory,
    LoRA,
    PretrainedLanguageModel,
)
from ipvrm_lightning.worlds.arithmetic.settings import ArithmeticWorld, Size

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ArithmeticPolicy(LanguageModelFactory):
    """The fine-tuned policy of an arithmetic world, from which its rollouts were sampled; built if it is absent.

    Args:
        size: "small", or "full" for more prompts; the published comparisons use "small".
        seed: of the world.
        root: folder of worlds; None for the environment variable IPVRM_WORLDS, else outputs/worlds.
        overrides: settings of the world to replace, see `WorldSettings`.
        lora: train adapters on frozen weights; None trains the weights.
        quantization: `nf4` loads the weights in 4 bits; needs `lora`.
        attn_implementation: of `PretrainedLanguageModel`.
        compile: compile the decoder blocks; not for policies in training.
    """

    def __init__(
        self,
        *,
        size: Size = "small",
        seed: int = 0,
        root: str | None = None,
        overrides: dict[str, Any] | None = None,
        lora: LoRA | None = None,
        quantization: Literal["nf4"] | None = None,
        attn_implementation: str | None = None,
        compile: bool = False,
    ) -> None:
        check_quantization(quantization, lora)
        self.world = ArithmeticWorld(size, seed, root, overrides)
        self.lora, self.quantization = lora, quantization
        self.attn_implementation, self.compile = attn_implementation, compile

    def check_sharding(self) -> None:
        """Refuse what `PretrainedLanguageModel` refuses.

        Raises:
            ValueError: weights in 4 bits, or DoRA.
        """
        self._in("").check_sharding()

    def build_sharded(self, divide: Divide) -> PreTrainedModel:
        """Load the policy, each process its own rows of it.

        Raises:
            ValueError: the world is absent and building it failed.
        """
        return self._pretrained().build_sharded(divide)

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

        return self._in(str(ensure_built(self.world) / "policy"))

    def _in(self, folder: str) -> PretrainedLanguageModel:
        return PretrainedLanguageModel(
            name=folder,
            lora=self.lora,
            quantization=self.quantization,
            attn_implementation=self.attn_implementation,
            compile=self.compile,
        )


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
