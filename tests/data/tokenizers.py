"""Tiny tokenizers with chat templates, made on the spot."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: The first message changes once an answer is there.
REWRITING = (
    "{% for m in messages %}{% if m['role'] == 'user' and messages|length > 1 %}[old] {% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRIPPING = CHATML.replace("m['content']", "m['content'] | trim")
#: As Qwen3: an empty thinking block before the last answer, and after the generation prompt if thinking is off.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and '</think>' not in m['content'] %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
#: As Qwen3.5: the prompt opens a thinking block, which an answer without thoughts finds empty.
HALF_OPEN = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}<think>\n"
    "{% if '</think>' not in m['content'] %}{{ '\n</think>\n\n' }}{% endif %}{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '\n</think>\n\n' }}{% endif %}{% endif %}"
)
#: As functionary: the model itself names whom its answer is for.
HEADED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}>>>{% if m['role'] == 'assistant' %}all\n{% endif %}"
    "{{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant>>>{% endif %}"
)
#: As Command A: one token ends the answer and one the turn, and the next turn may follow at once.
TWO_ENDS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}<|end_response|>{% endif %}<|im_end|>{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
#: As Llama 3.2: the day stands in the prompt.
DATED = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "[{{ date_string }}]" + CHATML
)
ENDLESS = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
CORPUS = ["Step 1: To find the sum we add 3 and 4.\n\nStep 2: The answer is 7. user assistant \\frac{1}{2}"] * 4


def byte_level(
    template: str | None = CHATML, *, bos: bool = False, eos: bool = False, trim_offsets: bool = False, **options: Any
) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges: any text, several tokens for some characters; `eos`: it ends texts itself."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    parts: list[Any] = [processors.ByteLevel(trim_offsets=trim_offsets)]
    if bos or eos:
        around = [(token, core.token_to_id(token)) for token in ("<s>", "<|im_end|>")]
        single = f"{'<s> ' if bos else ''}$A{' <|im_end|>' if eos else ''}"
        parts.append(processors.TemplateProcessing(single=single, special_tokens=around))
    core.post_processor = processors.Sequence(parts)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=template,
        **options,
    )
