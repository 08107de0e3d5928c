"""A verifier for texts of random models."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ipvrm_lightning.rollouts.verifiers import Submission, Verdict, Verifier


class EvenLength(Verifier):
    """Right where the response has an even number of characters.

    Args:
        modulus: what the length is divided by.
        delay: seconds that a judgement takes.
    """

    incidental = frozenset({"delay"})

    def __init__(self, *, modulus: int = 2, delay: float = 0.0) -> None:
        self.modulus, self.delay = modulus, delay

    def verify(self, submissions: Sequence[Submission]) -> list[Verdict]:
        time.sleep(self.delay)
        lengths = [len(submission.response) for submission in submissions]
        return [Verdict(length % self.modulus == 0, str(length), None) for length in lengths]
