"""Comparing runs: groups of one setting each, their means and spreads, and what forbids to compare."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from ipvrm_lightning.comparing.measures import Choice, Column, Measured, check_reports, conditions, floors, measures
from ipvrm_lightning.comparing.runs import Run
from ipvrm_lightning.comparing.settings import (
    differing_as_well,
    differing_within,
    named_setting,
    telling_settings,
)


class Cell(NamedTuple):
    """A measure of a group.

    Args:
        mean: over its runs, NaN where one of them does not know it.
        spread: sample standard deviation over its runs, NaN of a single one.
        low: of a single run's bootstrap interval, NaN of several or where unknown.
        high: of that interval.
    """

    mean: float
    spread: float
    low: float
    high: float


class Group(NamedTuple):
    """Runs of one setting.

    Args:
        values: of the settings that groups are made by.
        runs: in the order given.
        cells: by measure.
        differences: from the baseline, where one was named and this is not it; by measure.
    """

    values: list[Any]
    runs: list[Run]
    cells: dict[Column, Cell]
    differences: dict[Column, Measured]


class Comparison(NamedTuple):
    """What is shown.

    Args:
        choice: of step F1.
        by: keys that groups are made by.
        groups: in the order of their values.
        baseline: the group that differences are from; None where none was named.
        floors: row to measure to number.
        pooled: settings in which runs of a group differ.
        confounded: settings in which groups differ as well, beside those that they are made by.
        notes: what to know of single runs.
    """

    choice: Choice
    by: list[str]
    groups: list[Group]
    baseline: Group | None
    floors: dict[str, dict[Column, float]]
    pooled: list[str]
    confounded: list[str]
    notes: list[str]


def compare(runs: Sequence[Run], choice: Choice, *, by: Sequence[str] = (), against: Sequence[Run] = ()) -> Comparison:
    """Group runs and summarise each group.

    Args:
        runs: at least one.
        choice: of step F1.
        by: settings as a user names them; those that tell the runs apart if none.
        against: those of the runs whose group the other groups are compared with; none for no differences.

    Raises:
        FileNotFoundError: the raw scores that differences are taken from are not there.
        ValueError: reports that cannot be read, were made on different data, or are of one trained model twice; or a
            setting that there is not; or `against` are runs of several groups, or of the only one.
    """
    found = _measures_of_same_data(runs, choice)
    settings = [run.settings for run in runs]
    keys = list(dict.fromkeys(named_setting(name, settings) for name in by)) or telling_settings(settings)
    members: dict[tuple[Any, ...], list[int]] = {}
    for index, one in enumerate(settings):
        members.setdefault(tuple(one.get(key) for key in keys), []).append(index)
    groups = [
        Group(list(values), [runs[index] for index in indices], _cells([found[index] for index in indices]), {})
        for values, indices in sorted(members.items(), key=lambda item: [_rank(value) for value in item[0]])
    ]
    for group in groups:
        _check_own_training(group.runs)
    pooled = differing_within([run.settings for run in group.runs] for group in groups)
    baseline = _baseline(groups, against) if against else None
    if baseline is not None:
        from ipvrm_lightning.comparing.differences import differences  # needs torch, and the tables alone do not

        others = [group for group in groups if group is not baseline]
        less = differences([group.runs for group in others], baseline.runs, choice)
        changed = iter(group._replace(differences=one) for group, one in zip(others, less, strict=True))
        groups = [group if group is baseline else next(changed) for group in groups]
    return Comparison(
        choice=choice,
        by=keys,
        groups=groups,
        baseline=baseline,
        floors=floors(runs[0].reports, choice),
        pooled=pooled,
        confounded=[name for name in differing_as_well(settings, keys) if name not in pooled],
        notes=[*(run.note for run in runs if run.note), *_same_numbers(runs)],
    )


def _baseline(groups: Sequence[Group], against: Sequence[Run]) -> Group:
    paths = {run.path.resolve() for run in against}
    found = [group for group in groups if any(run.path.resolve() in paths for run in group.runs)]
    if len(found) > 1:
        raise ValueError(f"--against {against[0].path.parent.parent}: its runs are in {len(found)} rows: name one run")
    if len(groups) == 1:
        raise ValueError(f"--against {against[0].path}: all runs are in its row, and there is no other")
    return found[0]


def _measures_of_same_data(runs: Sequence[Run], choice: Choice) -> list[dict[Column, Measured]]:
    """The measures of each run; refuses runs that were not judged alike."""
    found, known = [], []
    for run in runs:
        try:
            check_reports(run.reports, choice, str(run.path))
            found.append(measures(run.reports, choice))
            known.append({**dict(conditions(run.reports, choice)), **_split_of(run)})
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            what = f"{type(error).__name__}: {error}"
            raise ValueError(f"{run.path}: not a results.json that `ipvrm test` writes ({what})") from error
        for name, value in known[0].items():
            if not _equal(value, known[-1].get(name)):
                raise ValueError(
                    f"{runs[0].path} and {run.path} were not judged on the same data: {name}: {_shown(value)} against "
                    f"{_shown(known[-1].get(name))}"
                )
    return found


def _split_of(run: Run) -> dict[str, Any]:
    """What chose the prompts of a policy's test, of which its report knows no more than the number."""
    if "average_at_k" not in run.reports:
        return {}
    test, validation, seed = (
        run.settings.get(f"test.data.init_args.{name}") for name in ("test", "validation", "seed")
    )
    return {"data.seed, which drew the prompts": None if test or validation else seed}


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9) or (math.isnan(one) and math.isnan(other))
    return bool(one == other)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _cells(found: Sequence[Mapping[Column, Measured]]) -> dict[Column, Cell]:
    if len(found) == 1:
        return {column: Cell(one.value, math.nan, one.low, one.high) for column, one in found[0].items()}
    cells = {}
    for column in found[0]:
        values = [one[column].value for one in found]
        known = not any(map(math.isnan, values))
        mean, spread = (statistics.fmean(values), statistics.stdev(values)) if known else (math.nan, math.nan)
        cells[column] = Cell(mean, spread, math.nan, math.nan)
    return cells


def _rank(value: Any) -> tuple[int, float, str]:
    """Where a value stands among others: none, numbers by size, texts."""
    if isinstance(value, (int, float)):
        return 1, float(value), ""
    return (0, 0.0, "") if value is None else (2, 0.0, value)


def _check_own_training(runs: Sequence[Run]) -> None:
    """Refuse two tests of one training in a group, which would pass for two runs."""
    for one, other in combinations(runs, 2):
        if one.trained_in is not None and one.trained_in == other.trained_in:
            raise ValueError(
                f"{one.path} and {other.path} both judge what {one.trained_in} trained and are not two runs: "
                "leave one out, or tell its checkpoints apart with --by ckpt_path"
            )


def _same_numbers(runs: Sequence[Run]) -> list[str]:
    """Runs that agree in every digit, which runs with other random numbers do not."""
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(json.dumps(run.reports, sort_keys=True), []).append(run)
    return [
        f"{' and '.join(str(run.path) for run in same)}: the same numbers in every digit"
        + _although(differing_within([[run.settings for run in same]]))
        + ": one run in all but name, and no spread. seed_everything alone leaves the order of the data as it is; "
        "data.seed changes it"
        for same in alike.values()
        if len(same) > 1
    ]


def _although(differing: Sequence[str]) -> str:
    return f", although they differ in {', '.join(differing)}" if differing else ""
