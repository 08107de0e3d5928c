"""`ArithmeticVerifier`: the built-in world's checker as a verifier of final answers."""

from __future__ import annotations

from collections.abc import Sequence

from ipvrm_lightning.rollouts.verifiers import Submission, Verdict, Verifier
from ipvrm_lightning.worlds.arithmetic.formats import FORMATS, split_steps
from ipvrm_lightning.worlds.arithmetic.problems import Answer


class ArithmeticVerifier(Verifier):
    """A response is right where its last line, in format 0, answers with the true value. Steps do not count."""

    def verify(self, submissions: Sequence[Submission]) -> list[Verdict]:
        """Verdicts in the order of the submissions."""
        return [self._verdict(submission) for submission in submissions]

    def _verdict(self, submission: Submission) -> Verdict:
        last = FORMATS[0].parse_line(split_steps(submission.response)[-1])
        answer = str(last.value) if isinstance(last, Answer) else None
        return Verdict(answer == submission.ground_truth, answer, None)
