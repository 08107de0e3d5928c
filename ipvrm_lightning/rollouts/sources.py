"""Where responses come from: a model in this process, or (`endpoint`) a server."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ipvrm_lightning.devices import refuse_mps
from ipvrm_lightning.failures import library_errors
from ipvrm_lightning.pretrained import add_config, add_content
from ipvrm_lightning.types import PromptExample

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ipvrm_lightning.models.language_model import LanguageModelFactory


WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf")
CONFIGS = ("config.json", "generation_config.json")


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn.

    Args:
        group_size: responses per prompt.
        temperature: divides the logits; 0 takes the most likely token.
        top_p: keeps the fewest most likely tokens that together have this probability.
        max_new_tokens: longest response, tokens; one that reaches it without an end was cut off and counts as wrong.
        seed: of all draws; a response depends on it, its prompt's id and its number.

    Raises:
        ValueError: a setting out of range.
    """

    group_size: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("group_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"sampling.{name} must be at least 1, not {getattr(self, name)}")
        if not (self.temperature >= 0 and 0 < self.top_p <= 1):  # nor NaN
            found = f"{self.temperature} and {self.top_p}"
            raise ValueError(f"sampling needs temperature >= 0 and 0 < top_p <= 1, not {found}")

    def request_seed(self, key: str, number: int) -> int:
        """A number below 2**31 for one response, the same whenever and wherever it is asked for."""
        digest = hashlib.blake2b(f"{self.seed}-{key}-{number}".encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") >> 1


class Response(NamedTuple):
    """One sampled response.

    Args:
        text: without the token that ended it.
        finished: it ended by itself; False where it was cut off.
        tokens: its length with the token that ended it; None where it is not known.
    """

    text: str
    finished: bool
    tokens: int | None


class Answered(NamedTuple):
    """A prompt and all of its responses."""

    prompt: PromptExample
    responses: list[Response]


class Refused(NamedTuple):
    """A prompt that gets no responses, while others may.

    Args:
        prompt: that was asked.
        reason: one line.
    """

    prompt: PromptExample
    reason: str


class ResponseSource(ABC):
    """Answers prompts."""

    #: Constructor arguments that change no response: a store may be continued with other ones.
    incidental: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def build_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model that answers."""

    def weights(self) -> str | None:
        """Hash of the weights that answer, where another model could take their name; None where it cannot be known."""
        return None

    @abstractmethod
    def respond(self, prompts: Sequence[PromptExample], sampling: Sampling) -> Iterator[Answered | Refused]:
        """Answer prompts, each as soon as all of its responses are there, in any order.

        Args:
            prompts: to answer.
            sampling: how.
        """


class InProcess(ResponseSource):
    """A language model in this process, on one device. For several, serve the model and use `Endpoint`.

    Args:
        language_model: what answers.
        batch_size: responses sampled at one time.
        device: `cpu`, `cuda`, ...; "auto" for a GPU where there is one.
        stop_tokens: tokens that end a response besides the tokenizer's end of sequence and those of the model's own
            generation config. A base model with a chat template needs the template's end of turn here.
    """

    incidental = frozenset({"batch_size", "device"})

    def __init__(
        self,
        *,
        language_model: LanguageModelFactory,
        batch_size: int = 64,
        device: str = "auto",
        stop_tokens: list[str] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        refuse_mps(device)
        language_model.check_sampling()
        self.language_model, self.batch_size, self.device = language_model, batch_size, device
        self.stop_tokens = stop_tokens or []

    def build_tokenizer(self) -> PreTrainedTokenizerBase:
        """The language model's."""
        return self.language_model.build_tokenizer()

    def weights(self) -> str | None:
        """Hashes of the model's weights and configs where it is a folder; a name on the hub has its revision.

        The configs say how the weights are used, and which tokens end a response.
        """
        name = getattr(self.language_model, "name", None)
        if not isinstance(name, str) or not Path(name).is_dir():
            return None
        digest = hashlib.blake2b(digest_size=16)
        for file in sorted(file for file in Path(name).iterdir() if file.suffix in WEIGHT_SUFFIXES):
            digest.update(file.name.encode())
            add_content(digest, file)
        configs = hashlib.blake2b(digest_size=16)
        for file in (Path(name, config) for config in CONFIGS):
            if file.is_file():
                add_config(configs, file)
        return f"{digest.hexdigest()}-{configs.hexdigest()}"

    def respond(self, prompts: Sequence[PromptExample], sampling: Sampling) -> Iterator[Answered]:
        """Answer as many prompts at a time as fit the batch; how they are divided changes no response but for rounding.

        Raises:
            ValueError: a stop token that the tokenizer does not have, or more tokens than the model has positions for.
        """
        from ipvrm_lightning.models.logprobs import check_positions, check_vocabulary
        from ipvrm_lightning.rollouts.ends import end_token_ids, response_text
        from ipvrm_lightning.rollouts.sampler import SampledResponse, sample_responses

        tokenizer = self.build_tokenizer()
        model = self._model()
        check_vocabulary(model, max(max(prompt.input_ids) for prompt in prompts))
        check_positions(model, max(len(prompt.input_ids) for prompt in prompts) + sampling.max_new_tokens)
        ends = end_token_ids(tokenizer, model, self.stop_tokens)
        room = max(1, self.batch_size // sampling.group_size)

        def response(rollout: SampledResponse) -> Response:
            return Response(response_text(tokenizer, rollout), rollout.finished, len(rollout.input_ids))

        for start in range(0, len(prompts), room):
            chunk = prompts[start : start + room]
            groups = sample_responses(
                model,
                [prompt.input_ids for prompt in chunk],
                num_return_sequences=sampling.group_size,
                max_new_tokens=sampling.max_new_tokens,
                eos_token_id=ends,
                pad_token_id=ends[0],
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=sampling.seed,
                keys=[prompt.id for prompt in chunk],
                batch_size=self.batch_size,
            )
            for prompt, group in zip(chunk, groups, strict=True):
                yield Answered(prompt, [response(rollout) for rollout in group])

    def _model(self) -> PreTrainedModel:
        import torch

        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model: Any = self.language_model.build_model()
        model.to(device).eval()
        with library_errors(f"{type(model).__name__} cannot run as its config describes it"), torch.no_grad():
            model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=device))
        return model
