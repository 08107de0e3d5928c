"""Score solutions with a trained or foreign reward model: values, TD advantages and the first wrong step."""

from ipvrm_lightning.scoring.results import RankedCandidate, ScoreRequest, SolutionScore, StepScore, TokenScore

__all__ = ["RankedCandidate", "ScoreRequest", "SolutionScore", "StepScore", "TokenScore"]
