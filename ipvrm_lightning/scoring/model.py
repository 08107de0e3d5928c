"""`PrefixValueModel`: a reward model that is only read, of this package or anybody's, and what it says of solutions."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, get_args

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from ipvrm_lightning.data.batching import EvalLoader
from ipvrm_lightning.data.dataset import TrajectoryDataset
from ipvrm_lightning.data.schema import Prompt
from ipvrm_lightning.devices import refuse_mps
from ipvrm_lightning.failures import library_errors
from ipvrm_lightning.models.exported import Layout
from ipvrm_lightning.models.frozen import load_frozen
from ipvrm_lightning.models.logprobs import check_vocabulary, response_scores
from ipvrm_lightning.models.output_head import DEFAULT_CHUNK_SIZE, base_language_model
from ipvrm_lightning.models.token_scores import TokenScores, steps_by_protocol, token_scores
from ipvrm_lightning.objectives import Objective
from ipvrm_lightning.pretrained import positions
from ipvrm_lightning.scoring.answers import answer, ranked
from ipvrm_lightning.scoring.description import Description, Part, describe
from ipvrm_lightning.scoring.encoding import EncodedSolution, SolutionEncoder
from ipvrm_lightning.scoring.opening import open_encoder
from ipvrm_lightning.scoring.requests import as_steps
from ipvrm_lightning.scoring.results import RankBy, RankedCandidate, ScoreRequest, SolutionScore
from ipvrm_lightning.types import TrajectoryBatch

WINDOW = 128


class PrefixValueModel:
    """Scores solutions: the value after every step, what each step adds to it, and the first wrong step.

    Numbers are those of `ipvrm test` and `ipvrm predict` with `--trainer.precision 32-true` on the same rows, whatever
    is scored beside them.

    Args:
        description: which models, and how their scores read; from `describe`.
        encoder: its tokenizer, from `open_encoder`; loaded where it is not given.
        device: to compute on; None for a GPU where there is one.
        max_length: tokens of problem and solution, at most, where less than what the models can read.
        max_tokens: rows times longest row of one forward pass, at most.
        chunk_size: response tokens whose logits exist at one time.

    Raises:
        ValueError: a model cannot be loaded, or is not what it should be.
    """

    def __init__(
        self,
        description: Description,
        *,
        encoder: SolutionEncoder | None = None,
        device: str | torch.device | None = None,
        max_length: int | None = None,
        max_tokens: int = 16384,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
    ) -> None:
        if max_tokens < 1 or chunk_size < 1:
            raise ValueError(f"max_tokens and chunk_size must be at least 1, found {max_tokens} and {chunk_size}")
        self.description, self.max_tokens, self.chunk_size = description, max_tokens, chunk_size
        refuse_mps(device)
        wanted = device or ("cuda" if torch.cuda.is_available() else "cpu")
        with library_errors(f"device {wanted} cannot be used"):
            self.device = torch.empty(0, device=wanted).device
        self.encoder = encoder or open_encoder(description, max_length=max_length)
        self.model: Any = self._load(description.reward)
        self.reference: Any = None if description.reference is None else self._load(description.reference)
        self.value_head = self._load_value_head()
        self._check_sizes()

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        reference: str | None = None,
        beta: float | None = None,
        objective: Objective | None = None,
        layout: Layout | None = None,
        protocol: str | None = None,
        threshold: float | None = None,
        revision: str | None = None,
        gguf_file: str | None = None,
        dtype: str | None = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> PrefixValueModel:
        """Load an export of `ipvrm export`, or any pair of models, adapters or GGUF files.

        Args:
            name: see `describe`.
            reference: see `describe`.
            beta: scale of the log-ratios of what is no export, whose values are their means times beta (IPVRM).
            objective: how log-ratios read as values, where they do otherwise: `ImplicitPRM(beta=0.05)` reads sums.
            layout: how problem and steps become text; that of the export, or `Layout()`. With another one than the
                export's, its thresholds do not count.
            protocol: of the step scores that are compared with the threshold.
            threshold: steps that score below it are called wrong; that of the export.
            revision: branch, tag or commit on the hub.
            gguf_file: GGUF file in `name`.
            dtype: precision to compute in; that of training, or `float32`.
            trust_remote_code: run code that a repository brings.
            options: of the constructor: `device`, `max_length`, `max_tokens`, `chunk_size`.

        Raises:
            ValueError: what is missing, or does not go together.
        """
        found = describe(
            name,
            reference=reference,
            objective=objective,
            beta=beta,
            revision=revision,
            gguf_file=gguf_file,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
        )
        read = found.read_as(layout=layout, protocol=protocol, threshold=threshold)
        if (note := read.rounding_note) is not None:
            warnings.warn(f"{name}: {note} (ipvrm export --results), or give threshold", stacklevel=2)
        return cls(read, **options)

    def score(self, problem: Prompt, steps: Sequence[str] | str, *, tokens: bool = False) -> SolutionScore:
        """Score one solution.

        Args:
            problem: text, or chat messages with `role` and `content`.
            steps: texts, or one text whose steps are parted by blank lines.
            tokens: give values and TD advantages of every token, too.

        Raises:
            DataError: the solution cannot be scored as it is.
        """
        template = self.encoder.layout.step_template
        return self.score_many([ScoreRequest(problem, as_steps(steps, template))], tokens=tokens)[0]

    def score_many(self, requests: Sequence[ScoreRequest], *, tokens: bool = False) -> list[SolutionScore]:
        """Score solutions, sorted by length among themselves; answers come in the order of the requests.

        Args:
            requests: solutions.
            tokens: give values and TD advantages of every token, too.

        Raises:
            DataError: a solution cannot be scored as it is; says which.
        """
        return self.score_encoded(self.encoder.encode(requests), tokens=tokens)

    def stream(
        self, requests: Iterable[ScoreRequest], *, window: int = WINDOW, tokens: bool = False
    ) -> Iterator[SolutionScore]:
        """Score solutions as they come, in their order.

        Args:
            requests: any iterable, read a window at a time.
            window: solutions that are sorted by length and scored together.
            tokens: give values and TD advantages of every token, too.

        Raises:
            DataError: a solution cannot be scored as it is; says which.
        """
        if window < 1:
            raise ValueError(f"window must be at least 1, found {window}")
        remaining, first = iter(requests), 0
        while chunk := list(islice(remaining, window)):
            yield from self.score_encoded(self.encoder.encode(chunk, first=first), tokens=tokens)
            first += len(chunk)

    def rank(
        self, problem: Prompt, candidates: Sequence[Sequence[str] | str], *, by: RankBy = "final_value"
    ) -> list[RankedCandidate]:
        """Solutions of one problem, the best first; of equal ones, the one given first.

        Args:
            problem: text or messages.
            candidates: each a list of steps, or a text whose steps are parted by blank lines.
            by: `final_value` of the whole solution, its lowest step score (`min_step`), or their mean (`mean_step`), by
                the protocol of the description.

        Raises:
            DataError: a candidate cannot be scored as it is; says which.
        """
        if by not in (known := get_args(RankBy)):
            raise ValueError(f"by must be one of {', '.join(known)}, found {by!r}")
        template = self.encoder.layout.step_template
        requests = [ScoreRequest(problem, as_steps(candidate, template)) for candidate in candidates]
        return ranked(self.score_many(requests), by)

    @torch.no_grad()
    def score_encoded(self, solutions: Sequence[EncodedSolution], *, tokens: bool = False) -> list[SolutionScore]:
        """Score what the encoder made.

        Args:
            solutions: from `encoder.encode`.
            tokens: give values and TD advantages of every token, too.

        Raises:
            ValueError: a token that the model does not have, or a value that is not finite; says which solution.
        """
        if not solutions:
            return []
        self.encoder.check_lengths(solutions)
        dataset = TrajectoryDataset(solution.example for solution in solutions)
        for model in (self.model, self.reference):
            if model is not None:
                check_vocabulary(model, dataset.largest_id)
        found: dict[int, SolutionScore] = {}
        for batch in EvalLoader(dataset, max_tokens=self.max_tokens):
            rows = [solutions[index] for index in batch.index.tolist()]
            answers = self._answers(rows, move_data_to_device(batch, self.device), tokens)
            found |= zip(batch.index.tolist(), answers, strict=True)
        return [found[index] for index in range(len(solutions))]

    def token_scores(self, batch: TrajectoryBatch) -> TokenScores:
        """Log-ratios, head values or endogenous rewards, as a test run reads them."""
        return token_scores(
            self.model,
            batch,
            self.description.objective,
            reference=self._reference_log_probs,
            value_head=self.value_head,
            chunk_size=self.chunk_size,
            temperature=self.description.temperature,
        )

    def _answers(
        self, solutions: Sequence[EncodedSolution], batch: TrajectoryBatch, tokens: bool
    ) -> Iterator[SolutionScore]:
        described = self.description
        scores, mask = self.token_scores(batch)
        logits = described.objective.prefix_logits(scores, mask).cpu()
        scores = scores.cpu()
        steps = steps_by_protocol(scores, batch, described.objective.beta)
        for row, (solution, length) in enumerate(zip(solutions, batch.response_lengths.tolist(), strict=True)):
            advantages = (described.objective.beta * scores[row, :length]).tolist()
            yield answer(
                solution,
                logits[row, :length],
                {protocol: of_rows[row] for protocol, of_rows in steps.items()},
                protocol=described.protocol,
                threshold=described.threshold,
                advantages=advantages if tokens else None,
            )

    def _reference_log_probs(self, batch: TrajectoryBatch) -> Tensor:
        scores = partial(
            response_scores, chunk_size=self.chunk_size, temperature=self.description.temperature
        )  # fmt: skip
        if self.reference is not None:
            return scores(self.reference, batch).log_probs
        with self.model.disable_adapter():
            return scores(self.model, batch).log_probs

    def _load(self, part: Part) -> Any:
        described = self.description
        model = load_frozen(
            part.model,
            adapter=part.adapter,
            dtype=described.dtype,
            trust_remote_code=described.trust_remote_code,
        )
        return model if part.model.quantization is not None else model.to(self.device)

    def _load_value_head(self) -> nn.Linear | None:
        if self.description.value_head is None:
            return None
        from safetensors.torch import load_file

        head = nn.Linear(base_language_model(self.model).get_output_embeddings().weight.shape[1], 1, bias=False)
        with library_errors(f"{self.description.value_head}: not the value head of this model"):
            head.load_state_dict(load_file(self.description.value_head))
        return head.requires_grad_(False).to(self.device)

    def _check_sizes(self) -> None:
        """Lower the encoder's limit to what the models can read, and compare their vocabularies' sizes."""
        models = [model for model in (self.model, self.reference) if model is not None]
        for model in models:
            limit = positions(base_language_model(model).config)
            if limit is not None and limit < (self.encoder.max_length or limit + 1):
                self.encoder.max_length = limit
        part = self.description.reference
        sizes = [base_language_model(model).get_input_embeddings().weight.shape[0] for model in models]
        if part is not None and self.encoder.foreign_ids is None and len(set(sizes)) > 1:
            raise ValueError(
                f"{part.name} has another vocabulary than {self.description.name}: {sizes[1]} tokens against {sizes[0]}"
            )
