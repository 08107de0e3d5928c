"""Text of sampled responses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ipvrm_lightning.data.chat import encode_example, encode_prompts, render_prompt
from ipvrm_lightning.rollouts.ends import end_token_ids, response_text
from ipvrm_lightning.rollouts.sampler import SampledResponse
from tests.data.tokenizers import byte_level

TEMPLATE = (
    "<s>{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]"
    "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
WORDS = ["▁", "▁The", "The", "▁sum", "▁is", "4", ".", "q", "é"]


def sentencepiece(kind: str) -> PreTrainedTokenizerFast:
    """As Mistral's and Llama 2's: words begin with their space, unknown characters are bytes."""
    special = ["<unk>", "<s>", "</s>", *(["[INST]", "[/INST]"] if kind == "metaspace" else [])]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    scores = [0.0 if piece in special else -1.0 if len(piece) > 1 and "▁" in piece else -3.0 for piece in pieces]
    core = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=0, byte_fallback=True))
    if kind == "normalizer":
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=TEMPLATE
    )


@pytest.mark.parametrize(("own", "named"), [(None, []), (7, [7]), ([7, 1, 9], [7, 9])])
def test_a_response_ends_at_any_token_that_tokenizer_model_or_settings_name(own: Any, named: list[int]) -> None:
    tokenizer: Any = SimpleNamespace(eos_token_id=1, get_vocab=lambda: {"<end>": 5, "</s>": 1})
    model: Any = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=own))
    assert end_token_ids(tokenizer, model, ["<end>", "</s>"]) == [1, *named, 5]


@pytest.mark.parametrize("kind", ["normalizer", "metaspace"])
@pytest.mark.parametrize("words", [["▁The", "▁sum", "▁is", "▁", "4", "."], ["The", "▁sum"], ["▁", "▁The"], ["é", "▁"]])
def test_what_was_sampled_is_what_is_trained_on(kind: str, words: list[str]) -> None:
    tokenizer = sentencepiece(kind)
    (prompt,) = encode_prompts(tokenizer, [render_prompt(tokenizer, "q")])
    sampled = tokenizer.convert_tokens_to_ids([*words, "</s>"])
    text = response_text(tokenizer, SampledResponse(sampled, True))
    assert text == "".join(words).replace("▁", " ")
    assert response_text(tokenizer, SampledResponse(sampled[:-1], False)) == text
    ids, start = encode_example(tokenizer, "q", text)
    assert (ids[:start], ids[start:]) == (prompt, sampled)


def test_characters_that_were_cut_off_are_replaced_alone() -> None:
    tokenizer = sentencepiece("metaspace")
    ids = tokenizer.convert_tokens_to_ids(["▁is", "<0xE6>", "<0x97>"])
    assert response_text(tokenizer, SampledResponse(ids, False)) == " is\ufffd\ufffd"
    assert response_text(tokenizer, SampledResponse(ids[1:], False)) == "\ufffd\ufffd"


@pytest.mark.parametrize("text", [" 4 and", "4 , and", "<s>4", "é日", "\n 4"])
def test_byte_level_responses_are_their_characters(text: str) -> None:
    tokenizer = byte_level()
    ids = tokenizer(text)["input_ids"]
    assert response_text(tokenizer, SampledResponse([*ids, tokenizer.eos_token_id], True)) == text
