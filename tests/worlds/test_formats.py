from __future__ import annotations

import random
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvrm_lightning.worlds.arithmetic.checker import check
from ipvrm_lightning.worlds.arithmetic.formats import FORMATS, parse, render_solution
from ipvrm_lightning.worlds.arithmetic.problems import (
    NAMES,
    OPERATIONS,
    Answer,
    Difficulty,
    Noise,
    Step,
    Term,
    generate,
    solve,
)
from ipvrm_lightning.worlds.arithmetic.tokenizer import EOS, PAD, build_tokenizer

numbers = st.integers(0, 10**6)
names = st.sampled_from(NAMES)
terms = st.builds(Term, st.none() | names, numbers)
steps = st.builds(Step, names, st.sampled_from(sorted(OPERATIONS)), terms, terms, numbers)
answers = st.builds(Answer, names, numbers)
TOKENIZER = build_tokenizer()


@given(lines=st.lists(steps | answers, min_size=1, max_size=8), surface=st.sampled_from(FORMATS))
def test_rendering_and_parsing_round_trip(lines: list, surface) -> None:
    assert parse(render_solution(lines, surface), surface) == lines


@given(lines=st.lists(steps | answers, min_size=1, max_size=8), surface=st.sampled_from(FORMATS))
def test_tokenizer_round_trip_with_exact_offsets(lines: list, surface) -> None:
    text = render_solution(lines, surface)
    encoded = TOKENIZER(text, return_offsets_mapping=True)
    assert TOKENIZER.decode(encoded.input_ids) == text
    assert TOKENIZER.unk_token_id not in encoded.input_ids
    spans = encoded["offset_mapping"]
    assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert spans[-1][1] == len(text)


@given(line=steps)
def test_formats_do_not_read_each_other(line: Step) -> None:
    for surface in FORMATS:
        for other in FORMATS:
            assert (other.parse_line(surface.render_line(line)) == line) == (other is surface)


def test_all_formats_say_the_same_problem_and_solution() -> None:
    noise = Noise(dict.fromkeys(OPERATIONS, 0.2), copy=0.1, answer=0.1)
    generator = random.Random(1)
    for problem in islice(generate(Difficulty(), 5), 100):
        lines = solve(problem, noise, generator)
        verdicts = [check(problem, render_solution(lines, surface), surface) for surface in FORMATS]
        assert len({(verdict.first_error, verdict.answer, verdict.correct) for verdict in verdicts}) == 1
        assert verdicts[0].first_error >= 0 or verdicts[0].correct
        prompts = [surface.render_prompt(problem) for surface in FORMATS]
        assert len(set(prompts)) == 3
        for prompt in prompts:
            ids = TOKENIZER(prompt).input_ids
            assert TOKENIZER.decode(ids) == prompt
            assert TOKENIZER.unk_token_id not in ids


def test_digits_and_line_breaks_are_tokens_of_their_own() -> None:
    assert TOKENIZER.tokenize("d = b14 * 3 = d42\nanswer d42") == [
        *("d", " = ", "b", "1", "4", " * ", "3", " = ", "d", "4", "2"),
        *("\n", "answer ", "d", "4", "2"),
    ]


def test_special_tokens(tmp_path) -> None:
    from transformers import AutoTokenizer

    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (loaded.pad_token, loaded.eos_token, loaded.bos_token) == (PAD, EOS, None)
    assert loaded.pad_token_id != loaded.eos_token_id
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    assert loaded("a = 12 + 3 = a15\n").input_ids == TOKENIZER("a = 12 + 3 = a15\n").input_ids
    assert not loaded.chat_template


@pytest.mark.parametrize("surface", FORMATS, ids=lambda surface: surface.name)
def test_words_are_distinct(surface) -> None:
    assert set(surface.words) == set(OPERATIONS)
    assert len(set(surface.words.values())) == len(OPERATIONS)
