"""From the numbers of one solution's tokens to what a caller is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ipvrm_lightning import functional
from ipvrm_lightning.metrics.best_of_n import rollout_scores
from ipvrm_lightning.scoring.encoding import EncodedSolution
from ipvrm_lightning.scoring.results import RankBy, RankedCandidate, SolutionScore, StepScore, TokenScore


def answer(
    solution: EncodedSolution,
    logits: Tensor,
    scores: Mapping[str, Sequence[float]],
    *,
    protocol: str,
    threshold: float | None,
    advantages: Sequence[float] | None,
) -> SolutionScore:
    """A solution's score.

    Args:
        solution: as tokens.
        logits: logit that each prefix ends right, [T].
        scores: protocol to one score per step.
        protocol: that is compared with the threshold.
        threshold: None where there is none.
        advantages: TD advantage of each token, [T]; None where tokens are not asked for.

    Raises:
        ValueError: a value is not finite; says of which solution.
    """
    if not bool(logits.isfinite().all()):
        name = repr(solution.request.id or solution.request.steps[0][:60])
        raise ValueError(f"values of solution {name} are not finite: try float32")
    first = None if threshold is None else functional.first_error(scores[protocol], threshold)
    owners = solution.example.step_ids or []
    last = {step: position for position, step in enumerate(owners)}
    values, chances = logits.tolist(), logits.double().sigmoid().tolist()
    tokens = None
    if advantages is not None:
        columns = zip(solution.token_texts(), owners, advantages, values, strict=True)
        tokens = tuple(TokenScore(*column) for column in columns)
    return SolutionScore(
        id=solution.request.id,
        steps=tuple(
            StepScore(
                index=step,
                text=text,
                value=values[last[step]],
                probability=chances[last[step]],
                td_advantage=scores["step_sum"][step],
                scores={name: of_steps[step] for name, of_steps in scores.items()},
                is_first_error=step == first,
            )
            for step, text in enumerate(solution.request.steps)
        ),
        first_error=first,
        final_value=values[-1],
        final_probability=chances[-1],
        protocol=protocol,
        threshold=threshold,
        tokens=tokens,
    )


def ranked(scores: Sequence[SolutionScore], by: RankBy) -> list[RankedCandidate]:
    """Solutions of one problem, the best first; of equal ones, the one given first.

    Args:
        scores: of the candidates.
        by: see `PrefixValueModel.rank`.
    """
    finals = torch.tensor([score.final_value for score in scores], dtype=torch.float64)
    ways = rollout_scores(finals, [[step.scores[score.protocol] for step in score.steps] for score in scores])
    values = zip(ways[by].tolist(), scores, strict=True)
    candidates = [RankedCandidate(index, value, score) for index, (value, score) in enumerate(values)]
    return sorted(candidates, key=lambda candidate: -candidate.value)
