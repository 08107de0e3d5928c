"""Chat templates, response starts and steps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from ipvrm_lightning.data.chat import encode, encode_example, encode_prompts, render, render_prompt
from ipvrm_lightning.data.schema import DataError
from ipvrm_lightning.data.steps import assign_steps, encode_steps, join_steps
from tests.data.tokenizers import CHATML, DATED, ENDLESS, REWRITING, STRIPPING, THINKING, byte_level

CHAT = byte_level()
PLAIN = byte_level(None)
TRIMMED = byte_level(trim_offsets=True)
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=30).filter(
    lambda text: text.strip() and "<|im" not in text
)


def test_response_ends_with_the_end_of_turn_and_nothing_after() -> None:
    ids, start = encode_example(CHAT, "3+4?", "It is 7.")
    assert CHAT.decode(ids[:start]) == "<|im_start|>user\n3+4?<|im_end|>\n<|im_start|>assistant\n"
    assert CHAT.decode(ids[start:]) == "It is 7.<|im_end|>"
    assert ids[-1] == CHAT.eos_token_id


def test_text_prompt_is_one_user_message() -> None:
    assert encode_example(CHAT, "3+4?", "7") == encode_example(CHAT, [{"role": "user", "content": "3+4?"}], "7")
    assert encode_example(CHAT, "3+4?", "7") == encode_example(CHAT, "3+4?", "7", prompt_format="chat")


def test_system_prompt_only_where_messages_have_none() -> None:
    own = [{"role": "system", "content": "own"}, {"role": "user", "content": "q"}]
    assert render(CHAT, "q", "a", system_prompt="be brief").prompt.startswith("<|im_start|>system\nbe brief<|im_end|>")
    assert "be brief" not in render(CHAT, own, "a", system_prompt="be brief").prompt


def test_plain_is_prompt_response_and_eos() -> None:
    ids, start = encode_example(PLAIN, "3+4=", " 7")
    assert PLAIN.decode(ids) == "3+4= 7<|im_end|>"
    assert PLAIN.decode(ids[start:]) == " 7<|im_end|>"
    assert encode_example(CHAT, "3+4=", " 7", prompt_format="plain") == (ids, start)


def test_bos_only_where_the_tokenizer_adds_it() -> None:
    with_bos = byte_level(None, bos=True)
    ids, start = encode_example(with_bos, "q", "a")
    assert ids[0] == with_bos.bos_token_id and ids.count(with_bos.bos_token_id) == 1
    assert with_bos.decode(ids[start:]) == "a<|im_end|>"
    chat_ids, _ = encode_example(byte_level(CHATML, bos=True), "q", "a")
    assert with_bos.bos_token_id not in chat_ids


def test_a_tokenizer_that_ends_texts_itself_ends_no_prompt_and_no_response_twice() -> None:
    """Nor a response that was cut off."""
    ends, plain = byte_level(None, bos=True, eos=True), byte_level(None, bos=True)
    assert ends("q")["input_ids"][-1] == ends.eos_token_id
    assert encode_example(ends, "q", " a") == encode_example(plain, "q", " a")
    assert encode_prompts(ends, ["q"]) == [plain("q")["input_ids"]]
    (cut,) = encode(ends, [render(ends, "q", " a", finished=False)])
    assert not isinstance(cut, DataError) and cut.input_ids == plain("q a")["input_ids"]
    assert encode_steps(ends, "q", [" a", "b"]) == encode_steps(plain, "q", [" a", "b"])


@pytest.mark.parametrize("tokenizer", [CHAT, PLAIN], ids=["chat", "plain"])
def test_a_special_token_that_begins_a_response_is_the_responses(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, start = encode_example(tokenizer, "q", "<s>4")
    assert tokenizer.convert_ids_to_tokens(ids[start:]) == ["<s>", "4", "<|im_end|>"]


def test_one_token_of_the_prompt_is_enough() -> None:
    ids, start = encode_example(PLAIN, "x", " 7")
    assert (len(ids), start) == (3, 1)


def test_an_added_token_across_the_boundary_counts_as_response_too() -> None:
    tokenizer = byte_level(None)
    tokenizer.add_tokens([AddedToken("</answer>", special=False, normalized=False)])
    ids, start = encode_example(tokenizer, "x</ans", "wer>")
    assert tokenizer.convert_ids_to_tokens(ids[start:]) == ["</answer>", "<|im_end|>"]


def test_a_token_across_the_boundary_counts_as_response() -> None:
    ids, start = encode_example(PLAIN, "x St", "ep 1")
    whole = PLAIN("x Step 1")["input_ids"]
    assert ids == [*whole, PLAIN.eos_token_id]
    assert PLAIN.decode(ids[start:]) == "Step 1<|im_end|>"


def test_no_prompt_token_is_refused() -> None:
    with pytest.raises(DataError, match="no token of the prompt"):
        encode_example(PLAIN, "S", "tep 1")


def test_template_that_rewrites_the_prompt_is_refused_with_the_reason() -> None:
    with pytest.raises(DataError, match=r"rewrites the prompt.*part at character 0.*\[old\]"):
        encode_example(byte_level(REWRITING), "q", "a")


def test_template_that_strips_the_response_is_refused_with_the_reason() -> None:
    tokenizer = byte_level(STRIPPING)
    assert str(tokenizer.decode(encode_example(tokenizer, "q", "a")[0])).endswith("a<|im_end|>")
    with pytest.raises(DataError, match="changes the response"):
        encode_example(tokenizer, "q", " a")


@pytest.mark.parametrize("kwargs", [None, {"enable_thinking": True}, {"enable_thinking": False}])
def test_a_response_follows_the_prompt_that_it_is_sampled_after(kwargs: dict[str, Any] | None) -> None:
    """Whatever a template would put between: of a group, answers with and without thoughts have one prompt."""
    tokenizer = byte_level(THINKING)
    prompt = render_prompt(tokenizer, "q", chat_template_kwargs=kwargs)
    block = "<think>\n\n</think>\n\n" if kwargs == {"enable_thinking": False} else ""
    assert prompt == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n" + block
    responses = ["a", "a <think>"] if block else ["a", "<think>\nwell\n</think>\n\na", "<think>\nwell, cut"]
    for response in responses:
        text = render(tokenizer, "q", response, chat_template_kwargs=kwargs)
        assert text[:3] == (prompt, response, "<|im_end|>")


def test_thoughts_that_the_prompt_opens_are_an_answer_as_it_was_sampled() -> None:
    """Of a template that closes an empty block before the answer, whatever that holds."""
    opened = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}").replace(
        "{{ m['content'] }}", "{{ '<think></think>' if m['role'] == 'assistant' }}{{ m['content'] }}"
    )
    text = render(byte_level(opened), "q", "well</think>a")
    assert (text.prompt.rpartition("\n")[2], text.response, text.ending) == ("<think>", "well</think>a", "<|im_end|>")
    with pytest.raises(DataError, match="puts text between prompt and answer"):
        render(byte_level(opened), "q", "a")


def test_the_day_changes_no_prompt() -> None:
    prompt = render_prompt(byte_level(DATED), "q")
    assert prompt.startswith("[26 Jul 2024]")
    assert render(byte_level(DATED), "q", "a").prompt == prompt
    given = {"date_string": "1 Jan 2030"}
    assert render_prompt(byte_level(DATED), "q", chat_template_kwargs=given).startswith("[1 Jan 2030]")


def test_a_special_token_that_swallows_white_space_behind_it_stays_in_the_prompt() -> None:
    tokenizer = byte_level(
        CHATML.replace("assistant\n{% endif %}", "assistant<|sep|>{% endif %}").replace(
            "<|im_start|>{{ m['role'] }}\n", "<|im_start|>{{ m['role'] }}<|sep|>"
        )
    )
    tokenizer.add_tokens([AddedToken("<|sep|>", rstrip=True, special=True)], special_tokens=True)
    ids, start = encode_example(tokenizer, "q", "  7")
    assert tokenizer.convert_ids_to_tokens(ids[start - 1]) == "<|sep|>"
    assert tokenizer.decode(ids[start:]) == "7<|im_end|>"


def test_template_without_end_of_turn_gets_eos() -> None:
    tokenizer = byte_level(ENDLESS)
    ids, start = encode_example(tokenizer, "q", "a")
    assert tokenizer.decode(ids) == "user: q\nassistant: a<|im_end|>"
    assert str(tokenizer.decode(ids[start:])).strip() == "a<|im_end|>"


def test_response_that_holds_its_end_is_refused() -> None:
    for tokenizer in (CHAT, PLAIN):
        with pytest.raises(DataError, match="holds the token that ends"):
            encode_example(tokenizer, "q", "a<|im_end|>")


def test_what_cannot_be_rendered_is_refused() -> None:
    with pytest.raises(DataError, match="need a tokenizer with a chat template"):
        encode_example(PLAIN, [{"role": "user", "content": "q"}], "a")
    with pytest.raises(DataError, match="has no chat template"):
        encode_example(PLAIN, "q", "a", prompt_format="chat")
    with pytest.raises(DataError, match="template refuses"):
        encode_example(byte_level("{{ raise_exception('no tools') }}"), "q", "a")


class _Slow:
    is_fast = False
    chat_template = None


def test_tokenizer_without_offsets_is_refused() -> None:
    with pytest.raises(DataError, match="_Slow gives no character offsets"):
        encode_example(_Slow(), "q", "a")  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(prompt=TEXT, response=TEXT)
def test_tokens_spell_the_text(prompt: str, response: str) -> None:
    ids, start = encode_example(CHAT, prompt, response)
    assert CHAT.decode(ids[start:], clean_up_tokenization_spaces=False) == response + "<|im_end|>"
    assert CHAT.decode(ids[:start]) == f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


@settings(max_examples=60, deadline=None)
@given(prompt=TEXT, steps=st.lists(TEXT, min_size=1, max_size=6))
def test_tokens_of_a_step_spell_the_step(prompt: str, steps: list[str]) -> None:
    encoded = encode_steps(CHAT, prompt, steps, separator="\n~\n")
    response = encoded.input_ids[encoded.response_start :]
    assert encoded.step_ids[-1] == -1 and len(encoded.step_ids) == len(response)
    spelled = [b"" for _ in steps]
    for token, step in zip(response[:-1], encoded.step_ids[:-1], strict=True):
        spelled[step] += _bytes(token)
    expected = [f"Step {i + 1}: {step}" for i, step in enumerate(steps)]
    assert [text.decode() for text in spelled] == [text + "\n~\n" for text in expected[:-1]] + expected[-1:]


def _bytes(token: int) -> bytes:
    """Bytes of a byte-level token, by the alphabet's published table."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    table = {character: byte for byte, character in bytes_to_unicode().items()}
    return bytes(table[character] for character in CHAT.convert_ids_to_tokens(token))


def test_trimmed_offsets_give_the_same_steps() -> None:
    steps = ["To find 3", "  so 4", "The answer is 7."]
    assert encode_steps(TRIMMED, "q", steps) == encode_steps(CHAT, "q", steps)


@pytest.mark.parametrize("tokenizer", [CHAT, TRIMMED], ids=["spaces in offsets", "trimmed"])
@pytest.mark.parametrize(("steps", "separator"), [(["It is", "we 3", "is é"], " "), (["It is", " we 3", " is é"], "")])
def test_a_word_that_holds_the_space_before_it_is_of_its_own_step(
    tokenizer: PreTrainedTokenizerFast, steps: list[str], separator: str
) -> None:
    encoded = encode_steps(tokenizer, "q", steps, step_template="{step}", separator=separator)
    tokens = ["I", "t", "Ġis", "Ġwe", "Ġ3", "Ġis", "Ġ", "Ã", "©", "<|im_end|>"]
    assert tokenizer.convert_ids_to_tokens(encoded.input_ids[encoded.response_start :]) == tokens
    assert encoded.step_ids == [0, 0, 0, 1, 1, 2, 2, 2, 2, -1]


def test_spaces_alone_go_where_they_begin() -> None:
    for tokenizer in (CHAT, TRIMMED):  # "7.", " ", "So": the separator is a token of its own
        encoded = encode_steps(tokenizer, "q", ["7.", "So"], step_template="{step}", separator=" ")
        assert encoded.step_ids == [0, 0, 0, 1, 1, -1]


def test_steps_are_joined_as_text_even_with_braces() -> None:
    assert join_steps(["\\frac{1}{2}", "{step}"]) == ("Step 1: \\frac{1}{2}\n\nStep 2: {step}", [0, 21])


def test_a_step_without_a_token_is_refused_by_name() -> None:
    # Two steps of one byte pair each with nothing between them: "St"+"ep" is one token, which begins in step 1.
    with pytest.raises(DataError, match=r"steps\[1\].*no token begins in this step, found 'step 2'"):
        encode_steps(CHAT, "q", ["St", "ep"], step_template="{step}", separator="")


def test_a_token_of_two_steps_is_of_the_one_it_begins_in() -> None:
    encoded = encode_steps(CHAT, "q", ["S", "tep 1"], step_template="{step}", separator="")
    assert CHAT.convert_ids_to_tokens(encoded.input_ids[encoded.response_start :]) == ["Step", "Ġ1", "<|im_end|>"]
    assert encoded.step_ids == [0, 1, -1]


def test_tokens_that_are_not_in_the_order_of_the_text_are_refused() -> None:
    encoded: Any = SimpleNamespace(first_letters=[0, 5, 2, 6])
    assert assign_steps(encoded, [0, 2], 6) == [0, 1, 1, -1]
    with pytest.raises(DataError, match="not in the order of the text"):
        assign_steps(encoded, [0, 4], 7)
