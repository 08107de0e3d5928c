"""What `AverageAtK` computes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ipvrm_lightning.metrics.resampling import Interval

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
        from ipvrm_lightning.metrics.average_at_k_tables import average_at_k_tables

        return average_at_k_tables(self)
