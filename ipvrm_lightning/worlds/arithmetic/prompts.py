"""`ArithmeticPromptData`: a built-in world's problems as prompts to answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ipvrm_lightning.data import PromptModule
from ipvrm_lightning.types import PromptExample
from ipvrm_lightning.worlds.arithmetic.formats import FORMATS
from ipvrm_lightning.worlds.arithmetic.policy import check_policy
from ipvrm_lightning.worlds.arithmetic.problems import Problem
from ipvrm_lightning.worlds.arithmetic.records import LAYOUT
from ipvrm_lightning.worlds.arithmetic.settings import ArithmeticWorld, Size


class ArithmeticPromptData(PromptModule):
    """Problems of an arithmetic world with their answers; the world is built where it is absent.

    Training prompts are those whose rollouts reward models learn from, so that an online reward model meets what it
    knows; validation and test problems occur in neither, nor in the policy's fine-tuning.

    Args:
        size: "small", or "full" for more prompts; the published comparisons use "small".
        root: folder of worlds; None for the environment variable IPVRM_WORLDS, else outputs/worlds.
        overrides: settings of the world to replace, see `WorldSettings`.
        batch_size: prompts per step over all processes.
        eval_batch_size: prompts of an evaluation batch of one process, at most.
        max_validation_prompts: use so many of the validation problems; None for all.
        tokenizer: name or folder; None for that of the module it is used with.
        seed: of the world, and of the order of prompts.
    """

    layout = LAYOUT

    def __init__(
        self,
        *,
        size: Size = "small",
        root: str | None = None,
        overrides: dict[str, Any] | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 128,
        max_validation_prompts: int | None = None,
        tokenizer: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, tokenizer=tokenizer, seed=seed)
        self.world = ArithmeticWorld(size, seed, root, overrides)
        self.max_validation_prompts = max_validation_prompts

    def prepare_data(self) -> None:
        """Build the world if it is absent, once per machine.

        Raises:
            ValueError: the policy in use is another world's, or building failed.
        """
        from ipvrm_lightning.worlds.arithmetic.build import ensure_built

        check_policy(self, self.world)
        ensure_built(self.world)

    def setup(self, stage: str | None = None) -> None:
        """Make the problems again and tokenise them; runs once."""
        from ipvrm_lightning.worlds.arithmetic.build import split_problems

        if self.train_prompts:
            return
        train, validation, test = split_problems(self.world.settings)
        self.train_prompts = self._prompts("train", train)
        self.val_prompts = self._prompts("validation", validation[: self.max_validation_prompts])
        self.test_prompts = self._prompts("test", test)

    def _prompts(self, name: str, problems: Sequence[Problem]) -> list[PromptExample]:
        tokenizer = self.load_tokenizer()
        texts = [FORMATS[0].render_prompt(problem) for problem in problems]
        return [
            PromptExample(
                input_ids=list(tokenizer(text).input_ids),
                prompt=text,
                ground_truth=str(problem.answer),
                data_source="arithmetic",
                id=f"{name}-{number}",
            )
            for number, (text, problem) in enumerate(zip(texts, problems, strict=True))
        ]
