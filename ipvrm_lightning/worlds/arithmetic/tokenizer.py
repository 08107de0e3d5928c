"""A tokenizer made on the spot: digits, names, and the fixed stretches of text between them, each one token.

Nothing is stripped or merged, so that text and tokens are the same thing: every character belongs to one token, and a
line break is a token of its own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ipvrm_lightning.worlds.arithmetic.formats import FORMATS
from ipvrm_lightning.worlds.arithmetic.problems import NAMES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"


def vocabulary() -> list[str]:
    """All tokens in the order of their ids."""
    pieces = {part for surface in FORMATS for piece in surface.pieces() for part in re.split(r"(\n)", piece) if part}
    return [PAD, EOS, UNKNOWN, *"0123456789", *NAMES, "\n", *sorted(pieces - {"\n"})]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of all three formats; no BOS, PAD and EOS are different tokens, no chat template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = vocabulary()
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=UNKNOWN))
    # Longest first: "answer " is one token and not the name a with something behind it.
    choices = "|".join(re.escape(token) for token in sorted(tokens[3:], key=len, reverse=True))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(choices), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
