"""What chat templates put before and after an answer."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from ipvrm_lightning.data.chat import encode, encode_example, render
from ipvrm_lightning.data.schema import DataError
from tests.data.tokenizers import CHATML, ENDLESS, HALF_OPEN, HEADED, TWO_ENDS, byte_level

OFF = {"enable_thinking": False}


def two_ends() -> PreTrainedTokenizerFast:
    tokenizer = byte_level(TWO_ENDS)
    tokenizer.add_tokens([AddedToken("<|end_response|>", special=True, normalized=False)], special_tokens=True)
    return tokenizer


def test_an_answer_does_not_stand_in_an_open_thinking_block() -> None:
    tokenizer = byte_level(HALF_OPEN)
    message = r"puts text between prompt and answer.*chat_template_kwargs.*found '\\n</think>\\n\\n'"
    with pytest.raises(DataError, match=message):
        render(tokenizer, "q", "It is 4.")
    closed = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert render(tokenizer, "q", "It is 4.", chat_template_kwargs=OFF)[:2] == (closed, "It is 4.")


@pytest.mark.parametrize(
    ("response", "finished"),
    [("well, 4\n</think>\n\nIt is 4.", True), ("well, 4 and", False), ("\n</think>\n\n4", True)],
)
def test_thoughts_follow_the_block_that_the_prompt_opens(response: str, finished: bool) -> None:
    text = render(byte_level(HALF_OPEN), "q", response, finished=finished)
    assert text[:2] == ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n", response)


@pytest.mark.parametrize("ended", [True, False])
def test_a_header_of_every_answer_is_part_of_it_or_missed(ended: bool) -> None:
    tokenizer = byte_level(HEADED if ended else HEADED.replace("<|im_end|>", ""))
    with pytest.raises(DataError, match=r"puts text between prompt and answer.*found 'all\\n'"):
        render(tokenizer, "q", "overall 4")
    sampled = render(tokenizer, "q", "all\n4")
    prompt = "<|im_start|>user>>>q<|im_end|><|im_start|>assistant>>>"
    assert sampled.prompt + sampled.response == (prompt if ended else prompt.replace("<|im_end|>", "")) + "all\n4"


def test_a_header_that_an_answer_goes_without_is_not_missed() -> None:
    """As a call of a tool goes: the template writes this answer as it was sampled."""
    unless_called = HEADED.replace("== 'assistant' %}all", "== 'assistant' and 'call' not in m['content'] %}all")
    assert render(byte_level(unless_called), "q", "call\n4").response == "call\n4"


@pytest.mark.parametrize("block", [" ", "<think></think>", "\n<think>\n\n</think>\n\n", "<seed:think>\n</seed:think>"])
def test_what_says_nothing_may_be_left_out(block: str) -> None:
    template = CHATML.replace(
        "{{ m['content'] }}", f"{{% if m['role'] == 'assistant' %}}{block}{{% endif %}}{{{{ m['content'] }}}}"
    )
    text = render(byte_level(template), "q", "4")
    assert text.prompt.endswith("assistant\n") and text.response == "4"


def test_an_answer_ends_with_both_of_two_tokens_and_nothing_after() -> None:
    tokenizer = two_ends()
    expected = tokenizer("<|im_start|>user\nq<|im_end|><|im_start|>assistant\n4<|end_response|><|im_end|>")["input_ids"]
    # as a server gives it, and as it is decoded where the last token alone is left out
    for response in ("4", "4<|end_response|>"):
        ids, start = encode_example(tokenizer, "q", response)
        assert ids == expected and tokenizer.decode(ids[start:]) == "4<|end_response|><|im_end|>"
    with pytest.raises(DataError, match="holds the token that ends"):
        encode_example(tokenizer, "q", "4<|end_response|>5")


def test_what_stands_before_the_end_is_written_once_and_no_part_of_a_response_that_was_cut_off() -> None:
    tokenizer = byte_level(CHATML.replace("<|im_end|>", "\n<|im_end|>"))
    ids = {}
    for response, finished in (("It is 4.", True), ("It is 4.\n", True), ("It is 4.\n", False)):
        (encoded,) = encode(tokenizer, [render(tokenizer, "q", response, finished=finished)])
        assert not isinstance(encoded, DataError)
        ids[response, finished] = tokenizer.decode(encoded.input_ids[encoded.response_start :])
    assert list(ids.values()) == ["It is 4.\n<|im_end|>", "It is 4.\n<|im_end|>", "It is 4.\n"]


@pytest.mark.parametrize(
    ("end", "ending", "added", "special"),
    [
        ("<|eot|>", "<|eot|>", ["<|eot|>"], True),  # as Llama 3: not the end of sequence
        ("<|eot|><|im_start|>", "<|eot|>", ["<|eot|>"], True),  # the next turn
        ("<|eot|>\n<|im_end|>", "<|eot|>", ["<|eot|>"], True),
        ("<|im_end|>2", "<|im_end|>2", ["<|im_end|>2"], True),  # one token begins as another does
        ("</answer><|im_end|>", "</answer><|im_end|>", ["</answer>"], False),
    ],
)
def test_the_first_special_token_ends_an_answer(end: str, ending: str, added: list[str], special: bool) -> None:
    tokenizer = byte_level(CHATML.replace("<|im_end|>", end))
    tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in added], special)
    ids, start = encode_example(tokenizer, "q", "4")
    assert tokenizer.decode(ids[start:]) == f"4{ending}"
    if special:
        with pytest.raises(DataError, match="holds the token that ends"):
            render(tokenizer, "q", f"4{added[0]}5")
    else:
        assert render(tokenizer, "q", f"4{added[0]}5").response == f"4{added[0]}5"


@pytest.mark.parametrize(
    ("written", "message"),
    [("", "leaves the answer out"), ("{{ m['content'] }}{{ '!' if '4' in m['content'] }}", "changes the response")],
)
def test_a_template_that_writes_another_answer_is_refused(written: str, message: str) -> None:
    template = CHATML.replace(
        "{{ m['content'] }}", f"{{% if m['role'] == 'user' %}}q{{% else %}}{written}{{% endif %}}"
    )
    with pytest.raises(DataError, match=message):
        render(byte_level(template), "q", "It is 4")


@pytest.mark.parametrize("prompt_format", ["chat", "plain"])
def test_a_response_that_nothing_could_end_is_refused(prompt_format: Any) -> None:
    tokenizer = byte_level(ENDLESS)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match=r"token that ends a turn|no end-of-sequence token"):
        render(tokenizer, "q", "a", prompt_format=prompt_format)


def test_a_response_that_was_cut_off_keeps_its_last_token() -> None:
    tokenizer = two_ends()
    (cut,) = encode(tokenizer, [render(tokenizer, "q", "4 and", finished=False)])
    assert not isinstance(cut, DataError) and tokenizer.decode(cut.input_ids[cut.response_start :]) == "4 and"


@pytest.mark.parametrize("options", [{}, {"prompt_format": "plain"}])
def test_the_token_that_closes_where_no_template_does_is_refused_too(options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="holds the token that ends"):
        encode_example(byte_level(ENDLESS), "q", "a<|im_end|>b", **options)
