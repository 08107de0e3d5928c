from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ipvrm_lightning.metrics.token_file import TokenRecord, read_tokens, record_to_line, write_tokens

RECORD = TokenRecord(
    "a \u2028 b",
    "s",
    1,
    "What?",
    ["1", " + é", "", "<eos>"],
    [0, 1, 1, -1],
    [0.5, -1 / 3, 0.0, 1e-9],
    [0.5, 0.1, 0, 0.1],
)


def test_it_reads_back_to_five_digits(tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "new" / "tokens.jsonl", [record_to_line(RECORD)])
    (back,) = read_tokens(path)
    assert back.td_advantages == pytest.approx(RECORD.td_advantages, rel=1e-4)
    assert {**asdict(back), "td_advantages": 0} == {**asdict(RECORD), "td_advantages": 0}
    others = [replace(RECORD, id=str(label), label=label, prompt="ä問") for label in (-1, 0, 1)]
    back_again = read_tokens(write_tokens(path, map(record_to_line, others)))
    assert [(one.label, one.prompt) for one in back_again] == [(label, "ä問") for label in (-1, 0, 1)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 2}, "label: expected -1 or one of 2 steps, found 2"),
        ({"label": True}, "label: .* found True"),
        ({"label": 10**400}, "label: .* found 1000"),  # beyond any float
        ({"values": [0.1, 0.2, 10**400, 0.3]}, "values: expected a list of int or float"),
        ({"step_ids": [0, 1, 1, 2**53 + 1]}, "step_ids: expected a list of int"),
        ({"tokens": None}, "tokens: expected a list of str"),
        ({"tokens": []}, "tokens: expected one per token and at least one, found 0 for 0 tokens"),
        ({"tokens": ["\ud800", "", "", ""]}, "tokens: expected a list of str"),
        ({"step_ids": [0, 1, 1]}, "step_ids: .* found 3 for 4 tokens"),
        ({"step_ids": [0, 1, 1, -2]}, "step_ids: expected -1 or the number of a step, found -2"),
        ({"values": [0.1, 0.2, None, 0.3]}, "values: expected a list of int or float"),
        ({"values": [0.1, 0.2, float("nan"), 0.3]}, "values: expected a list of int or float"),
        ({"td_advantages": [0.1, 0.2, "x", 0.3]}, "td_advantages: expected a list of int or float"),
        ({"prompt": 1}, "prompt: expected text, found 1"),
        ({"extra": 1}, "extra: unknown field"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "tokens.jsonl"
    path.write_text("\n" + json.dumps({**asdict(RECORD), **change}) + "\n")
    with pytest.raises(ValueError, match=rf"tokens\.jsonl, line 2: {message}"):
        read_tokens(path)


def test_a_solution_occurs_once(tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "tokens.jsonl", [record_to_line(RECORD)] * 2)
    with pytest.raises(ValueError, match=r"line 2: id: .* occurs twice in subset 's'"):
        read_tokens(path)
