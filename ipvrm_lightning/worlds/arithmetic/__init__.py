"""The built-in world: chains of integer arithmetic, a tiny policy trained on the spot, exact labels, sampled truth."""

from ipvrm_lightning.worlds.arithmetic.datamodule import ArithmeticDataModule
from ipvrm_lightning.worlds.arithmetic.policy import ArithmeticPolicy
from ipvrm_lightning.worlds.arithmetic.prompts import ArithmeticPromptData
from ipvrm_lightning.worlds.arithmetic.settings import ArithmeticWorld
from ipvrm_lightning.worlds.arithmetic.verifier import ArithmeticVerifier

__all__ = ["ArithmeticDataModule", "ArithmeticPolicy", "ArithmeticPromptData", "ArithmeticVerifier", "ArithmeticWorld"]
