"""Prompt and response text to token ids and a response start.

A response follows what the template gives as generation prompt, as it did when it was sampled: an empty thinking block
that some templates put before answers without one is part of neither, and other text that they put there is refused.
One text, one tokenisation, character offsets: re-tokenising prefixes gives other tokens at the seams, silently. Where a
token straddles the end of the prompt it counts as response.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ipvrm_lightning.data.schema import DataError, Prompt, as_messages
from ipvrm_lightning.data.templates import answered_turn, check_open, generation_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PromptFormat = Literal["auto", "chat", "plain"]


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
    finished: bool = True


class Encoded(NamedTuple):
    """Token ids, where the response starts, and where in the response each of its tokens stands.

    Args:
        input_ids: prompt and response with its ending.
        response_start: first token that reaches past the prompt's text, at least 1.
        first_characters: per response token, its first character counted from the start of the response.
        first_letters: the same without spaces in front, where a token has more than spaces: some tokenizers count those
            to a token, others do not.
    """

    input_ids: list[int]
    response_start: int
    first_characters: list[int]
    first_letters: list[int]


def uses_chat_template(tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat) -> bool:
    """Whether prompts are rendered by the tokenizer's template; "auto": where it has one.

    Raises:
        DataError: "chat" was asked for and there is none, or the tokenizer gives no character offsets.
    """
    if not tokenizer.is_fast:
        name = type(tokenizer).__name__
        raise DataError(f"tokenizer {name} gives no character offsets; a fast tokenizer (tokenizer.json) is needed")
    if prompt_format == "chat" and not tokenizer.chat_template:
        raise DataError("prompt_format is 'chat' but the tokenizer has no chat template")
    return prompt_format == "chat" or (prompt_format == "auto" and bool(tokenizer.chat_template))


def render(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    response: str,
    *,
    prompt_format: PromptFormat = "auto",
    system_prompt: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    finished: bool = True,
) -> Rendered:
    """Text of prompt and response.

    With a chat template, text becomes one user message and the response the assistant's; without, prompt and response
    follow each other as they are and the end-of-sequence token closes them.

    Args:
        tokenizer: a fast one.
        prompt: text or messages.
        response: the answer's text.
        prompt_format: "chat", "plain", or "auto" for chat where the tokenizer has a template.
        system_prompt: put first where the messages have no system message of their own.
        chat_template_kwargs: what else the template is told, such as `enable_thinking: false`.
        finished: whether the response ended by itself; False where it was cut off.

    Raises:
        DataError: the template fails, rewrites prompt or response or puts text between them, or the format cannot hold
            this prompt.
    """
    if uses_chat_template(tokenizer, prompt_format):
        messages = as_messages(with_system_prompt(prompt, system_prompt))
        turn = answered_turn(tokenizer, messages, response, chat_template_kwargs, finished=finished)
        return Rendered(*turn, chat=True, finished=finished)
    text = _plain_text(prompt, system_prompt)
    if tokenizer.eos_token is None:
        raise DataError("the tokenizer has no end-of-sequence token to close a response with")
    check_open(response, (tokenizer.eos_token,))
    return Rendered(text, response, tokenizer.eos_token, chat=False, finished=finished)


def render_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    *,
    prompt_format: PromptFormat = "auto",
    system_prompt: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """Text of a prompt that an answer is to be generated for; what `render` puts before a response.

    Args:
        tokenizer: a fast one.
        prompt: text or messages.
        prompt_format: see `render`.
        system_prompt: see `render`.
        chat_template_kwargs: see `render`.

    Raises:
        DataError: the template fails, or the format cannot hold this prompt.
    """
    if uses_chat_template(tokenizer, prompt_format):
        messages = as_messages(with_system_prompt(prompt, system_prompt))
        return generation_prompt(tokenizer, messages, chat_template_kwargs)
    return _plain_text(prompt, system_prompt)


def with_system_prompt(prompt: Prompt, system_prompt: str | None) -> Prompt:
    """The prompt as messages that begin with this system message, where they have none of their own."""
    messages = as_messages(prompt)
    if system_prompt is None or messages[0]["role"] == "system":
        return prompt
    return [{"role": "system", "content": system_prompt}, *messages]


def _plain_text(prompt: Prompt, system_prompt: str | None) -> str:
    if not isinstance(prompt, str):
        raise DataError("chat messages need a tokenizer with a chat template", field="prompt", found=prompt)
    if system_prompt is not None:
        raise DataError("a system prompt needs a tokenizer with a chat template", field="system_prompt")
    return prompt


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Rendered]) -> list[Encoded | DataError]:
    """Tokenise many texts at once; what cannot be used comes back as the error that says why.

    Chat text holds its special tokens already; plain text gets those that the tokenizer adds by default (BOS) and one
    end-of-sequence token. A response that was cut off gets no ending: its last token is one of its own, as sampled.
    """
    encoded: list[Encoded | DataError] = []
    for chat in (True, False):
        if chosen := [text for text in texts if text.chat is chat]:
            encoded += _encode_alike(tokenizer, chosen, chat)
    order = [i for chat in (True, False) for i, text in enumerate(texts) if text.chat is chat]
    return [item for _, item in sorted(zip(order, encoded, strict=True), key=lambda pair: pair[0])]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, prompt_format: PromptFormat = "auto"
) -> list[list[int]]:
    """Token ids of rendered prompts, as `encode` puts them before a response where no token straddles the seam.

    Args:
        tokenizer: a fast one.
        texts: from `render_prompt`.
        prompt_format: that they were rendered in.
    """
    return [ids for ids, _ in _tokenize(tokenizer, texts, chat=uses_chat_template(tokenizer, prompt_format))]


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, chat: bool
) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
    """Token ids and character spans of each text, without what the tokenizer itself puts at the end."""
    if not texts:
        return
    tokens = tokenizer(
        list(texts),
        add_special_tokens=not chat,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        truncation=False,
        verbose=False,
    )
    for ids, offsets in zip(tokens["input_ids"], tokens["offset_mapping"], strict=True):
        ids, spans = list(ids), [(int(start), int(end)) for start, end in offsets]
        if not chat:
            while ids and spans[-1] == (0, 0):
                ids.pop(), spans.pop()
        yield ids, spans


def _encode_alike(tokenizer: PreTrainedTokenizerBase, texts: list[Rendered], chat: bool) -> list[Encoded | DataError]:
    whole = [text.prompt + text.response + (text.ending if chat and text.finished else "") for text in texts]
    results: list[Encoded | DataError] = []
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    for text, characters, (ids, spans) in zip(texts, whole, _tokenize(tokenizer, whole, chat=chat), strict=True):
        closed = chat and bool(text.ending)
        if text.finished and not closed:
            ids.append(tokenizer.eos_token_id)
            spans.append((len(text.prompt + text.response), len(text.prompt + text.response) + 1))
        results.append(_locate(ids, spans, characters, len(text.prompt), special))
    return results


def _locate(
    ids: list[int], spans: list[tuple[int, int]], text: str, prompt_length: int, special: set[int]
) -> Encoded | DataError:
    start = next((i for i, (_, end) in enumerate(spans) if end > prompt_length), len(ids))
    if start < len(ids) and spans[start][0] < prompt_length and ids[start] in special:
        start += 1  # the prompt's own token, one that swallows the white space behind it
    if not 1 <= start < len(ids):
        return DataError(f"no token of the prompt stands before the response (starts at token {start})", field="prompt")
    previous = spans[start - 1][1]
    characters, letters = [], []
    for first, last in spans[start:]:
        # Some byte-level tokenizers trim white space from offsets: a token of nothing else has an empty span.
        begin = first if first < last else min(previous, first)
        behind = text[begin:last].lstrip(" ")
        characters.append(begin - prompt_length)
        letters.append((last - len(behind) if behind else begin) - prompt_length)
        previous = last
    return Encoded(ids, start, characters, letters)


def encode_response(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str, **layout: Any) -> Encoded:
    """Tokens of one prompt and response.

    Args:
        tokenizer: a fast one.
        prompt: text or messages.
        response: the answer's text.
        layout: see `render`.

    Raises:
        DataError: see `render`; or no prompt token stands before the response.
    """
    encoded = encode(tokenizer, [render(tokenizer, prompt, response, **layout)])[0]
    if isinstance(encoded, DataError):
        raise encoded
    return encoded


def encode_example(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    response: str,
    *,
    prompt_format: PromptFormat = "auto",
    system_prompt: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[list[int], int]:
    """Token ids of prompt and response with its end of turn, and the index of the first response token.

    Args:
        tokenizer: a fast one.
        prompt: text or messages.
        response: the answer's text.
        prompt_format: see `render`.
        system_prompt: see `render`.
        chat_template_kwargs: see `render`.

    Raises:
        DataError: see `render`; or no prompt token stands before the response.
    """
    encoded = encode_response(
        tokenizer,
        prompt,
        response,
        prompt_format=prompt_format,
        system_prompt=system_prompt,
        chat_template_kwargs=chat_template_kwargs,
    )
    return encoded.input_ids, encoded.response_start
