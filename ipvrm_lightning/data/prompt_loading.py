"""Which prompts a training step or an evaluation batch sees.

A training step of reinforcement learning does not know beforehand how many prompts it needs: it samples more than it
keeps, and fills up. It is therefore handed the stream, not a batch, and the loader only counts steps.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from ipvrm_lightning.data.planning import in_fair_order
from ipvrm_lightning.types import PromptBatch, PromptExample


def fingerprint(prompts: Sequence[PromptExample]) -> str:
    """Hash of ids, tokens and ground truths: equal for equal prompts in the same order."""
    digest = hashlib.blake2b(digest_size=16)
    for prompt in prompts:
        digest.update(json.dumps([prompt.id, prompt.ground_truth, list(prompt.input_ids)]).encode())
    return digest.hexdigest()


class PromptStream:
    """An endless sequence of permutations of the prompts, the same on every process.

    A permutation is a function of (`seed`, pass) alone: no prompt comes twice within a pass, whatever the sizes drawn.

    Args:
        prompts: at least one.
        seed: of the permutations.

    Raises:
        ValueError: there is no prompt.
    """

    def __init__(self, prompts: Sequence[PromptExample], *, seed: int) -> None:
        if not prompts:
            raise ValueError("no prompt to train on")
        self.prompts, self.seed = prompts, seed
        self.pass_number = 0
        self.position = 0
        self._order = self._permutation()

    def take(self, count: int) -> list[PromptExample]:
        """The next prompts; around the end of a pass the same prompt may be among them twice."""
        taken = []
        for _ in range(count):
            if self.position == len(self._order):
                self.seek(self.pass_number + 1, 0)
            taken.append(self.prompts[self._order[self.position]])
            self.position += 1
        return taken

    def seek(self, pass_number: int, position: int) -> None:
        """Go on with this pass, so many prompts into it."""
        self.pass_number, self.position = pass_number, position
        self._order = self._permutation()

    def _permutation(self) -> list[int]:
        order = list(range(len(self.prompts)))
        # A string seed is hashed with SHA-512: equal on every platform and Python version.
        random.Random(f"{self.seed}-{self.pass_number}").shuffle(order)
        return order


class PromptLoader:
    """Hands the prompt stream to every training step and can stop and go on anywhere.

    An epoch is as many steps as `batch_size` prompts each go into the data; the stream runs on through epochs. Not a
    `DataLoader`, so that Lightning puts no sampler in; its `state_dict` is what Lightning saves in a checkpoint.

    Args:
        prompts: to train on.
        batch_size: prompts that a step is meant to use, over all processes.
        seed: of the order.

    Raises:
        ValueError: there is no prompt, or `batch_size` is below 1.
    """

    def __init__(self, prompts: Sequence[PromptExample], *, batch_size: int, seed: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.stream = PromptStream(prompts, seed=seed)
        self.batch_size = batch_size
        self._fingerprint = fingerprint(prompts)
        self._epoch = 0
        self._steps = 0
        self._resume = 0

    def __len__(self) -> int:
        return max(1, len(self.stream.prompts) // self.batch_size)

    def __iter__(self) -> Iterator[PromptStream]:
        # The body runs at the first `next`: Lightning makes iterators that it does not use.
        self._steps, self._resume = self._resume, 0
        while self._steps < len(self):
            self._steps += 1
            yield self.stream
        self.set_epoch(self._epoch + 1)

    @property
    def sampler(self) -> PromptLoader:
        """Where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Count the steps of another epoch from its start; the current one is left where it is. Lightning calls this.

        The number of steps alone could not tell: an epoch may end before them all (`limit_train_batches`).
        """
        if epoch != self._epoch:
            self._epoch, self._steps, self._resume = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the next step and the next prompt are: primitives only, equal on all processes."""
        return {
            "seed": self.stream.seed,
            "pass": self.stream.pass_number,
            "position": self.stream.position,
            "epoch": self._epoch,
            "steps": self._resume or self._steps,
            "prompts": self._fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: the state is of other prompts or another seed, so that no exact continuation exists.
        """
        for name, own in (("seed", self.stream.seed), ("prompts", self._fingerprint)):
            if state[name] != own:
                raise ValueError(
                    f"cannot resume: the checkpoint was saved with {name} {state[name]}, this run has {own}"
                )
        self.stream.seek(int(state["pass"]), int(state["position"]))
        self._epoch, self._steps = int(state["epoch"]), int(state["steps"])
        self._resume = self._steps


class PromptEvalLoader:
    """Every prompt once over all processes, in batches of like length and nearly equal size.

    The order of the batches is drawn, the same each time: the first few are a fair sample. Each process gets equally
    many; where there are fewer prompts than processes, some are empty.

    Args:
        prompts: to answer.
        batch_size: prompts of a batch, at most.
        rank: this process.
        world_size: processes.

    Raises:
        ValueError: `batch_size` is below 1.
    """

    def __init__(
        self, prompts: Sequence[PromptExample], *, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"eval_batch_size must be at least 1, not {batch_size}")
        ordered = sorted(prompts, key=lambda prompt: -len(prompt.input_ids))
        needed = -(-len(ordered) // batch_size)
        count = -(-needed // world_size) * world_size
        ends = [len(ordered) * number // count for number in range(count + 1)] if count else [0]
        batches = in_fair_order([ordered[start:end] for start, end in pairwise(ends)], world_size)
        self.batches = [PromptBatch(batch) for batch in batches[rank::world_size]]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[PromptBatch]:
        return iter(self.batches)
