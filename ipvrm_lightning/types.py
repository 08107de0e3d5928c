"""What travels between data, models, modules and metrics: one dataclass per thing, a shape per field.

Letters: B sequences, L tokens of the longest sequence, T tokens of the longest response, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

Unit = Literal["sequences", "tokens", "pairs"]


@dataclass
class TrajectoryBatch:
    """Right-padded prompt + response sequences. A response is one contiguous run that ends its sequence.

    Args:
        input_ids: token ids of prompt and response, padded on the right, long, [B, L].
        lengths: tokens of prompt and response together, long, [B].
        response_starts: index of the first response token in its row, at least 1, long, [B].
        index: position of each row in its dataset, long, [B].
        outcomes: 1 where the final answer is right, 0 where it is wrong, float, [B].
        group_ids: equal for rollouts of the same prompt, long, [B].
        pairs: rows (chosen, rejected) of this batch for pairwise objectives, long, [P, 2].
        step_ids: the step each response token lies in, -1 for none (end of turn, padding), long, [B, T].
        step_labels: index of the first wrong step, -1 where every step is right, long, [B].
        true_values: probability that a continuation of the prefix that ends with this token is right, NaN where it was
            not estimated, float, [B, T].
        outcome_weights: weight of each row in a balanced objective, float, [B].
        margins: margin of each row in a balanced objective, float, [B].

    It counts its `tokens`, its `response_tokens` and its `longest_response` when it is made, on the CPU: to read these
    from lengths on a GPU is to wait for all that the GPU was asked to do before. With other lengths, make another one
    (`dataclasses.replace`).

    Raises:
        ValueError: a response starts at the first token, or past the end of its row.
    """

    input_ids: Tensor
    lengths: Tensor
    response_starts: Tensor
    index: Tensor
    outcomes: Tensor | None = None
    group_ids: Tensor | None = None
    pairs: Tensor | None = None
    step_ids: Tensor | None = None
    step_labels: Tensor | None = None
    true_values: Tensor | None = None
    outcome_weights: Tensor | None = None
    margins: Tensor | None = None
    tokens: int = field(init=False)
    response_tokens: int = field(init=False)
    longest_response: int = field(init=False)

    def __post_init__(self) -> None:
        lengths, starts = self.lengths.tolist(), self.response_starts.tolist()
        responses = [length - start for length, start in zip(lengths, starts, strict=True)]
        if min(starts, default=1) < 1 or min(responses, default=0) < 0:
            raise ValueError(f"responses cannot start at {starts} in rows of {lengths} tokens: a prompt comes first")
        self.tokens, self.response_tokens = sum(lengths), sum(responses)
        self.longest_response = max(responses, default=0)

    @property
    def response_lengths(self) -> Tensor:
        """Response tokens of each row, long, [B]."""
        return self.lengths - self.response_starts

    def count(self, unit: Unit) -> int:
        """Sequences, response tokens or pairs in this batch."""
        if unit == "sequences":
            return int(self.lengths.numel())
        if unit == "tokens":
            return self.response_tokens
        return 0 if self.pairs is None else int(self.pairs.shape[0])


@dataclass
class Window:
    """Everything one optimiser step sees: micro-batches of this process and the counts of the whole window.

    A loss that is a mean over `unit` is exact for the window when each micro-batch's mean is weighted by its share of
    `counts[unit]` (`shares`): micro-batches of any size and any number of processes give the same step.

    Args:
        micro_batches: this process's share; every process has equally many.
        counts: sequences, tokens and pairs of the window over all processes.
        lacks_last: there was none left for this process, and the last one only keeps step with the others: an example
            that another process computes, of weight 0.
    """

    micro_batches: list[TrajectoryBatch]
    counts: dict[Unit, int] = field(default_factory=dict)
    lacks_last: bool = False

    def shares(self, unit: Unit) -> list[float]:
        """Weight of each micro-batch's mean over `unit` in the mean of the whole window."""
        shares = [batch.count(unit) / self.counts[unit] for batch in self.micro_batches]
        return [*shares[:-1], 0.0] if self.lacks_last else shares


@dataclass(frozen=True)
class Example:
    """One tokenised trajectory and what is known of it.

    Args:
        input_ids: prompt and response token ids.
        response_start: index of the first response token.
        group: key of the prompt it answers.
        outcome: 1 right, 0 wrong, None unknown.
        step_ids: one per response token, -1 for none.
        step_label: index of the first wrong step, -1 for none, None unknown.
        true_values: one per response token, NaN where unknown.
        metadata: what reports need, primitives only. Where outcomes are judged that is `prompt`, the prompt's key, and
            for majority votes `answer`, the final answer; where steps are, `id`, `subset`, `problem` (its key),
            `step_lengths` (characters of each step) and, where it is known, `shared_problem` (as `ScoredSolution` has
            it). Tables of tokens, and errors in training, name `id` and `subset`.
    """

    input_ids: list[int]
    response_start: int
    group: str
    outcome: int | None = None
    step_ids: list[int] | None = None
    step_label: int | None = None
    true_values: list[float] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def response_length(self) -> int:
        """Response tokens."""
        return len(self.input_ids) - self.response_start


@dataclass(frozen=True)
class PromptExample:
    """One prompt to answer, and what its answers are checked against.

    Args:
        input_ids: tokens of the prompt, up to where a response starts.
        prompt: text or chat messages, as in the data, begun by the system prompt where one was put before it.
        ground_truth: what a verifier compares the answer with.
        data_source: the part of a benchmark it belongs to.
        id: unique among the prompts it was read with.
    """

    input_ids: list[int]
    prompt: str | list[dict[str, str]]
    ground_truth: str
    data_source: str
    id: str


@dataclass
class PromptBatch:
    """Prompts that one process answers at a time.

    Args:
        prompts: none where a process has fewer batches than the others.
    """

    prompts: list[PromptExample]


#: The mean over subsets, where reports and tables name it beside them: no subset may be named so.
AVERAGE = "average"


@dataclass(frozen=True)
class ScoredSolution:
    """Raw scores of one solution: enough to recompute every metric without a model.

    Args:
        id: the record's own id.
        subset: the part of the benchmark it belongs to.
        problem: key of its problem; thresholds are cross-fitted on other problems.
        label: index of the first wrong step, -1 where every step is right.
        step_scores: protocol to one score per step, higher is better.
        step_lengths: characters of each step, for the longest-step floor.
        final_answer_correct: whether the final answer is right, None unknown.
        final_value: value of the whole response, the objective's `prefix_logits` at its end; None where the scorer has
            none.
        shared_problem: key of its problem in every subset, where the same problem has another `problem` in another
            subset; None where `problem` is that key.
    """

    id: str
    subset: str
    problem: str
    label: int
    step_scores: dict[str, list[float]]
    step_lengths: list[int]
    final_answer_correct: bool | None = None
    final_value: float | None = None
    shared_problem: str | None = None

    @property
    def resampled_as(self) -> str:
        """The problem it is drawn with where problems are resampled."""
        return self.problem if self.shared_problem is None else self.shared_problem
