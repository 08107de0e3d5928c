"""Which tokens end a response, and the text before them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ipvrm_lightning.rollouts.sampler import SampledResponse


def end_token_ids(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, stop_tokens: Sequence[str] = ()
) -> list[int]:
    """Tokens that end a response: the tokenizer's end of sequence, those of the model's generation config, and more.

    Args:
        tokenizer: of the model.
        model: the policy.
        stop_tokens: further ones; a base model with a chat template needs the template's end of turn here.

    Raises:
        ValueError: a stop token that the tokenizer does not have, or no token at all.
    """
    known = tokenizer.get_vocab()
    if unknown := [token for token in stop_tokens if token not in known]:
        raise ValueError(f"stop_tokens: the tokenizer has no token {unknown[0]!r}")
    config: Any = getattr(model, "generation_config", None)
    own = getattr(config, "eos_token_id", None)
    own = [] if own is None else [own] if isinstance(own, int) else list(own)
    first = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ends = list(dict.fromkeys([*first, *own, *(known[token] for token in stop_tokens)]))
    if not ends:
        raise ValueError("neither tokenizer nor model has an end-of-sequence token: give stop_tokens")
    return ends


def response_text(tokenizer: PreTrainedTokenizerBase, rollout: SampledResponse) -> str:
    """A response without the token that ended it, to the character: some tokenizers would tidy spaces up.

    Read behind a special token: SentencePiece tokenizers leave out the first space of a text, and a response is not the
    first of its text.
    """
    ids = rollout.input_ids[:-1] if rollout.finished else rollout.input_ids
    before = tokenizer.all_special_ids[:1]
    first, whole = (str(tokenizer.decode(read, clean_up_tokenization_spaces=False)) for read in (before, before + ids))
    return whole.removeprefix(first)
