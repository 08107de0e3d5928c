from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ipvrm_lightning.metrics.score_file import read_scores, write_scores
from ipvrm_lightning.types import ScoredSolution

Make = Callable[..., list[ScoredSolution]]


def test_everything_reads_back_bit_for_bit(tmp_path: Path, make_solutions: Make) -> None:
    solutions = make_solutions(30)
    extreme = replace(
        solutions[0],
        id='extreme \n line \u2028 "quoted"',
        step_scores={"step_sum": [5e-324 if index else 1 / 3 for index, _ in enumerate(solutions[0].step_lengths)]},
        final_answer_correct=None,
        final_value=-0.0,
    )
    path = write_scores(tmp_path / "new" / "scores.jsonl", [*solutions, extreme])
    back = {one.id: one for one in read_scores(path)}
    assert back == {one.id: one for one in [*solutions, extreme]}
    value = back[extreme.id].final_value
    assert value is not None and math.copysign(1, value) == -1
    assert [file.name for file in path.parent.iterdir()] == ["scores.jsonl"]


def test_the_file_does_not_depend_on_the_order(tmp_path: Path, make_solutions: Make) -> None:
    solutions = make_solutions(30)
    first = write_scores(tmp_path / "a.jsonl", solutions).read_bytes()
    random.Random(0).shuffle(solutions)
    assert write_scores(tmp_path / "b.jsonl", solutions).read_bytes() == first


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, make_solutions: Make) -> None:
    path = write_scores(tmp_path / "scores.jsonl", make_solutions(3))
    before = path.read_bytes()
    bad = replace(make_solutions(1)[0], label=99)
    with pytest.raises(ValueError, match="label"):
        write_scores(path, [bad])
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 1.0}, r"label: expected -1 or the index of one of 2 steps, found 1\.0"),
        ({"label": 2}, "label: .* found 2"),
        ({"label": True}, "label: .* found True"),
        ({"problem": 7}, "problem: expected text, found 7"),
        ({"shared_problem": 7}, "shared_problem: expected text or null, found 7"),
        ({"step_scores": {"step_sum": [1.0]}}, r"step_scores\.step_sum: expected 2 scores"),
        ({"step_scores": {"step_sum": [1.0, "high"]}}, r"found 'high' at step 1"),
        *(({"step_scores": {"step_sum": values}}, "expected 2 scores, found") for values in ("ab", {"0": 1, "1": 2})),
        *(({"step_scores": {"step_sum": [0.0, one]}}, "at step 1") for one in (True, 2**53 + 1, -(2**53) - 1, None)),
        *(({"step_scores": scores}, "at least one protocol") for scores in ({}, [1], None)),
        *(
            ({"step_lengths": lengths}, "step_lengths: expected one length per step and at least one, found")
            for lengths in ([], 2, "ab", [3, -1], [3, 4.0], [True, 4], [3, 2**53 + 1])
        ),
        ({"final_value": "1"}, "final_value: expected a finite number or null, found '1'"),
        ({"final_answer_correct": 1}, "final_answer_correct: expected true, false or null, found 1"),
        ({"score": 1}, "score: unknown field"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    good = ScoredSolution("a", "s", "p", 0, {"step_sum": [0.0, 1.0]}, [3, 4])
    path = tmp_path / "scores.jsonl"
    path.write_text(json.dumps(asdict(good)) + "\n" + json.dumps({**asdict(good), **change}) + "\n")
    with pytest.raises(ValueError, match=rf"scores\.jsonl, line 2: {message}|scores\.jsonl, line 2: .*{message}"):
        read_scores(path)


def test_the_widest_numbers_other_alphabets_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    scores: list[float] = [2**53, -(2**53)]
    widest = ScoredSolution("ä", "s", "p", 1, {"step_sum": scores}, [0, 2**53], None, 2**53, shared_problem="問")
    path = write_scores(tmp_path / "scores.jsonl", [widest])
    assert "問".encode() in path.read_bytes()
    line = path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\xff" + line)
    with pytest.raises(ValueError, match=r"line 2: not UTF-8 \(invalid start byte at byte 0\)"):
        read_scores(path)
    path.write_bytes(b"\xef\xbb\xbf" + line)
    assert read_scores(path) == [widest]
    path.write_bytes(line + b"\xef\xbb\xbf" + line)  # two files put together: a mark is none within
    with pytest.raises(ValueError, match="line 2: not JSON"):
        read_scores(path)
    with pytest.raises(ValueError, match="final_value: expected a finite number or null, found inf"):
        write_scores(path, [replace(widest, final_value=math.inf)])


def test_what_is_no_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    for text, message in (
        ("{broken\n", "line 1: not JSON"),
        ("[]\n", "line 1: expected an object"),
        ('{"id": "a"}\n', "line 1: subset: missing"),
        ("\n", "no scored solutions"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_scores(path)
