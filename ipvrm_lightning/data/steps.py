"""Solutions given as steps: one text, one tokenisation, and the step of every token by character offsets.

The separator between two steps counts to the step before it: every response token but the ending is in one step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ipvrm_lightning.data.chat import Encoded, PromptLayout, encode_response
from ipvrm_lightning.data.schema import DataError, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from typing_extensions import Unpack


class EncodedSteps(NamedTuple):
    """Token ids, where the response starts, and per response token its step, -1 for the ending."""

    input_ids: list[int]
    response_start: int
    step_ids: list[int]


def join_steps(
    steps: Sequence[str], *, step_template: str = "Step {number}: {step}", separator: str = "\n\n"
) -> tuple[str, list[int]]:
    """The response that steps make, and the character at which each begins, counted from its start.

    Args:
        steps: texts.
        step_template: with `{number}` (from 1) and `{step}`.
        separator: between steps.
    """
    # Not str.format: steps are full of braces (LaTeX), and templates may be too.
    parts = [
        step_template.replace("{number}", str(number)).replace("{step}", step) for number, step in enumerate(steps, 1)
    ]
    starts, position = [], 0
    for part in parts:
        starts.append(position)
        position += len(part) + len(separator)
    return separator.join(parts), starts


def assign_steps(encoded: Encoded, starts: Sequence[int], response_length: int) -> list[int]:
    """Step of each response token: the one its first letter lies in, separators counting to the step before.

    A token's first letter is its first character that is no space; a token of spaces alone goes where it begins.

    Args:
        encoded: one tokenisation of the whole text.
        starts: character at which each step begins, from the start of the response.
        response_length: characters of the response without its ending.

    Returns:
        One number per response token, never falling, -1 for the ending.

    Raises:
        DataError: a step has no token of its own; names it.
    """
    characters = np.asarray(encoded.first_letters)
    steps = np.maximum(np.searchsorted(np.asarray(starts), characters, side="right") - 1, 0)
    inside = steps[characters < response_length]
    missing = np.setdiff1d(np.arange(len(starts)), inside)
    if len(missing):
        raise DataError("no token begins in this step", field=f"steps[{missing[0]}]", found=f"step {missing[0] + 1}")
    if (np.diff(inside) < 0).any():
        raise DataError("tokens are not in the order of the text", field="steps")
    steps[characters >= response_length] = -1
    return [int(step) for step in steps]


def encode_steps(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    steps: Sequence[str],
    *,
    step_template: str = "Step {number}: {step}",
    separator: str = "\n\n",
    **layout: Unpack[PromptLayout],
) -> EncodedSteps:
    """Tokens of a solution given as steps, and the step of each response token.

    A step spans its text with the "Step i: " before it and the separator after it, so every response token but the
    ending lies in exactly one; a token goes where its first character that is no space lies.

    Args:
        tokenizer: a fast one.
        prompt: text or messages.
        steps: texts.
        step_template: with `{number}` (from 1) and `{step}`.
        separator: between steps.
        layout: `prompt_format`, `system_prompt` and `chat_template_kwargs`, see `render`.

    Raises:
        DataError: see `render` and `assign_steps`.
    """
    response, starts = join_steps(steps, step_template=step_template, separator=separator)
    encoded = encode_response(tokenizer, prompt, response, **layout)
    return EncodedSteps(encoded.input_ids, encoded.response_start, assign_steps(encoded, starts, len(response)))
