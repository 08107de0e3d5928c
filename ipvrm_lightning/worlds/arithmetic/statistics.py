"""What a world turned out to be: how often its policy is right, and where it goes wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ipvrm_lightning.worlds.arithmetic.checker import Verdict
from ipvrm_lightning.worlds.arithmetic.problems import Problem

_BINS = 5


def summarise(
    answers: Sequence[tuple[Problem, Verdict]], *, truth: Sequence[float | None], left_out: int
) -> dict[str, Any]:
    """Statistics of sampled responses.

    Args:
        answers: problems and verdicts.
        truth: sampled values of prefixes, None where there is none.
        left_out: test solutions with a malformed line.

    Returns:
        Shares of all responses, but `error_operations`: of the lines of each operation up to the first wrong line, the
        share that is that first wrong line.
    """
    total = len(answers)
    wrong = [(problem, verdict) for problem, verdict in answers if verdict.first_error >= 0]
    steps = Counter(len(verdict.lines) for _, verdict in answers)
    positions = Counter(min(_BINS - 1, _BINS * verdict.first_error // len(verdict.lines)) for _, verdict in wrong)
    known = [value for value in truth if value is not None]
    return {
        "responses": total,
        "pass_at_1": sum(verdict.correct for _, verdict in answers) / total,
        "with_wrong_step": len(wrong) / total,
        "wrong_step_but_right_answer": sum(verdict.correct for _, verdict in wrong) / total,
        "malformed": sum(None in verdict.lines for _, verdict in answers) / total,
        "mean_steps": sum(len(verdict.lines) for _, verdict in answers) / total,
        "steps": {str(count): steps[count] / total for count in sorted(steps)},
        "first_error_relative_position": [positions[place] / max(1, len(wrong)) for place in range(_BINS)],
        "error_operations": _by_operation(answers),
        "test_solutions_left_out": left_out,
        "true_values": {
            "prefixes": len(known),
            "mean": sum(known) / max(1, len(known)),
            "strictly_between_0_and_1": sum(0 < value < 1 for value in known) / max(1, len(known)),
        },
    }


def _by_operation(answers: Sequence[tuple[Problem, Verdict]]) -> dict[str, float]:
    seen: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for problem, verdict in answers:
        names = [*(definition.operator for definition in problem.definitions), "answer"]
        error = verdict.first_error
        seen.update(names[: error + 1] if error >= 0 else names)
        if 0 <= error < len(names):
            failed[names[error]] += 1
    return {name: failed[name] / seen[name] for name in sorted(seen)}
