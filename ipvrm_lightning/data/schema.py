"""Checks of texts, labels and chats, and the error that names file, row and field."""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

Message = dict[str, str]
Prompt = str | list[Message]

ROLES = ("system", "user", "assistant", "tool")
#: What some chats hold beside the content.
_NO_CONTENT = ("reasoning_content", "reasoning", "thinking", "tool_calls")
_POSITION = re.compile(r"\[\d+\]")


class DataError(ValueError):
    """Input that cannot be used. Its message is one line: `{file}, row {n}, field '{field}': {problem}, found {repr}`.

    Args:
        problem: what is wrong, without the value.
        field: column it is wrong in.
        found: the value, shown shortened; `...` where there is none to show.
        source: file or hub data set.
        row: row number, from 1 (the line number in JSONL).
    """

    def __init__(
        self, problem: str, *, field: str = "", found: Any = ..., source: str = "", row: int | None = None
    ) -> None:
        self.problem, self.field, self.found, self.source, self.row = problem, field, found, source, row
        super().__init__(problem)  # all that pickle builds it anew with; it copies the attributes

    def __str__(self) -> str:
        place = ([self.source] if self.source else []) + ([] if self.row is None else [f"row {self.row}"])
        place += [f"field '{self.field}'"] if self.field else []
        text = self.problem if self.found is ... else f"{self.problem}, found {_short(self.found)}"
        return f"{', '.join(place)}: {text}" if place else text

    def at(self, source: str = "", row: int | None = None, *, field: str | None = None) -> DataError:
        """The same error at another place; of the same field where none is given."""
        field = self.field if field is None else field
        return DataError(self.problem, field=field, found=self.found, source=source, row=row)

    @property
    def reason(self) -> str:
        """Field and problem without value and positions: what skipped rows are counted by."""
        return f"{_POSITION.sub('', self.field)}: {self.problem}" if self.field else self.problem


def _short(value: Any) -> str:
    text = reprlib.Repr()
    text.maxstring = text.maxother = 60
    return text.repr(value).replace("\n", "\\n")


def check_choice(name: str, value: Any, kind: Any) -> None:
    """An argument that a `Literal` type lists.

    Raises:
        ValueError: it is none of them.
    """
    if value not in get_args(kind):
        raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, not {value!r}")


def check_limit(name: str, value: int | None) -> None:
    """An argument that bounds a number of things, None where there is no bound.

    Raises:
        ValueError: it allows none.
    """
    if value is not None and value < 1:
        raise ValueError(f"{name} must be at least 1, or null for no limit, not {value}")


def check_text(value: Any, field: str, *, what: str = "text") -> str:
    """A string with something in it.

    Raises:
        DataError: it is not a string, or blank.
    """
    if not isinstance(value, str):
        raise DataError(f"{what} is not a string", field=field, found=value)
    if not value.strip():
        raise DataError(f"empty {what}", field=field, found=value)
    return value


def check_characters(row: Any, field: str = "") -> None:
    """Every text of a record is made of characters: half of a surrogate pair, which JSON can spell, is none.

    It could be neither tokenised nor written.

    Raises:
        DataError: names the first field with one.
    """
    if isinstance(row, str):
        try:
            row.encode()
        except UnicodeEncodeError:
            problem = "text holds half of a surrogate pair, which is no character"
            raise DataError(problem, field=field, found=row) from None
    elif isinstance(row, Mapping):
        for name, value in row.items():
            check_characters(value, f"{field}.{name}" if field else str(name))
    elif isinstance(row, (list, tuple)):
        for position, value in enumerate(row):
            check_characters(value, f"{field}[{position}]")


def check_list(value: Any, field: str) -> list[Any]:
    """A list with something in it.

    Raises:
        DataError: it is not a list, or empty.
    """
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise DataError("not a list", field=field, found=value)
    if not value:
        raise DataError("empty list", field=field, found=value)
    return list(value)


def check_outcome(value: Any, field: str) -> int:
    """0 or 1 from a bool, an int or a float.

    Raises:
        DataError: anything else.
    """
    if not isinstance(value, (bool, int, float)) or value not in (0, 1):
        raise DataError("label is not 0 or 1", field=field, found=value)
    return int(value)


def check_messages(value: Any, field: str) -> list[Message]:
    """Chat messages with known roles and text.

    Raises:
        DataError: names the message.
    """
    messages = []
    for position, message in enumerate(check_list(value, field)):
        place = f"{field}[{position}]"
        if not isinstance(message, Mapping):
            raise DataError("message is not a mapping with role and content", field=place, found=message)
        for key in ("role", "content"):
            if key not in message:
                raise DataError(f"message has no {key}", field=place, found=sorted(message))
        if message["role"] not in ROLES:
            raise DataError(f"role is none of {', '.join(ROLES)}", field=f"{place}.role", found=message["role"])
        for key in _NO_CONTENT:
            if message.get(key):
                problem = f"{key} would be left out; write it into content, as the model wrote it"
                raise DataError(problem, field=f"{place}.{key}", found=message[key])
        if not isinstance(message["content"], str):
            raise DataError("text is not a string", field=f"{place}.content", found=message["content"])
        messages.append({"role": message["role"], "content": message["content"]})
    return messages


def check_prompt(value: Any, field: str) -> Prompt:
    """Text or messages that an answer can follow.

    Raises:
        DataError: as `check_text` and `check_messages`, or the assistant has the last word.
    """
    return check_text(value, field) if isinstance(value, str) else _asking(check_messages(value, field), field)


def _asking(messages: list[Message], field: str) -> list[Message]:
    if messages[-1]["role"] == "assistant":
        problem = "the prompt ends with the assistant's message; put the beginning of the answer into the response"
        raise DataError(problem, field=field, found=messages[-1]["content"])
    return messages


def check_tools(row: Mapping[str, Any]) -> None:
    """No definitions of tools beside the messages, as a list or in JSON: a template would be told nothing of them.

    Raises:
        DataError: there are some.
    """
    tools = row.get("tools")
    listed = isinstance(tools, Sequence) and any(isinstance(tool, Mapping) for tool in tools)
    if listed or (isinstance(tools, str) and tools.lstrip().startswith("[{")):
        problem = "tool definitions would be left out; write them into the system message, as the model read them"
        raise DataError(problem, field="tools", found=tools)


def split_conversation(value: Any, field: str) -> tuple[list[Message], str]:
    """A conversation as prompt and last answer.

    Raises:
        DataError: it does not end with the assistant, has no prompt or one that the assistant ends, or the answer is
            empty.
    """
    messages = check_messages(value, field)
    if messages[-1]["role"] != "assistant":
        raise DataError("conversation does not end with the assistant", field=field, found=messages[-1]["role"])
    if len(messages) == 1:
        raise DataError("conversation has no prompt before the answer", field=field, found=messages)
    return _asking(messages[:-1], field), check_text(messages[-1]["content"], field, what="response")


def as_messages(prompt: Prompt) -> list[Message]:
    """Messages as they are, text as one user message."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def prompt_key(prompt: Prompt) -> str:
    """What makes two prompts the same: exact text and roles, without white space around them.

    A text and a chat of one user message with that text are the same prompt.
    """
    messages = as_messages(prompt)
    return json.dumps([[message["role"], message["content"].strip()] for message in messages], ensure_ascii=False)


def group_of(prompt: Prompt) -> str:
    """Short key of a prompt: a hash of what `prompt_key` says."""
    return hashlib.blake2b(prompt_key(prompt).encode(), digest_size=8).hexdigest()


def question_of(prompt: Prompt) -> str:
    """The same for prompts that differ in the system message alone: for telling training and judging apart."""
    messages = as_messages(prompt)
    return group_of([message for message in messages if message["role"] != "system"] or messages)


def part_of(row: Mapping[str, Any], stem: str) -> str:
    """The part of a benchmark that a row names, else `stem`, its file's name."""
    named = (row.get(column) for column in ("data_source", "dataset", "subset"))
    return next((name for name in named if name and isinstance(name, str)), stem)


def prompt_and_response(prompt: Prompt, answer: Any, field: str) -> tuple[Prompt, str]:
    """Prompt and response where the response is text, messages that follow the prompt, or a whole conversation.

    Raises:
        DataError: a conversation that does not begin with the prompt, or as `split_conversation`.
    """
    if isinstance(answer, str):
        return prompt, check_text(answer, field, what="response")
    if not isinstance(answer, Sequence):
        raise DataError("response is neither text nor messages", field=field, found=answer)
    messages, before = check_messages(answer, field), as_messages(prompt)
    whole = messages[0]["role"] in ("system", "user")
    turns = messages[1:] if messages[0]["role"] == "system" and before[0]["role"] != "system" else messages
    if whole and turns[: len(before)] != before:
        raise DataError("conversation does not begin with the prompt", field=field, found=messages[0]["content"])
    if not whole and len(messages) == 1 and isinstance(prompt, str):
        _, response = split_conversation([*before, *messages], field)
        return prompt, response
    return split_conversation(messages if whole else [*before, *messages], field)
