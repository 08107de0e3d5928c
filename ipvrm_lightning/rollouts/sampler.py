"""Sampling responses in this process, many at once, with a key-value cache.

What departs from `generate` of transformers: each prompt is read once however many responses it gets, finished rows
leave the batch, the cache grows in place, and every response has its own random numbers, drawn from (seed, prompt,
response). Which prompts share a batch therefore changes no response but for rounding.

Letters: N rows of a batch, V vocabulary.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ipvrm_lightning.failures import library_errors
from ipvrm_lightning.models.output_head import base_language_model
from ipvrm_lightning.models.product_precision import shortened
from ipvrm_lightning.rollouts.cache import check_filled, growing_cache, has_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DROP_BELOW = 0.75
#: `cache` since transformers 5.24, which warns of the older names; Mamba's was one of its own.
_CACHE_ARGUMENTS = ("cache", "past_key_values", "cache_params")


@dataclass(frozen=True)
class SampledResponse:
    """One sampled response.

    Args:
        input_ids: response tokens, the end-of-sequence token last where there is one.
        finished: it ended by itself; False where it was cut at `max_new_tokens`.
    """

    input_ids: list[int]
    finished: bool


@torch.inference_mode()
def sample_responses(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    num_return_sequences: int = 1,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int],
    pad_token_id: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    keys: Sequence[str] | None = None,
    batch_size: int = 256,
    on_progress: Callable[[int], Any] | None = None,
) -> list[list[SampledResponse]]:
    """Sample responses to prompts of any lengths.

    Args:
        model: causal language model; left in the mode (training or not) it was in.
        prompts: token ids, none empty.
        num_return_sequences: responses per prompt.
        max_new_tokens: longest response, tokens.
        eos_token_id: ends a response; any of them where there are several.
        pad_token_id: fills prompts on the left; may equal `eos_token_id`.
        temperature: divides the logits; 0 takes the most likely token.
        top_p: keeps the fewest most likely tokens that together have this probability.
        seed: of all draws.
        keys: what tells the draws of prompts apart, their positions where none are given: with the same key, a prompt
            gets the same responses wherever it stands.
        batch_size: responses sampled at one time.
        on_progress: called with the number of responses that a batch has added.

    Returns:
        `num_return_sequences` rollouts per prompt, in the order of `prompts`.

    Raises:
        ValueError: an empty prompt, a setting out of range, or a model that cannot be sampled with a cache, or has no
            embedding of a token that ends or fills.
        FloatingPointError: the model's logits give no probabilities; names the prompt.
    """
    _check(prompts, num_return_sequences, max_new_tokens, temperature, top_p, batch_size)
    ends = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)
    sampler = _Sampler(model, ends, pad_token_id, max_new_tokens, temperature, top_p, seed)
    names = [str(key) for key in (range(len(prompts)) if keys is None else keys)]
    if len(names) != len(prompts):
        raise ValueError(f"{len(names)} keys for {len(prompts)} prompts")
    results: list[list[SampledResponse]] = [[] for _ in prompts]
    # Prompts of one length need no padding, and long prompts tend to have long responses.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    tasks = [(index, number) for index in order for number in range(num_return_sequences)]
    was_training = model.training
    model.eval()
    try:
        with shortened(model):
            sampler.check_cache()
            for start in range(0, len(tasks), batch_size):
                batch = tasks[start : start + batch_size]
                for (index, _), rollout in zip(batch, sampler.sample(prompts, batch, names), strict=True):
                    results[index].append(rollout)
                if on_progress is not None:
                    on_progress(len(batch))
    finally:
        model.train(was_training)
    return results


def _check(
    prompts: Sequence[Sequence[int]], count: int, max_new_tokens: int, temperature: float, top_p: float, batch_size: int
) -> None:
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompts[{index}]: empty prompt")
    for name, value in (
        ("num_return_sequences", count),
        ("max_new_tokens", max_new_tokens),
        ("batch_size", batch_size),
    ):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, found {value}")
    if not (temperature >= 0 and 0 < top_p <= 1):  # nor NaN
        raise ValueError(f"expected temperature >= 0 and 0 < top_p <= 1, found {temperature} and {top_p}")


class _Sampler:
    def __init__(
        self,
        model: PreTrainedModel,
        ends: list[int],
        pad: int,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
    ) -> None:
        self.model, self.ends, self.pad, self.max_new_tokens = model, ends, pad, max_new_tokens
        self.temperature, self.top_p, self.seed = temperature, top_p, seed
        language_model = base_language_model(model)
        rows = language_model.get_input_embeddings().weight.shape[0]
        if (largest := max(*ends, pad)) >= rows:
            raise ValueError(
                f"token {largest} is to end responses, but the model has embeddings for {rows} tokens: its tokenizer is"
                " not the model's"
            )
        taken = inspect.signature(language_model.forward).parameters
        self.cache_argument = next((name for name in _CACHE_ARGUMENTS if name in taken), "past_key_values")

    def check_cache(self) -> None:
        """Refuse models that keep elsewhere what they have read: rows could not be chosen, or tokens follow nothing.

        Raises:
            ValueError: names the model.
        """
        name = type(base_language_model(self.model)).__name__
        with library_errors(f"{name} cannot be sampled in this process: serve it, and use Endpoint"):
            _, cache, _ = self._read([[self.pad]])
            check_filled(cache)

    def sample(
        self, prompts: Sequence[Sequence[int]], tasks: Sequence[tuple[int, int]], names: Sequence[str]
    ) -> list[SampledResponse]:
        """One response per task (prompt, number of the response), in their order.

        Raises:
            FloatingPointError: logits without probabilities; names the prompt.
        """
        rows = list(dict.fromkeys(index for index, _ in tasks))
        logits, cache, mask = self._read([prompts[index] for index in rows])
        place = {index: row for row, index in enumerate(rows)}
        repeat = torch.tensor([place[index] for index, _ in tasks], device=logits.device)
        logits, mask = logits[repeat], mask[repeat]
        padded = not bool(mask.all())
        cache.reorder_cache(repeat)  # states of linear attention too, which `batch_select_indices` does not know
        draws = self._draws(tasks, names).to(logits.device) if self.temperature > 0 else None
        active = torch.arange(len(tasks), device=logits.device)
        running = torch.ones(len(tasks), dtype=torch.bool, device=logits.device)
        ends = torch.tensor(self.ends, device=logits.device)
        tokens = torch.full((len(tasks), self.max_new_tokens), -1, dtype=torch.long, device=logits.device)
        for position in range(self.max_new_tokens):
            chosen = self._choose(logits, None if draws is None else draws[active, position])
            tokens[active, position] = torch.where(running, chosen, -1)
            # NaN wins a maximum; single tokens may be ruled out by -inf. Rows that have ended are of no concern.
            broken = running & ~logits.amax(-1).isfinite()
            running = running & ~torch.isin(chosen, ends)
            left, any_broken = torch.stack([running.sum(), broken.any()]).tolist()  # waits for the device, once a token
            if any_broken:
                name = names[tasks[int(active[broken][0])][0]]
                raise FloatingPointError(
                    f"logits are not finite at token {position + 1} of a response to prompt {name!r}: the model's dtype"
                    " is too narrow (try bfloat16 or float32), or its weights are damaged"
                )
            if not left or position + 1 == self.max_new_tokens:
                break
            if left < _DROP_BELOW * len(running):
                kept = running.nonzero().squeeze(1)
                cache.reorder_cache(kept)
                active, mask, chosen, running = active[kept], mask[kept], chosen[kept], running[kept]
                padded = not bool(mask.all())
            positions = mask.sum(1, keepdim=True)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            logits = self._forward(chosen[:, None], mask if padded else None, positions, cache)
        return [self._rollout(row) for row in tokens.tolist()]

    def _read(self, prompts: list[Sequence[int]]) -> tuple[Tensor, Any, Tensor]:
        """Logits after each prompt [N, V], cache, attention mask [N, longest prompt]."""
        width = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[self.pad] * (width - len(p)) + list(p) for p in prompts], device=self.model.device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.model.device)
        mask = (torch.arange(width, device=ids.device)[None] >= width - lengths[:, None]).long()
        cache = growing_cache(self.model.config, self.max_new_tokens)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        padded = any(len(prompt) < width for prompt in prompts)
        return self._forward(ids, mask if padded else None, positions, cache), cache, mask

    def _forward(self, ids: Tensor, attention_mask: Tensor | None, positions: Tensor, cache: Any) -> Tensor:
        """Logits after the last of `ids`; without padding no mask is needed, and attention is faster without one."""
        if ids.shape[1] == 1 and not has_attention(cache):
            attention_mask = None  # is of the tokens given: what came before them is in the states, without padding
        output = self.model(
            input_ids=ids,
            attention_mask=attention_mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{self.cache_argument: cache},
        )
        return output.logits[:, -1].float()

    def _draws(self, tasks: Sequence[tuple[int, int]], names: Sequence[str]) -> Tensor:
        """Uniform numbers in [0, 1), [N, max_new_tokens]."""
        rows = []
        for index, number in tasks:
            digest = hashlib.blake2b(f"{self.seed}-{names[index]}-{number}".encode(), digest_size=7).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
            rows.append(torch.rand(self.max_new_tokens, generator=generator, dtype=torch.float64))
        return torch.stack(rows)

    def _choose(self, logits: Tensor, draws: Tensor | None) -> Tensor:
        """Next tokens [N] from logits [N, V] and one uniform number each [N]; the most likely without numbers."""
        if draws is None:
            return logits.argmax(-1)
        probabilities = (logits / self.temperature).softmax(-1)
        if self.top_p < 1:
            ordered, order = probabilities.sort(-1, descending=True)
            outside = ordered.cumsum(-1) - ordered >= self.top_p
            probabilities = probabilities.scatter(-1, order, ordered.masked_fill(outside, 0.0))
        cumulative = probabilities.double().cumsum(-1)
        total = cumulative[:, -1:]
        # right=True: a draw that equals a bound falls past it, so that a token of probability 0 is never taken.
        found = torch.searchsorted(cumulative, draws[:, None] * total, right=True).squeeze(-1)
        last = cumulative.shape[-1] - 1 - (probabilities.flip(-1) > 0).long().argmax(-1)
        return torch.minimum(found, last)

    def _rollout(self, row: list[int]) -> SampledResponse:
        ids = row[: row.index(-1)] if -1 in row else row
        return SampledResponse(ids, bool(ids) and ids[-1] in self.ends)
