"""What is compared: numbers of a run's reports, the floors beside them, and what must be equal for them to compare."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Choice(NamedTuple):
    """Which step F1.

    Args:
        protocol: of step scores.
        threshold: its origin, `cross_fitted` or `oracle`.
    """

    protocol: str
    threshold: str


class Column(NamedTuple):
    """A measure.

    Args:
        table: that it is shown in, a key of `TITLES`.
        name: within that table.
        is_share: shown in percent.
    """

    table: str
    name: str
    is_share: bool = True

    @property
    def key(self) -> str:
        """Its name among those of all tables."""
        return f"{self.table}.{self.name}"


class Measured(NamedTuple):
    """A number with its bootstrap interval, NaN where unknown."""

    value: float
    low: float = math.nan
    high: float = math.nan


TITLES = {
    "step_f1": "Step F1",
    "rollouts": "Whole responses by final value: best of n, AUROC, ECE",
    "prefix_truth": "Correlation of prefix values with the sampled truth",
    "avg_at_k": "avg@k by data source",
    "pass_at_k": "pass@k over all prompts",
}
ALL_PROMPTS = "all prompts"
MEAN_OF_SOURCES = "mean of sources"
RANDOM_SCORES = "random scores (floor)"
LONGEST_STEP = "longest step (floor)"
_FINAL, _LUCK, _ANY = "final_value", "pass@1", "oracle"
_KNOWN = ("step_f1", "best_of_n", "calibration", "prefix_truth", "average_at_k")
#: Columns of correlations, and what a report calls them.
_CORRELATIONS = {"all prefixes": "pearson", "their ranks": "spearman", "in a solution": "within_solution"}


def check_reports(reports: Mapping[str, Any], choice: Choice, where: str) -> None:
    """Refuse reports in which there is nothing to compare.

    Args:
        reports: of a test run.
        choice: of step F1.
        where: names the file.

    Raises:
        ValueError: none of them is known, or the protocol is not among those of the step F1.
    """
    if not any(name in reports for name in _KNOWN):
        raise ValueError(f"{where}: none of {', '.join(_KNOWN)} is among its reports, {sorted(reports)}")
    protocols = reports["step_f1"]["average"]["protocols"] if "step_f1" in reports else {choice.protocol: None}
    if choice.protocol not in protocols:
        raise ValueError(f"{where}: has no step F1 by {choice.protocol}; --protocol can be {', '.join(protocols)}")


def measures(reports: Mapping[str, Any], choice: Choice) -> dict[Column, Measured]:
    """The numbers of a test run.

    Args:
        reports: of its `results.json`.
        choice: of step F1.
    """
    found: dict[Column, Measured] = {}
    for name, subset in _subsets(reports).items():
        result = subset["protocols"][choice.protocol][choice.threshold]
        found[Column("step_f1", name)] = _measured(result["f1"], result["f1_interval"])
    for n, result in _chosen_by(reports, _FINAL).items():
        found[Column("rollouts", f"best of {n}")] = _measured(result["accuracy"], result["interval"])
    if "calibration" in reports:
        found[Column("rollouts", "AUROC")] = Measured(_number(reports["calibration"]["final_auroc"]))
        found[Column("rollouts", "ECE", is_share=False)] = Measured(_number(reports["calibration"]["final_ece"]))
    if "prefix_truth" in reports:
        for name, key in _CORRELATIONS.items():
            found[Column("prefix_truth", name, is_share=False)] = Measured(_number(reports["prefix_truth"][key]))
    if "average_at_k" in reports:
        policy = reports["average_at_k"]
        sources = policy["sources"] if len(policy["sources"]) > 1 else {}
        means = {ALL_PROMPTS: policy["micro"], **({MEAN_OF_SOURCES: policy["macro"]} if sources else {})}
        for name, result in {**sources, **means}.items():
            found[Column("avg_at_k", name)] = _measured(result["average"]["share"], result["average"]["interval"])
        for k, result in policy["micro"]["pass_at"].items():
            found[Column("pass_at_k", f"k = {k}")] = _measured(result["share"], result["interval"])
    return found


def floors(reports: Mapping[str, Any], choice: Choice) -> dict[str, dict[Column, float]]:
    """What is reached without knowing anything: scores drawn at random, or the lengths of steps alone.

    Args:
        reports: of a test run.
        choice: of step F1.
    """
    luck: dict[Column, float] = {}
    length: dict[Column, float] = {}
    for name, subset in _subsets(reports).items():
        luck[Column("step_f1", name)] = _number(subset["random"][f"{choice.threshold}_mean"])
        length[Column("step_f1", name)] = _number(subset["longest_step"][choice.threshold]["f1"])
    for n, result in _chosen_by(reports, _LUCK).items():
        luck[Column("rollouts", f"best of {n}")] = _number(result["accuracy"])
    if "calibration" in reports:
        luck[Column("rollouts", "AUROC")] = 0.5
    if "prefix_truth" in reports:
        luck |= {Column("prefix_truth", name, is_share=False): 0.0 for name in _CORRELATIONS}
    return {RANDOM_SCORES: luck, LONGEST_STEP: length}


def conditions(reports: Mapping[str, Any], choice: Choice) -> Iterator[tuple[str, Any]]:
    """What must be equal for numbers to be of the same data, each with its name; what the rest hangs on comes first.

    Args:
        reports: of a test run.
        choice: of step F1.
    """
    yield "kinds of reports", [name for name in _KNOWN if name in reports]
    subsets = _subsets(reports)
    yield "subsets of step F1", sorted(subsets)
    for name, subset in subsets.items():
        yield f"number of solutions in {name}", subset["solutions"]
        if name in reports["step_f1"]["subsets"]:
            yield f"number of problems in {name}", subset["problems"]
        yield f"number of solutions with an error in {name}", subset["with_error"]
    # they depend on labels, lengths and folds alone, and so tell apart data of the same size
    for row, values in floors({"step_f1": reports["step_f1"]} if subsets else {}, choice).items():
        for column, value in values.items():
            yield f"{row.replace(' (floor)', '')} floor of {column.name} (other solutions, or other folds)", value
    if "best_of_n" in reports:
        best = reports["best_of_n"]
        yield "n of best-of-n", list(_chosen_by(reports, _FINAL))
        yield "numbers of prompts of best-of-n", list(best["prompts_at"].values())
        yield "number of rollouts of best-of-n", best["rollouts"]
        for way in (_LUCK, _ANY):
            for n, result in _chosen_by(reports, way).items():
                yield f"{way} among {n} rollouts (other rollouts)", _number(result["accuracy"])
    if "calibration" in reports:
        yield "number of responses", reports["calibration"]["responses"]
        yield "number of right responses", reports["calibration"]["right"]
    if "prefix_truth" in reports:
        yield "number of prefixes whose truth is known", reports["prefix_truth"]["prefixes"]
        yield "variance of the truth (other prefixes)", _number(reports["prefix_truth"]["constant_brier"])
    if "average_at_k" in reports:
        policy = reports["average_at_k"]
        yield "data sources of avg@k", sorted(policy["sources"])
        yield "k of pass@k", list(policy["micro"]["pass_at"])
        for name, source in policy["sources"].items():
            yield f"number of prompts in {name}", source["prompts"]
            yield f"k of avg@k in {name}", [source["min_responses"], source["max_responses"]]


def _subsets(reports: Mapping[str, Any]) -> dict[str, Any]:
    if "step_f1" not in reports:
        return {}
    report = reports["step_f1"]
    return {**report["subsets"], **({"average": report["average"]} if len(report["subsets"]) > 1 else {})}


def _chosen_by(reports: Mapping[str, Any], way: str) -> dict[str, Any]:
    found: dict[str, Any] = reports["best_of_n"]["accuracy"].get(way, {}) if "best_of_n" in reports else {}
    return found


def _measured(value: Any, interval: Mapping[str, Any]) -> Measured:
    return Measured(_number(value), _number(interval["low"]), _number(interval["high"]))


def _number(value: Any) -> float:
    """A number of JSON, in which null is an unknown one."""
    if value is not None and not isinstance(value, (int, float)):
        raise TypeError(f"expected a number, found {value!r:.60}")
    return math.nan if value is None else float(value)
