"""What a trained scorer is judged by: metrics that reduce across processes and the reports they return.

Names are imported on first use: the report functions need torch and rich only, so that `ipvrm judge` starts fast,
while the Metric classes bring in torchmetrics.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipvrm_lightning.metrics.average_at_k import AverageAtK, AverageAtKReport
    from ipvrm_lightning.metrics.best_of_n import BestOfN, BestOfNReport, rollout_scores
    from ipvrm_lightning.metrics.calibration import CalibrationReport, PrefixCalibration
    from ipvrm_lightning.metrics.judge import recompute
    from ipvrm_lightning.metrics.prefix_truth import PrefixTruth, PrefixTruthReport
    from ipvrm_lightning.metrics.score_file import read_scores, write_scores
    from ipvrm_lightning.metrics.step_f1 import StepF1
    from ipvrm_lightning.metrics.step_f1_judge import judge_solutions
    from ipvrm_lightning.metrics.step_f1_report import JudgeSettings, StepF1Report
    from ipvrm_lightning.metrics.tables import Report, plain_report, print_report, report_to_json

_HOME = {
    "AverageAtK": "average_at_k",
    "AverageAtKReport": "average_at_k",
    "BestOfN": "best_of_n",
    "BestOfNReport": "best_of_n",
    "CalibrationReport": "calibration",
    "PrefixCalibration": "calibration",
    "PrefixTruth": "prefix_truth",
    "PrefixTruthReport": "prefix_truth",
    "JudgeSettings": "step_f1_report",
    "Report": "tables",
    "StepF1": "step_f1",
    "StepF1Report": "step_f1_report",
    "judge_solutions": "step_f1_judge",
    "plain_report": "tables",
    "print_report": "tables",
    "read_scores": "score_file",
    "recompute": "judge",
    "report_to_json": "tables",
    "rollout_scores": "best_of_n",
    "write_scores": "score_file",
}

__all__ = [
    "AverageAtK",
    "AverageAtKReport",
    "BestOfN",
    "BestOfNReport",
    "CalibrationReport",
    "JudgeSettings",
    "PrefixCalibration",
    "PrefixTruth",
    "PrefixTruthReport",
    "Report",
    "StepF1",
    "StepF1Report",
    "judge_solutions",
    "plain_report",
    "print_report",
    "read_scores",
    "recompute",
    "report_to_json",
    "rollout_scores",
    "write_scores",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
