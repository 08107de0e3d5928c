"""Tokenizer and limits of a reward model, read before its weights, so that bad input is refused at once."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from ipvrm_lightning.models.exported import ModelSource
from ipvrm_lightning.pretrained import find_file, load_config, load_tokenizer, positions
from ipvrm_lightning.scoring.description import TOKENIZER_CONFIG, Description, Part
from ipvrm_lightning.scoring.encoding import SolutionEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def open_encoder(description: Description, *, max_length: int | None = None) -> SolutionEncoder:
    """Load the tokenizer, compare it with the reference's, and find out how long a solution may be.

    Args:
        description: of the reward model.
        max_length: tokens of problem and solution, at most, where less than what the models can read.

    Raises:
        ValueError: there is no tokenizer, the reference has another vocabulary, or `max_length` is below 1.
    """
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length must be at least 1, found {max_length}")
    tokenizer = _tokenizer(description.tokenizer, description.trust_remote_code)
    foreign: frozenset[int] | None = frozenset()
    reference = description.reference
    if reference is not None and not reference.checked:
        other = _reference_tokenizer(reference, description.trust_remote_code)
        foreign = None if other is None else _foreign_ids(tokenizer, other, description.name, reference.name)
    limits = [max_length, _positions(description.reward.model)]
    limits += [] if reference is None else [_positions(reference.model)]
    known = [limit for limit in limits if limit is not None]
    return SolutionEncoder(
        tokenizer, description.layout, max_length=min(known, default=None), foreign_ids=foreign
    )  # fmt: skip


def _foreign_ids(
    own: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, name: str, reference: str
) -> frozenset[int]:
    """Ids of tokens that the reference's tokenizer does not have; refuses one in which an id is another token's."""
    mine, theirs = own.get_vocab(), other.get_vocab()
    tokens = {number: token for token, number in theirs.items()}
    for token, number in sorted(mine.items(), key=lambda item: item[1]):
        if theirs.get(token, number) != number or tokens.get(number, token) != token:
            raise ValueError(
                f"{reference} has another vocabulary than {name}: token {number} is {token!r} here and"
                f" {tokens.get(number)!r} there, so that log-ratios would compare different texts"
            )
    return frozenset(number for token, number in mine.items() if token not in theirs)


def _positions(source: ModelSource) -> int | None:
    if source.gguf_file is not None:
        return None  # known once it is loaded
    with suppress(ValueError):  # loading the model says what is wrong
        return positions(load_config(source.name, revision=source.revision))
    return None


def _tokenizer(source: ModelSource, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    options = {"gguf_file": source.gguf_file} if source.gguf_file else {}
    return load_tokenizer(
        source.name, revision=source.revision or "main", trust_remote_code=trust_remote_code, **options
    )


def _reference_tokenizer(reference: Part, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    """The reference's tokenizer, None where it comes with none: then sizes are compared, when it is loaded."""
    source = reference.tokenizer
    if source.gguf_file is None and find_file(source.name, TOKENIZER_CONFIG, revision=source.revision) is None:
        return None
    return _tokenizer(source, trust_remote_code)
