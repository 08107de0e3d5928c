"""Prompt and response text to token ids and a response start.

A response follows what the template gives as generation prompt, as it did when it was sampled: an empty thinking block
that some templates put before answers without one is part of neither, and other text that they put there is refused.
One text, one tokenisation, character offsets: re-tokenising prefixes gives other tokens at the seams, silently. Where a
token straddles the end of the prompt it counts as response.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

from ipvrm_lightning.data.schema import DataError, Prompt, as_messages
from ipvrm_lightning.data.templates import Rendered, answered_turn, check_open, generation_prompt
from ipvrm_lightning.tokenizer_threads import all_cores

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase
    from typing_extensions import Unpack

PromptFormat = Literal["auto", "chat", "plain"]


class PromptLayout(TypedDict, total=False):
    """Arguments of `render` that say how a prompt becomes text."""

    prompt_format: PromptFormat
    system_prompt: str | None
    chat_template_kwargs: Mapping[str, Any] | None


class Encoded(NamedTuple):
    """Token ids, where the response starts, and where in the text its tokens stand.

    Args:
        input_ids: prompt and response with its ending.
        response_start: first token that reaches past the prompt's text, at least 1.
        text: that was tokenised.
        prompt_length: characters of the prompt in it.
        encoding: the tokenizer's own.
        read: tokens of the text; an end of sequence may follow.
    """

    input_ids: list[int]
    response_start: int
    text: str
    prompt_length: int
    encoding: Encoding
    read: int

    @property
    def first_characters(self) -> list[int]:
        """Per response token, its first character counted from the start of the response."""
        return [first - self.prompt_length for first, _ in self._spans()]

    @property
    def first_letters(self) -> list[int]:
        """The same without spaces in front, if a token has more: some tokenizers count those to it, others do not."""
        letters = []
        for first, last in self._spans():
            behind = self.text[first:last].lstrip(" ")
            letters.append((last - len(behind) if behind else first) - self.prompt_length)
        return letters

    def _spans(self) -> Iterator[tuple[int, int]]:
        spans = self.encoding.offsets[self.response_start - 1 : self.read]
        for (_, previous), (first, last) in pairwise(spans):
            # Some byte-level tokenizers trim white space from offsets: a token of nothing else has an empty span.
            yield first if first < last else min(previous, first), last
        yield from [(len(self.text), len(self.text) + 1)] * (len(self.input_ids) - self.read)


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
        return answered_turn(tokenizer, messages, response, chat_template_kwargs, finished=finished)
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
    """Tokenise many texts of one layout at once; what cannot be used comes back as the error that says why.

    Chat text holds its special tokens already; plain text gets those that the tokenizer adds by default (BOS) and one
    end-of-sequence token. A response that was cut off gets no ending: its last token is one of its own, as sampled.
    """
    chat = any(text.chat for text in texts)
    assert all(text.chat is chat for text in texts)
    whole = [text.prompt + text.response + (text.ending if chat and text.finished else "") for text in texts]
    results: list[Encoded | DataError] = []
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    for text, characters, (ids, encoding) in zip(texts, whole, _tokenize(tokenizer, whole, chat=chat), strict=True):
        read = len(ids)
        if text.finished and not (chat and text.ending):
            ids.append(tokenizer.eos_token_id)
        start = _response_start(ids, encoding, read, len(text.prompt), special)
        if 1 <= start < len(ids):
            results.append(Encoded(ids, start, characters, len(text.prompt), encoding, read))
        else:
            problem = f"no token of the prompt stands before the response (starts at token {start})"
            results.append(DataError(problem, field="prompt"))
    return results


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
) -> Iterator[tuple[list[int], Encoding]]:
    """Token ids of each text, without what the tokenizer itself puts at the end, and all that it says of them."""
    if not texts:
        return
    with all_cores():
        tokens = tokenizer(
            list(texts),
            add_special_tokens=not chat,
            return_attention_mask=False,
            return_token_type_ids=False,
            truncation=False,
            verbose=False,
        )
    assert tokens.encodings is not None  # of a fast one
    for ids, encoding in zip(tokens["input_ids"], tokens.encodings, strict=True):
        while not chat and ids and _end(encoding, len(ids) - 1) == 0:
            ids.pop()
        yield ids, encoding


def _end(encoding: Encoding, token: int) -> int:
    """Where a token of the text ends, 0 for those that the tokenizer puts around it."""
    span = encoding.token_to_chars(token)
    return 0 if span is None else span[1]


def _response_start(ids: list[int], encoding: Encoding, read: int, prompt_length: int, special: set[int]) -> int:
    """The first token that reaches past the prompt: found in few looks, for offsets are slow to make of every token."""
    start = bisect_right(range(read), prompt_length, key=lambda token: _end(encoding, token))
    if start < read and ids[start] in special and (encoding.token_to_chars(start) or (0, 0))[0] < prompt_length:
        start += 1  # the prompt's own token, one that swallows the white space behind it
    return start


def encode_response(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str, **layout: Unpack[PromptLayout]
) -> Encoded:
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
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str, **layout: Unpack[PromptLayout]
) -> tuple[list[int], int]:
    """Token ids of prompt and response with its end of turn, and the index of the first response token.

    Args:
        tokenizer: a fast one.
        prompt: text or messages.
        response: the answer's text.
        layout: `prompt_format`, `system_prompt` and `chat_template_kwargs`, see `render`.

    Raises:
        DataError: see `render`; or no prompt token stands before the response.
    """
    encoded = encode_response(tokenizer, prompt, response, **layout)
    return encoded.input_ids, encoded.response_start
