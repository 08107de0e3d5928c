"""What rows differ by from one of them: paired, because all were judged on the same problems or prompts.

A resample draws problems, the same ones for both rows, and, of a row with several runs, runs: what another test and
another training would change.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ipvrm_lightning.comparing.measures import ALL_PROMPTS, MEAN_OF_SOURCES, Choice, Column, Measured, measures
from ipvrm_lightning.comparing.runs import RESULTS, Run
from ipvrm_lightning.metrics.resampling import Resampled, percentile_interval
from ipvrm_lightning.metrics.score_file import numbered_lines, read_scores
from ipvrm_lightning.metrics.step_f1_judge import f1_on_resamples
from ipvrm_lightning.metrics.step_f1_report import JudgeSettings

_CONFIDENCE = 0.95


class _Test(NamedTuple):
    """What a run was judged on, item by item, and its numbers on resamples."""

    items: list[tuple[Any, ...]]
    numbers: dict[Column, Resampled]


def differences(rows: Sequence[Sequence[Run]], baseline: Sequence[Run], choice: Choice) -> list[dict[Column, Measured]]:
    """Means over the runs of each row less that of a baseline's runs, with 95 % bootstrap intervals.

    Args:
        rows: runs of each.
        baseline: runs of the row that the others are compared with.
        choice: of step F1.

    Raises:
        FileNotFoundError: the raw scores or responses of a run are not beside its results.
        ValueError: they cannot be read, are not those of its results, or of other solutions or prompts than the rest.
    """
    known = _on_resamples(baseline[0], choice)

    def over_runs(runs: Sequence[Run], seed: int) -> dict[Column, Resampled]:
        tests = [known if run is baseline[0] else _on_resamples(run, choice) for run in runs]
        for run, test in zip(runs, tests, strict=True):
            for one, other in zip(known.items, test.items, strict=False):
                if one != other:
                    raise ValueError(
                        f"{baseline[0].path} and {run.path} were not judged on the same: {one} and {other}"
                    )
        return {column: _over_runs([test.numbers[column] for test in tests], seed) for column in known.numbers}

    start = over_runs(baseline, seed=0)
    ends = [over_runs(runs, seed=1) for runs in rows]
    return [{column: _less(end[column], start[column]) for column in start} for end in ends]


def _over_runs(runs: Sequence[Resampled], seed: int) -> Resampled:
    """The mean over runs; on a resample, over as many that are drawn from them."""
    draws = torch.stack([run.draws for run in runs])
    drawn = torch.randint(len(runs), draws.shape, generator=torch.Generator().manual_seed(seed))
    return Resampled(math.fsum(run.value for run in runs) / len(runs), draws.gather(0, drawn).mean(0))


def _less(end: Resampled, start: Resampled) -> Measured:
    return Measured(end.value - start.value, *percentile_interval(end.draws - start.draws, _CONFIDENCE))


def _on_resamples(run: Run, choice: Choice) -> _Test:
    shown = measures(run.reports, choice)
    items: list[tuple[Any, ...]] = []
    numbers: dict[Column, Resampled] = {}
    for report, file, read in (("step_f1", "scores.jsonl", _step_f1), ("average_at_k", "responses.jsonl", _policy)):
        if report not in run.reports:
            continue
        path = run.path.parent / file
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not there; differences are taken from it")
        test = read(path, run.reports[report], choice)
        items += test.items
        numbers |= {column: found for column, found in test.numbers.items() if column in shown}
        for column in test.numbers.keys() & shown.keys():
            value, expected = test.numbers[column].value, shown[column].value
            if not math.isclose(value, expected, rel_tol=1e-9) and not (math.isnan(value) and math.isnan(expected)):
                raise ValueError(
                    f"{path}: gives {column.key} {value:.6g}, and {run.path.name} beside it {expected:.6g}:"
                    " they are not of one test"
                )
    if not numbers:
        raise ValueError(f"{run.path}: differences are of step F1 and of policies, and it has neither")
    return _Test(items, numbers)


def _step_f1(path: Path, report: dict[str, Any], choice: Choice) -> _Test:
    try:
        # runs that were judged with other folds are refused by their floors; other numbers of resamples are made equal
        settings = replace(JudgeSettings(**report["settings"]), resamples=JudgeSettings.resamples)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.parent / RESULTS}: step_f1.settings: {type(error).__name__}: {error}") from None
    solutions = read_scores(path)
    found = f1_on_resamples(solutions, settings, protocol=choice.protocol, origin=choice.threshold)
    items: list[tuple[Any, ...]] = sorted((one.subset, one.id, one.problem, one.label) for one in solutions)
    return _Test(items, {Column("step_f1", name): value for name, value in found.items()})


def _policy(path: Path, report: dict[str, Any], choice: Choice) -> _Test:
    from ipvrm_lightning.metrics.average_at_k import AverageAtK

    metric, items = AverageAtK(), []
    for line, where in numbered_lines(path):
        try:
            record = json.loads(line)
            source, prompt, scores = record["data_source"], record["id"], record["scores"]
            metric.update(torch.tensor(scores, dtype=torch.float32), [prompt] * len(scores), [source] * len(scores))
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            raise ValueError(f"{where}: not what a policy's test writes ({type(error).__name__}: {error})") from None
        items.append((source, prompt, len(scores)))
    shares = metric.on_resamples()
    averages = {**shares.sources, ALL_PROMPTS: shares.micro, MEAN_OF_SOURCES: shares.macro}
    numbers = {Column("avg_at_k", name): share for name, share in averages.items()}
    return _Test(sorted(items), numbers | {Column("pass_at_k", f"k = {k}"): one for k, one in shares.pass_at.items()})
