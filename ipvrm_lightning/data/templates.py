"""What a chat template writes around prompt and answer, and where it must be refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import date
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from ipvrm_lightning.data.schema import DataError, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "probe of the template"
#: How templates write today's date, and the day it is here: prompts that change overnight could not be gone on with.
_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_THE_DAY = date(2024, 7, 26)  # Llama 3's templates fall back to it
#: What a model that does not think may leave out before its answer: white space, a thinking block without thoughts.
_NO_THOUGHTS = re.compile(r"\s*(?:<(\S*think\S*)>\s*</\1>\s*)?")
#: The end of thoughts that the prompt has opened: an answer that was sampled has it behind them.
_CLOSES = re.compile(r"\s*</\S*think\S*>\s*")


class AnswerFrame(NamedTuple):
    """What a template puts around an answer.

    Args:
        head: between the generation prompt and the answer.
        ending: after the answer, up to the token that ends it; empty where the tokenizer's end of sequence does.
        ends: special tokens that no answer may hold, the one that ends it last.
    """

    head: str
    ending: str
    ends: tuple[str, ...]


class Rendered(NamedTuple):
    """Text of one example as the model will see it.

    Args:
        prompt: everything before the response.
        response: the response, as in the data but for what of its ending it holds.
        ending: end of turn or end of sequence, with what the template puts before it; nothing after it.
        chat: rendered by a template, which writes its special tokens into the text itself.
        finished: the response ended by itself; one that was cut off is encoded without an ending.
    """

    prompt: str
    response: str
    ending: str
    chat: bool
    finished: bool


def generation_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], chat_template_kwargs: Mapping[str, Any] | None
) -> str:
    """Messages as text that an answer is to be generated after.

    Raises:
        DataError: the template fails.
    """
    return _apply(tokenizer, messages, chat_template_kwargs, add_generation_prompt=True)


def answered_turn(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    response: str,
    chat_template_kwargs: Mapping[str, Any] | None,
    *,
    finished: bool,
) -> Rendered:
    """Messages and an answer as text, the answer directly after the generation prompt, as it was sampled.

    Args:
        tokenizer: with a chat template.
        messages: before the answer.
        response: the answer.
        chat_template_kwargs: what else the template is told.
        finished: whether the answer ended by itself.

    Raises:
        DataError: the template fails, rewrites messages or answer, or has the answer follow what is part of neither.
    """
    before = generation_prompt(tokenizer, messages, chat_template_kwargs)
    head, ending, ends = _answer_frame(tokenizer, str(tokenizer.chat_template), json.dumps(chat_template_kwargs))
    if finished and ends:
        # An answer that was sampled holds what stands before the token that ended it.
        response = response.removesuffix(ending.removesuffix(ends[-1]))
    whole = _apply(tokenizer, [*messages, {"role": "assistant", "content": response}], chat_template_kwargs)
    if not whole.startswith(before):
        characters = enumerate(zip(before, whole, strict=False))
        where = next((i for i, (a, b) in characters if a != b), min(len(before), len(whole)))
        raise DataError(
            "the chat template rewrites the prompt once an answer follows it, so the prompt is no prefix of the whole;"
            f" they part at character {where}",
            field="chat_template",
            found=f"{before[where : where + 20]!r} against {whole[where : where + 20]!r}",
        )
    check_open(response, ends)
    written = whole[len(before) :]
    if not written.startswith((head + response + ending, response + ending)):
        raise DataError(
            "the chat template changes the response (strips or rewrites it), so tokens would not be those of the data",
            field="chat_template",
            found=written,
        )
    # Thoughts that were cut off have no end yet, and an answer that was sampled holds the head itself.
    holds = response.startswith(head) or bool(_CLOSES.fullmatch(head) and head.strip() in response)
    sampled = not finished or holds or written.startswith(response + ending)
    if not sampled and not _NO_THOUGHTS.fullmatch(head):
        raise DataError(
            "the chat template puts text between prompt and answer, without which no model has seen an answer: give"
            " answers as they were sampled, with that text, or set chat_template_kwargs (such as enable_thinking:"
            " false), another chat template, or prompt_format: plain",
            field="chat_template",
            found=head,
        )
    return Rendered(before, response, ending, chat=True, finished=finished)


def check_open(response: str, ends: tuple[str, ...]) -> None:
    """A response that holds no token that would have ended it.

    Raises:
        DataError: it holds one.
    """
    if any(token in response for token in ends):
        raise DataError("the text holds the token that ends a response", field="response", found=response)


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    chat_template_kwargs: Mapping[str, Any] | None,
    **options: Any,
) -> str:
    options = {**(chat_template_kwargs or {}), **options}
    try:
        template = _undated(tokenizer.get_chat_template())
        return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options))
    except Exception as error:  # a template is a program: it raises what it likes
        problem = f"the chat template refuses these messages ({type(error).__name__}: {error})"
        raise DataError(problem, field="prompt", found=messages) from error


@lru_cache(maxsize=16)
def _undated(template: str) -> str:
    return _TODAY.sub(lambda found: repr(_THE_DAY.strftime(found[2])), template)


@lru_cache(maxsize=16)
def _answer_frame(tokenizer: PreTrainedTokenizerBase, template: str, options: str) -> AnswerFrame:
    """What the template puts around an answer.

    `template` is part of the cache key: a tokenizer may be given another. `options` are `chat_template_kwargs` in JSON.
    """
    user = {"role": "user", "content": _PROBE}
    answer = "answer of the probe"
    before = generation_prompt(tokenizer, [user], json.loads(options))
    whole = _apply(tokenizer, [user, {"role": "assistant", "content": answer}], json.loads(options))
    if not whole.startswith(before):
        return AnswerFrame("", "", ())  # the row's own check says where
    head, found, tail = whole[len(before) :].rpartition(answer)
    if not found:
        raise DataError("the chat template leaves the answer out", field="chat_template", found=whole)
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= set(tokenizer.all_special_tokens)
    token = "|".join(re.escape(one) for one in sorted(special - {""}, key=len, reverse=True))
    if token and (run := re.search(f"(?:{token})+", tail)):
        ends = re.findall(token, run[0])
        # The first special token ends the answer, or the end of sequence where no text parts it from the first: some
        # templates close answer and turn, and go on with the next turn.
        count = ends.index(tokenizer.eos_token) + 1 if tokenizer.eos_token in ends else 1
        return AnswerFrame(head, tail[: run.start()] + "".join(ends[:count]), tuple(ends[:count]))
    if tokenizer.eos_token is None:
        raise DataError("neither the chat template nor the tokenizer has a token that ends a turn")
    return AnswerFrame(head, "", (tokenizer.eos_token,))
