"""`AverageAtK`: how often a policy is right, and whether any of k tries is, by data source and over all prompts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ipvrm_lightning.functional.best_of_n import oracle
from ipvrm_lightning.functional.masking import check_outcomes
from ipvrm_lightning.metrics.records import RecordMetric
from ipvrm_lightning.metrics.resampling import (
    Interval,
    Resampled,
    bootstrap_weights,
    mean_of,
    percentile_interval,
    seed_of,
)

if TYPE_CHECKING:
    from rich.table import Table


@dataclass
class ShareResult:
    """A share with its bootstrap interval over prompts; NaN where no prompt counts.

    Args:
        share: mean over the prompts that count.
        interval: confidence interval.
        prompts: prompts that count.
    """

    share: float
    interval: Interval
    prompts: int


@dataclass
class SourceResult:
    """Results of the prompts of one data source, or of all.

    Args:
        prompts: number of prompts.
        responses: number of their responses.
        min_responses: fewest responses of a prompt.
        max_responses: most responses of a prompt.
        average: avg@k: mean over prompts of the share of right responses among all k of the prompt.
        pass_at: k to pass@k: whether any of k responses is right, in expectation over all choices of k of a prompt's
            responses, mean over prompts; prompts with fewer than k are left out and `prompts` counts the others.
        cut_off: share of responses that did not end by themselves; NaN where it is not known of all.
        mean_length: tokens of a response; NaN where they are not known of all.
    """

    prompts: int
    responses: int
    min_responses: int
    max_responses: int
    average: ShareResult
    pass_at: dict[int, ShareResult]
    cut_off: float
    mean_length: float


@dataclass
class MacroResult:
    """Means over data sources, every source counting the same whatever its number of prompts.

    Args:
        sources: number of data sources.
        average: mean of the sources' avg@k; its interval is over prompts drawn within each source.
        pass_at: k to mean of the sources' pass@k; NaN where a source has no prompt with k responses.
    """

    sources: int
    average: ShareResult
    pass_at: dict[int, ShareResult]


@dataclass
class AverageAtKReport:
    """Accuracy of a policy.

    Args:
        sources: data source to its results.
        micro: all prompts, every prompt counting the same ("all").
        macro: means over data sources, every source counting the same.
    """

    sources: dict[str, SourceResult]
    micro: SourceResult
    macro: MacroResult

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dictionaries."""
        return asdict(self)

    def tables(self) -> list[Table]:
        """The report as rich tables."""
        from ipvrm_lightning.metrics.rollout_tables import average_at_k_tables

        return average_at_k_tables(self)


class _Prompt(NamedTuple):
    key: str
    source: str
    outcomes: Tensor
    finished: list[bool | None]
    lengths: list[int | None]

    def average(self) -> float:
        return float(self.outcomes.mean())

    def pass_at(self, k: int) -> float:
        return oracle(self.outcomes, torch.zeros(len(self.outcomes), dtype=torch.long), n=k)


class _Estimate(NamedTuple):
    """A mean over prompts, on the data and on resamples, and how many prompts count."""

    share: Resampled
    prompts: int


class SharesOnResamples(NamedTuple):
    """What is a mean over prompts, on the data and on resamples of the prompts.

    Args:
        sources: data source to avg@k.
        micro: avg@k over all prompts.
        macro: mean of the sources' avg@k.
        pass_at: k to pass@k over all prompts.
    """

    sources: dict[str, Resampled]
    micro: Resampled
    macro: Resampled
    pass_at: dict[int, Resampled]


class AverageAtK(RecordMetric):
    """avg@k and pass@k of sampled responses, k being what each prompt has, by data source and over all.

    pass@k is the unbiased estimator 1 - C(n - c, k) / C(n, k) for c right of n responses (Chen et al.,
    arXiv:2107.03374), for k = 1, 2, 4, ... up to the most responses a prompt has.

    Args:
        resamples: bootstrap resamples of prompts for the confidence intervals.
        confidence: probability the intervals should cover.
        seed: of the resamples.
        kwargs: of torchmetrics' Metric.
    """

    def __init__(self, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.resamples = resamples
        self.confidence = confidence
        self.seed = seed

    def update(
        self,
        outcomes: Tensor,
        prompts: Sequence[str],
        data_sources: Sequence[str],
        finished: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> None:
        """Add responses.

        Args:
            outcomes: 1 right, 0 wrong, [B].
            prompts: key of each response's prompt, the same in all processes, [B].
            data_sources: the part of a benchmark each prompt belongs to, [B].
            finished: whether the response ended by itself, False where it was cut off, bool, [B].
            lengths: tokens of each response, [B].

        Raises:
            ValueError: sizes that differ, or an outcome other than 0 and 1.
        """
        nothing = [None] * len(prompts)
        columns = {
            "outcomes": outcomes.tolist(),
            "data_sources": list(data_sources),
            "finished": nothing if finished is None else finished.bool().tolist(),
            "lengths": nothing if lengths is None else lengths.long().tolist(),
        }
        for name, column in columns.items():
            if len(column) != len(prompts):
                raise ValueError(f"{name}: expected one for each of {len(prompts)} responses, found {len(column)}")
        check_outcomes(outcomes)
        self.put_lines(
            json.dumps([source, key, int(outcome), ended, length]) + "\n"
            for key, outcome, source, ended, length in zip(prompts, *columns.values(), strict=True)
        )

    def compute(self) -> AverageAtKReport:
        """Judge the responses of all processes.

        Raises:
            ValueError: no responses.
        """
        prompts = _by_prompt(self.read_lines())
        sources, tries = _by_source(prompts), _tries(prompts)
        return AverageAtKReport(
            sources={name: self._source(group, tries) for name, group in sources.items()},
            micro=self._source(prompts, tries),
            macro=self._macro(list(sources.values()), tries),
        )

    def on_resamples(self) -> SharesOnResamples:
        """The shares on resamples of the prompts; those of two policies are the same where their prompts are.

        Raises:
            ValueError: no responses.
        """
        prompts = _by_prompt(self.read_lines())
        sources = {name: self._average(group).share for name, group in _by_source(prompts).items()}
        return SharesOnResamples(
            sources=sources,
            micro=self._average(prompts).share,
            macro=mean_of(list(sources.values())),
            pass_at={k: self._pass_at(prompts, k).share for k in _tries(prompts)},
        )

    def _source(self, prompts: list[_Prompt], tries: list[int]) -> SourceResult:
        sizes = [len(prompt.outcomes) for prompt in prompts]
        ended = [value for prompt in prompts for value in prompt.finished]
        lengths = [value for prompt in prompts for value in prompt.lengths]
        return SourceResult(
            prompts=len(prompts),
            responses=sum(sizes),
            min_responses=min(sizes),
            max_responses=max(sizes),
            average=self._result(self._average(prompts)),
            pass_at={k: self._result(self._pass_at(prompts, k)) for k in tries},
            cut_off=1 - _mean(ended),
            mean_length=_mean(lengths),
        )

    def _macro(self, sources: list[list[_Prompt]], tries: list[int]) -> MacroResult:
        return MacroResult(
            sources=len(sources),
            average=self._result(_mean_of([self._average(prompts) for prompts in sources])),
            pass_at={k: self._result(_mean_of([self._pass_at(prompts, k) for prompts in sources])) for k in tries},
        )

    def _average(self, prompts: list[_Prompt]) -> _Estimate:
        return self._estimate(prompts, 1, _Prompt.average)

    def _pass_at(self, prompts: list[_Prompt], k: int) -> _Estimate:
        return self._estimate(prompts, k, lambda prompt: prompt.pass_at(k))

    def _estimate(self, prompts: list[_Prompt], k: int, function: Callable[[_Prompt], float]) -> _Estimate:
        enough = [prompt for prompt in prompts if len(prompt.outcomes) >= k]
        if not enough:
            return _Estimate(Resampled(math.nan, torch.full((self.resamples,), math.nan, dtype=torch.float64)), 0)
        values = torch.tensor([function(prompt) for prompt in enough], dtype=torch.float64)
        keys = [f"{prompt.source}\n{prompt.key}" for prompt in enough]
        # sources draw independently of each other, so that a mean over them has the interval it should
        seed = seed_of(sorted({prompt.source for prompt in enough}), self.seed)
        weights = bootstrap_weights(keys, resamples=self.resamples, seed=seed)
        return _Estimate(Resampled(float(values.mean()), (weights * values).mean(1)), len(enough))

    def _result(self, estimate: _Estimate) -> ShareResult:
        value, draws = estimate.share
        return ShareResult(value, percentile_interval(draws, self.confidence), estimate.prompts)


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(values) else math.nan


def _mean_of(estimates: list[_Estimate]) -> _Estimate:
    return _Estimate(
        mean_of([estimate.share for estimate in estimates]), sum(estimate.prompts for estimate in estimates)
    )


def _by_source(prompts: Sequence[_Prompt]) -> dict[str, list[_Prompt]]:
    sources: dict[str, list[_Prompt]] = {}
    for prompt in prompts:
        sources.setdefault(prompt.source, []).append(prompt)
    return sources


def _tries(prompts: Sequence[_Prompt]) -> list[int]:
    """1, 2, 4, ... up to the most responses of a prompt."""
    most = max(len(prompt.outcomes) for prompt in prompts)
    return [2**power for power in range(most.bit_length())]


def _by_prompt(lines: Sequence[str]) -> list[_Prompt]:
    if not lines:
        raise ValueError("no responses to average over")
    groups: dict[tuple[str, str], list[Any]] = {}
    # sorted as text, so that nothing depends on the order they arrived in
    for line in sorted(lines):
        source, key, *record = json.loads(line)
        groups.setdefault((source, key), []).append(record)
    return [
        _Prompt(
            key=key,
            source=source,
            outcomes=torch.tensor([record[0] for record in group], dtype=torch.float64),
            finished=[record[1] for record in group],
            lengths=[record[2] for record in group],
        )
        for (source, key), group in sorted(groups.items())
    ]
