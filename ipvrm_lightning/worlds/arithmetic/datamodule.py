"""`ArithmeticDataModule`: a built-in world's rollouts to train on and its five test sets."""

from __future__ import annotations

from typing import Any

from ipvrm_lightning.data import TokenizedDataModule, build_pairs
from ipvrm_lightning.data.batching import EvalLoader
from ipvrm_lightning.worlds.arithmetic.policy import check_policy
from ipvrm_lightning.worlds.arithmetic.records import LAYOUT, TEST_NAMES, read_test_set, read_trajectories
from ipvrm_lightning.worlds.arithmetic.settings import ArithmeticWorld, Size


class ArithmeticDataModule(TokenizedDataModule):
    """Rollouts of an arithmetic world's policy, labelled by their outcomes; the world is built where it is absent.

    Its test sets are, in this order, solutions with their first wrong step in format 0 (that of training) and in
    formats 1 and 2 (the same solutions in other words and another layout), groups of 8 rollouts to choose from, and
    solutions whose prefixes have known values. No test problem occurs in training.

    Args:
        size: "small", or "full" for more prompts; the published comparisons use "small".
        root: folder of worlds; None for the environment variable IPVRM_WORLDS, else outputs/worlds.
        overrides: settings of the world to replace, see `WorldSettings`.
        pairwise: windows of pairs, a right and a wrong response to one prompt.
        max_pairs_per_prompt: pairs built per prompt, at most.
        batch_size: examples (or pairs) per optimiser step over all processes.
        max_tokens: rows times longest row of one forward pass, at most.
        tokenizer: name or folder; None for that of the module it is used with.
        seed: of the world, and of pairs and order.
        num_workers: processes that build batches ahead; 0 builds them in the training process.
    """

    layout = LAYOUT

    def __init__(
        self,
        *,
        size: Size = "small",
        root: str | None = None,
        overrides: dict[str, Any] | None = None,
        pairwise: bool = False,
        max_pairs_per_prompt: int = 8,
        batch_size: int = 64,
        max_tokens: int = 16384,
        tokenizer: str | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size, max_tokens=max_tokens, tokenizer=tokenizer, seed=seed, num_workers=num_workers
        )
        self.world = ArithmeticWorld(size, seed, root, overrides)
        self.test_names = list(TEST_NAMES)
        self.pairwise, self.max_pairs_per_prompt = pairwise, max_pairs_per_prompt

    def prepare_data(self) -> None:
        """Build the world if it is absent, once per machine.

        Raises:
            ValueError: building it failed.
        """
        from ipvrm_lightning.worlds.arithmetic.build import ensure_built

        check_policy(self, self.world)
        ensure_built(self.world)

    def setup(self, stage: str | None = None) -> None:
        """Read and tokenise; runs once.

        Raises:
            ValueError: the policy in use is another world's, the world is absent, or there is no pair to train on.
        """
        if self.train_set is not None:
            return
        check_policy(self, self.world)
        if not self.world.is_built:
            raise ValueError(f"there is no arithmetic world at {self.world.folder}: call prepare_data first")
        folder, tokenizer = self.world.folder, self.load_tokenizer()
        train_set = read_trajectories(folder, "train", tokenizer)
        self.val_set = read_trajectories(folder, "validation", tokenizer)
        self.test_sets = [read_test_set(folder, name, tokenizer) for name in TEST_NAMES]
        if self.pairwise:
            self.train_pairs = build_pairs(train_set, max_pairs_per_prompt=self.max_pairs_per_prompt, seed=self.seed)
            if not self.train_pairs:
                raise ValueError(f"no prompt in {folder} has both a right and a wrong response: no pair to train on")
        self.train_set = train_set

    def test_dataloader(self) -> list[EvalLoader]:
        """One loader per test set.

        Raises:
            ValueError: the policy solved nothing in a form that can be judged.
        """
        for name, dataset in zip(self.test_names, self.test_sets, strict=True):
            if not len(dataset):
                raise ValueError(
                    f"{self.world.folder}: no solution of its policy can be judged, {name} is empty: fine-tune the"
                    " policy for longer (overrides: sft_target, sft_tokens)"
                )
        return super().test_dataloader()
