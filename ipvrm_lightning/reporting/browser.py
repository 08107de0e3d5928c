"""What the page's browser of solutions shows, as plain values for its script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ipvrm_lightning.metrics.resampling import stable_hash
from ipvrm_lightning.metrics.score_file import in_stable_order
from ipvrm_lightning.metrics.step_f1_report import JudgeSettings
from ipvrm_lightning.metrics.token_file import TokenRecord
from ipvrm_lightning.types import ScoredSolution

#: Cross-fitted first: it is what a user gets.
ORIGINS = {"cross_fitted": "cross-fitted", "oracle": "oracle", "fixed": "fixed"}

_Key = tuple[str, str]


def check_same_run(solutions: Sequence[ScoredSolution], records: Sequence[TokenRecord], where: str) -> None:
    """Refuse tokens of other solutions than those that were scored.

    Args:
        solutions: of the score file.
        records: of the token file.
        where: the token file.

    Raises:
        ValueError: names the first solution that has no scores, or another label or number of steps.
    """
    scored = {(one.subset, one.id): one for one in solutions}
    for record in records:
        name = f"{where}: solution {record.id!r} of {record.subset!r}"
        one = scored.get((record.subset, record.id))
        if one is None:
            raise ValueError(f"{name}: not in the score file; both must be of one run")
        if one.label != record.label:
            raise ValueError(f"{name}: label: {record.label}, but {one.label} in the score file")
        if max(record.step_ids) >= len(one.step_lengths):
            raise ValueError(
                f"{name}: step_ids: {max(record.step_ids)} of {len(one.step_lengths)} steps in the score file"
            )


def choose(solutions: Sequence[ScoredSolution], records: Sequence[TokenRecord], most: int) -> list[ScoredSolution]:
    """The solutions to show: those with tokens before others, drawn by a hash of their ids, in stable order.

    Args:
        solutions: all.
        records: tokens of some of them.
        most: solutions to show, at most.
    """
    with_tokens = {(one.subset, one.id) for one in records}
    drawn = sorted(
        solutions,
        key=lambda one: ((one.subset, one.id) not in with_tokens, stable_hash(f"{one.subset}/{one.id}")),
    )
    return in_stable_order(drawn[:most])


def browser_data(
    solutions: Sequence[ScoredSolution],
    records: Sequence[TokenRecord],
    settings: JudgeSettings,
    most: int,
) -> dict[str, Any]:
    """All the script needs.

    Args:
        solutions: all of the run; thresholds are chosen on all of them.
        records: tokens of some of them.
        settings: as they were judged.
        most: solutions to show, at most.

    Returns:
        `protocols`, `origins` (name and title), `scale` (TD advantage of full shade) and `solutions`; of each its
        `found`: protocol to origin to first wrong step and threshold.
    """
    tokens = {(one.subset, one.id): one for one in records}
    shown = choose(solutions, records, most)
    found = _found(in_stable_order(solutions), settings)
    everywhere = [
        origin
        for origin in ORIGINS
        if all(origin in by_origin for by_protocol in found.values() for by_origin in by_protocol.values())
    ]
    kept = [tokens[key] for one in shown if (key := (one.subset, one.id)) in tokens]
    return {
        "protocols": list(shown[0].step_scores) if shown else [],
        "origins": [[origin, ORIGINS[origin]] for origin in everywhere],
        "scale": _full_shade(kept),
        "solutions": [_entry(one, tokens.get((one.subset, one.id)), found[one.subset, one.id]) for one in shown],
    }


def _found(solutions: Sequence[ScoredSolution], settings: JudgeSettings) -> dict[_Key, dict[str, dict[str, list[Any]]]]:
    """Solution to protocol to origin to predicted first wrong step and threshold."""
    from ipvrm_lightning.functional.step_f1 import first_error
    from ipvrm_lightning.metrics.step_f1_judge import thresholds_of_solutions

    parts: dict[str, list[ScoredSolution]] = {}
    for one in solutions:
        parts.setdefault(one.subset, []).append(one)
    found: dict[_Key, dict[str, dict[str, list[Any]]]] = {}
    for subset, part in parts.items():
        for protocol, by_origin in thresholds_of_solutions(subset, part, settings).items():
            for origin, thresholds in by_origin.items():
                for one, threshold in zip(part, thresholds, strict=True):
                    of_protocol = found.setdefault((subset, one.id), {}).setdefault(protocol, {})
                    if math.isfinite(threshold):
                        step = first_error(one.step_scores[protocol], threshold)
                        of_protocol[origin] = [step, _short(threshold, 4)]
    return found


def _entry(one: ScoredSolution, record: TokenRecord | None, found: dict[str, dict[str, list[Any]]]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": one.id,
        "subset": one.subset,
        "label": one.label,
        "answer": one.final_answer_correct,
        "lengths": one.step_lengths,
        "scores": {name: [_short(score, 4) for score in scores] for name, scores in one.step_scores.items()},
        "found": found,
    }
    if record is not None:
        entry |= {
            "prompt": record.prompt,
            "tokens": record.tokens,
            "steps": record.step_ids,
            "advantages": [_short(value) for value in record.td_advantages],
            "values": [_short(value) for value in record.values],
        }
    return entry


def _short(value: float, digits: int = 3) -> float:
    return float(f"{value:.{digits}g}")


def _full_shade(records: Sequence[TokenRecord]) -> float:
    """Size that 98 % of the TD advantages stay below."""
    sizes = sorted(abs(value) for record in records for value in record.td_advantages)
    return (sizes[int(0.98 * (len(sizes) - 1))] or sizes[-1] or 1.0) if sizes else 1.0
