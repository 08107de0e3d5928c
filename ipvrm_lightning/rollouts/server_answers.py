"""What a server's answer to one request holds: a response, or a reason why there is none.

Servers answer 200 to much that is no response: half a body, an error of their own, a request that they gave up. Kept as
responses, these would be wrong answers that the model never gave.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from ipvrm_lightning.rollouts.sources import Response

# as the API has it first; then as text-generation-inference, Together and Mistral do
_FINISHED = ("stop", "eos_token", "stop_sequence", "eos")
_CUT_OFF = ("length", "model_length")
_FILTERED = "content_filter"
_GIVEN_UP = (None, "", "abort", "error")
# what a server's parsers take out of the text, as in data.schema: nobody can say what stood between the parts
_TAKEN_OUT = ("reasoning_content", "reasoning", "thinking", "tool_calls")


class EndpointError(ValueError):
    """A server that cannot be used; its message is one line and holds no key."""


class PromptRefusedError(EndpointError):
    """A prompt that the server will not answer, though it may answer others."""


class PassingError(EndpointError):
    """Trouble that another attempt may not meet."""


def read_answer(body: bytes, api: Literal["completions", "chat"]) -> Response:
    """The response in an answer with status 200.

    Args:
        body: as it came.
        api: what was asked.

    Raises:
        EndpointError: there is none, or not all that the model wrote; says what the server did.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise PassingError(f"answered without whole JSON: {body[:100].decode(errors='replace')!r}") from None
    if isinstance(answer, dict) and (error := answer.get("error")):
        raise EndpointError(f"answered with an error: {said_in(error) or error}")
    try:
        choice = answer["choices"][0]
        reason = choice.get("finish_reason")
        if reason in _GIVEN_UP:
            raise PassingError(f"gave a request up (finish_reason {reason!r})")
        if reason == _FILTERED:
            raise PromptRefusedError(f"held an answer back (finish_reason {reason!r})")
        text = choice["text"] if api == "completions" else _content(choice["message"])
    except (TypeError, KeyError, IndexError, AttributeError):
        what = "choices with text" if api == "completions" else "choices with a message"
        raise EndpointError(f"answered without {what}: is {api} the API of this server?") from None
    if not isinstance(text, str):
        raise EndpointError(f"answered with text that is no string: {str(text)[:100]}")
    if reason not in (*_FINISHED, *_CUT_OFF):
        raise EndpointError(f"ended a response for a reason that is not known (finish_reason {reason!r})")
    usage = answer.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return Response(text, reason in _FINISHED, tokens if isinstance(tokens, int) else None)


def said_in(error: Any) -> str:
    """The server's own words in an error that it sent, empty where there are none."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail")
    return str(error or "")[:300]


def _content(message: dict[str, Any]) -> Any:
    if taken := [name for name in _TAKEN_OUT if message.get(name)]:
        raise EndpointError(
            f"took {taken[0]} out of what the model wrote: start it without a parser of reasoning or tools, or use"
            " api: completions"
        )
    return message.get("content") or ""  # null where the model ended at once
