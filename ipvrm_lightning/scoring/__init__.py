"""Score solutions with a reward model of this package or anybody's: values, TD advantages and the first wrong step."""

from ipvrm_lightning.models.exported import Layout
from ipvrm_lightning.scoring.description import Description, describe
from ipvrm_lightning.scoring.model import PrefixValueModel
from ipvrm_lightning.scoring.results import RankedCandidate, ScoreRequest, SolutionScore, StepScore, TokenScore

__all__ = [
    "Description",
    "Layout",
    "PrefixValueModel",
    "RankedCandidate",
    "ScoreRequest",
    "SolutionScore",
    "StepScore",
    "TokenScore",
    "describe",
]
