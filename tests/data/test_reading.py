"""Files, folders, forms, and errors that say where."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ipvrm_lightning.data.reading import LeftOut, find_files, is_hub_name, read_rows
from ipvrm_lightning.data.rollouts import read_rollouts
from ipvrm_lightning.data.schema import DataError

USER = {"role": "user", "content": "3+4?"}
RIGHT = {"role": "assistant", "content": "7"}
WRONG = {"role": "assistant", "content": "8"}

#: Every form, with the same two answers to the same prompt.
FORMS: dict[str, list[dict[str, Any]]] = {
    "conversation": [{"conversation": [USER, RIGHT], "label": 1}, {"conversation": [USER, WRONG], "label": 0.0}],
    "chosen": [{"chosen": [USER, RIGHT], "rejected": [USER, WRONG]}],
    "prompt_chosen": [{"prompt": "3+4?", "chosen": "7", "rejected": "8"}],
    "prompt_chosen_messages": [{"prompt": [USER], "chosen": [RIGHT], "rejected": [WRONG]}],
    "prompt_chosen_whole": [{"prompt": "3+4?", "chosen": [USER, RIGHT], "rejected": [USER, WRONG]}],
    "grouped": [{"prompt": "3+4?", "responses": ["7", "8"], "scores": [1.0, 0.0]}],
    "hub": [{"prompt": "3+4?", "completions": ["7", "8"], "correctness": [True, False], "dataset": "math"}],
    "unpaired": [
        {"prompt": "3+4?", "completion": "7", "label": True},
        {"prompt": [USER], "completion": [WRONG], "label": False},
    ],
}


def write(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows, indent=1))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    rows = [{"prompt": f"p{i}", "responses": ["a", "b"], "scores": [0, 1]} for i in range(5)]
    path = write(tmp_path, rows, name)
    expected = [(str(path), i, row) for i, row in enumerate(rows, 1)]
    assert list(read_rows(str(path))) == list(read_rows(tmp_path)) == list(read_rows([path])) == expected


def test_json_file_of_lines_and_numbers_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "lines.json"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert [(row, record["a"]) for _, row, record in read_rows(path)] == [(1, 1), (3, 2)]


def test_folder_is_read_in_order_of_names(tmp_path: Path) -> None:
    write(tmp_path, [{"a": 2}], "b.parquet")
    write(tmp_path, [{"a": 1}], "a.jsonl")
    (tmp_path / "readme.txt").write_text("not data")
    assert [record["a"] for _, _, record in read_rows(tmp_path)] == [1, 2]


@pytest.mark.parametrize("inside", [".", "data"])
def test_folder_whose_file_names_tell_splits_is_read_by_split(tmp_path: Path, inside: str) -> None:
    """As the hub reads them: a test split in the folder of the training data must not be trained on."""
    folder = tmp_path / inside
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(["test.jsonl", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]):
        write(folder, [{"a": number}], name)
    assert [record["a"] for _, _, record in read_rows(tmp_path)] == [1, 2]
    assert [record["a"] for _, _, record in read_rows(tmp_path, split="test")] == [0]
    with pytest.raises(DataError, match=r"has the splits test, train, none of the name 'validation'"):
        list(read_rows(tmp_path, split="validation"))


def test_folder_of_one_split_or_of_none_is_read_whole(tmp_path: Path) -> None:
    for number, name in enumerate(["part-1.jsonl", "part-2.jsonl", "test.jsonl"]):
        write(tmp_path, [{"a": number}], name)
    assert [record["a"] for _, _, record in read_rows(tmp_path)] == [0, 1, 2]


def test_broken_files_name_file_and_line(tmp_path: Path) -> None:
    lines, array, table = tmp_path / "a.jsonl", tmp_path / "b.json", tmp_path / "c.parquet"
    lines.write_text('{"a": 1}\n{"a": \n')
    array.write_text('[\n{"a": 1},\n{"a" 2}]')
    table.write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match=r"a\.jsonl, row 2: broken JSON .*found '\{\"a\":'"):
        list(read_rows(lines))
    with pytest.raises(DataError, match=r"b\.json: broken JSON in line 3"):
        list(read_rows(array))
    with pytest.raises(DataError, match=r"c\.parquet: not readable as parquet"):
        list(read_rows(table))
    write(tmp_path, [[1]], "d.jsonl")
    with pytest.raises(DataError, match=r"d\.jsonl, row 1: record is not a mapping of columns, found \[1\]"):
        list(read_rows(tmp_path / "d.jsonl"))


def test_missing_paths_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", "data/none.parquet", "./owner/name"):
        assert not is_hub_name(str(path))
        with pytest.raises(DataError, match=f"{path}: no such file or folder"):
            list(read_rows(str(path)))
    with pytest.raises(DataError, match=r"folder holds no \.json"):
        list(read_rows(tmp_path))
    (tmp_path / "x.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"x\.csv: unknown kind of file '\.csv'"):
        list(read_rows(tmp_path / "x.csv"))


def test_a_folder_whose_files_lie_deeper_names_the_folders_to_give(tmp_path: Path) -> None:
    """As `hf download` writes a data set of several configurations."""
    for configuration in ("en", "all"):
        (tmp_path / configuration).mkdir()
        (tmp_path / configuration / "train-00000-of-00001.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"file; give one of its folders: all, en$"):
        find_files(tmp_path)


def test_hub_name_is_read_from_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    assert is_hub_name("Windy0822/ultrainteract_math_rollout")
    asked: list[Any] = []

    def load_dataset(name: str, configuration: str | None, split: str) -> list[dict[str, int]]:
        asked.append((name, configuration, split))
        if split == "none":
            raise ValueError('Unknown split "none".\nmore')
        return [{"a": 1}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(read_rows("owner/name", split="test")) == [("owner/name", 1, {"a": 1})]
    with pytest.raises(
        DataError, match=r"^owner/name: no such local path, and the hub gave no split 'none' \(ValueErr"
    ):
        list(read_rows("owner/name", split="none"))
    assert list(read_rows("owner/name:main")) == [("owner/name:main", 1, {"a": 1})]
    assert asked == [("owner/name", None, "test"), ("owner/name", None, "none"), ("owner/name", "main", "train")]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_recognised(tmp_path: Path, form: str) -> None:
    rollouts = list(read_rollouts(write(tmp_path, FORMS[form]), LeftOut()))
    assert [(r.response, r.outcome) for r in rollouts] == [("7", 1), ("8", 0)]
    assert all(r.prompt in ("3+4?", [USER]) for r in rollouts)
    assert len({r.pair for r in rollouts}) == 1 and (rollouts[0].pair is not None) is ("chosen" in form)
    assert len({r.metadata["id"] for r in rollouts}) == 2
    assert rollouts[0].metadata["subset"] == ("math" if form == "hub" else "rows")


def test_a_folder_of_ipvrm_rollout_is_read_without_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{\n "format": 1\n}')
    (tmp_path / "rollouts.jsonl").write_text('{"a": 1}\n')
    assert [row for _, _, row in read_rows(tmp_path)] == [{"a": 1}]
    with pytest.raises(DataError, match=r"manifest\.json, row 1: neither a list of records nor one record a line"):
        list(read_rows(tmp_path / "manifest.json"))


def test_an_answers_column_of_single_responses_is_not_theirs(tmp_path: Path) -> None:
    row = {"prompt": "3+4?", "completion": "8", "label": 0, "answers": ["7", "seven"]}
    (rollout,) = read_rollouts(write(tmp_path, [row]), LeftOut())
    assert rollout.metadata["answer"] is None


@pytest.mark.parametrize("key", ["reasoning_content", "tool_calls"])
def test_what_a_message_holds_beside_its_content_is_not_dropped(tmp_path: Path, key: str) -> None:
    answer = {"role": "assistant", "content": "7", key: "long thought"}
    row = {"conversation": [USER, answer], "label": 1}
    with pytest.raises(DataError, match=rf"row 1, field 'conversation\[1\]\.{key}': {key} would be left out"):
        list(read_rollouts(write(tmp_path, [row]), LeftOut()))
    row = {"conversation": [USER, {**answer, key: None}], "label": 1}
    assert len(list(read_rollouts(write(tmp_path, [row]), LeftOut()))) == 1


OPENED = [USER, {"role": "assistant", "content": "Let me see: "}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": OPENED, "completion": "7", "label": 1},
        {"prompt": OPENED, "responses": ["7"], "scores": [1]},
        {"conversation": [*OPENED, {"role": "assistant", "content": "7"}], "label": 1},
    ],
)
def test_a_prompt_that_ends_with_an_answer_is_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"row 1, .*ends with the assistant's message; put the beginning of the answer"):
        list(read_rollouts(write(tmp_path, [row]), LeftOut()))
    answered = [*OPENED, USER, {"role": "assistant", "content": "7"}]
    assert len(list(read_rollouts(write(tmp_path, [{"conversation": answered, "label": 1}]), LeftOut()))) == 1


@pytest.mark.parametrize("tools", [[{"type": "function", "function": {"name": "add"}}], '[{"name": "add"}]'])
def test_definitions_of_tools_are_not_dropped(tmp_path: Path, tools: Any) -> None:
    row = {"prompt": [USER], "completion": "7", "label": 1}
    with pytest.raises(DataError, match="row 1, field 'tools': tool definitions would be left out"):
        list(read_rollouts(write(tmp_path, [{**row, "tools": tools}]), LeftOut()))
    for none in (None, [], "", "[]", ["python"], "python"):  # the last two name what was used, and define nothing
        assert len(list(read_rollouts(write(tmp_path, [{**row, "tools": none}]), LeftOut()))) == 1


def test_skipped_rows_are_counted_by_reason_wherever_it_stands(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "responses": ["a"] * n + [""], "scores": [0] * (n + 1)} for n in range(3)]
    left_out = LeftOut("skip")
    assert not list(read_rollouts(write(tmp_path, rows), left_out))
    assert left_out.counts == {"skipped: responses: empty response": 3}


TURNS = [USER, {"role": "assistant", "content": "4?"}, {"role": "user", "content": "Sure?"}]
SYSTEM = {"role": "system", "content": "Think."}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"conversation": [*TURNS, RIGHT]}, TURNS),
        ({"prompt": TURNS, "completion": "7"}, TURNS),
        ({"prompt": TURNS, "completion": [RIGHT]}, TURNS),
        ({"prompt": TURNS, "completion": [*TURNS, RIGHT]}, TURNS),
        ({"prompt": "3+4?", "completion": [*TURNS[1:], RIGHT]}, TURNS),
        ({"prompt": "3+4?", "completion": [*TURNS, RIGHT]}, TURNS),
        ({"prompt": [USER], "completion": [SYSTEM, USER, RIGHT]}, [SYSTEM, USER]),
        ({"prompt": "3+4?", "completion": [SYSTEM, *TURNS, RIGHT]}, [SYSTEM, *TURNS]),
        ({"prompt": [SYSTEM, USER], "completion": [SYSTEM, USER, RIGHT]}, [SYSTEM, USER]),
        ({"prompt": [SYSTEM, USER], "completion": [RIGHT]}, [SYSTEM, USER]),
        ({"prompt": "3+4?", "completion": [RIGHT]}, "3+4?"),  # text, as a tokenizer without a template needs it
    ],
)
def test_the_last_answer_of_a_conversation_is_the_response_to_all_before_it(
    tmp_path: Path, row: dict[str, Any], prompt: str | list[dict[str, str]]
) -> None:
    (rollout,) = read_rollouts(write(tmp_path, [{**row, "label": 1}]), LeftOut())
    assert (rollout.prompt, rollout.response) == (prompt, "7")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [SYSTEM, USER], "completion": [USER, RIGHT]},
        {"prompt": "3+4?", "completion": [SYSTEM, TURNS[2], RIGHT]},
        {"prompt": TURNS, "completion": [USER, RIGHT]},
    ],
)
def test_a_conversation_with_another_beginning_is_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="conversation does not begin with the prompt"):
        list(read_rollouts(write(tmp_path, [{**row, "label": 1}]), LeftOut()))


def test_completions_may_be_lists_of_steps(tmp_path: Path) -> None:
    row = {"prompt": "q", "completions": [["one", "two"], ["three"]], "correctness": [1, 0], "id": 5}
    rollouts = list(read_rollouts(write(tmp_path, [row]), LeftOut()))
    assert [(r.response, r.metadata["id"]) for r in rollouts] == [("one\n\ntwo", "5-0"), ("three", "5-1")]


def test_final_answers_are_kept(tmp_path: Path) -> None:
    row = {"prompt": "q", "responses": ["a", "b", "c"], "scores": [1, 0, 1], "answers": ["7", None, 7]}
    rollouts = list(read_rollouts(write(tmp_path, [row]), LeftOut()))
    assert [r.metadata["answer"] for r in rollouts] == ["7", None, "7"]


def test_cut_off_responses_are_known_where_a_group_says_so(tmp_path: Path) -> None:
    group = {"prompt": "q", "responses": ["a", "b"], "scores": [1, 0]}
    hub = {"prompt": "q", "completions": ["a", "b"], "correctness": [1, 0]}
    for row in (group, hub):
        rows = [{**row, "finished": [True, False]}, row, {**row, "finished": None}]
        found = [r.finished for r in read_rollouts(write(tmp_path, rows), LeftOut())]
        assert found == [True, False, True, True, True, True]
    other = {"conversation": [USER, RIGHT], "label": 1, "finished": "long ago"}  # means something else there
    assert [r.finished for r in read_rollouts(write(tmp_path, [other]), LeftOut())] == [True]


GOOD = {"conversation": [USER, RIGHT], "label": 1}
GROUP = {"prompt": "q", "responses": ["a", "b"], "scores": [1, 0]}
BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "label": (GOOD, {**GOOD, "label": 2}, "field 'label': label is not 0 or 1, found 2"),
    "label text": (GOOD, {**GOOD, "label": "1"}, "field 'label': label is not 0 or 1, found '1'"),
    "label none": (GOOD, {**GOOD, "label": None}, "field 'label': label is not 0 or 1, found None"),
    "missing": (GOOD, {"conversation": [USER, RIGHT], "lable": 1}, "field 'label': missing column, found ['con"),
    "user last": (GOOD, {**GOOD, "conversation": [USER]}, "'conversation': conversation does not end with the assist"),
    "no prompt": (GOOD, {**GOOD, "conversation": [RIGHT]}, "conversation has no prompt before the answer"),
    "empty": (
        GOOD,
        {**GOOD, "conversation": [USER, {"role": "assistant", "content": " \n"}]},
        "field 'conversation': empty response, found ' \\n'",
    ),
    "role": (
        GOOD,
        {**GOOD, "conversation": [USER, {"role": "bot", "content": "7"}]},
        "field 'conversation[1].role': role is none of system, user, assistant, tool, found 'bot'",
    ),
    "text": (
        GOOD,
        {**GOOD, "conversation": [{"role": "user", "content": 3}, RIGHT]},
        "field 'conversation[0].content': text is not a string, found 3",
    ),
    "keys": (
        GOOD,
        {**GOOD, "conversation": [{"from": "user", "value": "q"}, RIGHT]},
        "field 'conversation[0]': message has no role, found ['from', 'value']",
    ),
    "not list": (GOOD, {**GOOD, "conversation": "3+4? 7"}, "field 'conversation': not a list, found '3+4? 7'"),
    "lengths": (GROUP, {**GROUP, "scores": [1]}, "field 'scores': lengths differ, found"),
    "score": (GROUP, {**GROUP, "scores": [1, 0.5]}, "field 'scores[1]': label is not 0 or 1, found 0.5"),
    "response": (GROUP, {**GROUP, "responses": ["a", 5]}, "field 'responses[1]': response is neither text nor mess"),
    "blank": (GROUP, {**GROUP, "responses": ["", "b"]}, "field 'responses[0]': empty response, found ''"),
    "answer": (
        GROUP,
        {**GROUP, "answers": ["7", {"of": 7}]},
        "field 'answers[1]': answer is neither text nor a number",
    ),
    "finished": (GROUP, {**GROUP, "finished": [True, 0]}, "field 'finished[1]': neither true nor false, found 0"),
    "finished length": (GROUP, {**GROUP, "finished": [True]}, "'finished': lengths differ, found '1 entries of 2 resp"),
    "finished list": (GROUP, {**GROUP, "finished": True}, "field 'finished': not a list, found True"),
    "prompt": (GROUP, {**GROUP, "prompt": ""}, "field 'prompt': empty text, found ''"),
    "pair": (
        {"chosen": [USER, RIGHT], "rejected": [USER, WRONG]},
        {"chosen": [USER, RIGHT], "rejected": [{"role": "user", "content": "other"}, WRONG]},
        "field 'rejected': prompt differs from that of 'chosen'",
    ),
    "whole": (
        {"prompt": "3+4?", "chosen": [USER, RIGHT], "rejected": [USER, WRONG]},
        {"prompt": "other", "chosen": [USER, RIGHT], "rejected": [USER, WRONG]},
        "field 'chosen': conversation does not begin with the prompt, found '3+4?'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_one_line_with_file_row_and_field(tmp_path: Path, case: str) -> None:
    good, bad, message = BAD[case]
    path = write(tmp_path, [good, bad])
    with pytest.raises(DataError) as caught:
        list(read_rollouts(path, LeftOut()))
    text = str(caught.value)
    assert text.startswith(f"{path}, row 2, field '") and message in text and "\n" not in text
    assert str(pickle.loads(pickle.dumps(caught.value))) == text


def test_an_error_says_the_same_in_another_process() -> None:
    for error in (DataError("missing", field="x"), DataError("not one", found=3), DataError("no list", found={"a": 1})):
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_row_that_names_no_part_is_named_after_its_file(tmp_path: Path) -> None:
    rows = [{**GOOD, "data_source": name} for name in ("MATH-500", "", None)]
    path = write(tmp_path, rows)
    found = [rollout.metadata["subset"] for rollout in read_rollouts(path, LeftOut())]
    assert found == ["MATH-500", path.stem, path.stem]


def test_skipped_rows_are_counted_by_reason(tmp_path: Path) -> None:
    rows = [GOOD, {**GOOD, "label": 2}, {**GOOD, "label": 3}, {**GOOD, "conversation": [USER]}, GOOD]
    left_out = LeftOut("skip")
    assert len(list(read_rollouts(write(tmp_path, rows), left_out))) == 2
    assert left_out.counts == Counter(
        {
            "skipped: label: label is not 0 or 1": 2,
            "skipped: conversation: conversation does not end with the assistant": 1,
        }
    )


def test_unknown_form_lists_what_is_there_and_what_is_known(tmp_path: Path) -> None:
    path = write(tmp_path, [{"question": "q", "answer": "a"}])
    for mode in ("error", "skip"):
        with pytest.raises(DataError) as caught:
            list(read_rollouts(path, LeftOut(mode)))
        assert str(caught.value).startswith(f"{path}, row 1: no known form has the columns answer, question; known are")
        assert "conversation+label" in str(caught.value) and "prompt+completions+correctness" in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [{"problem": "q", "steps": ["a"], "label": -1, "id": "1"}, {"prompt": "q", "completions": ["a"], "labels": [True]}],
)
def test_solutions_with_labelled_steps_are_sent_to_the_overlay_that_judges_them(
    row: dict[str, object], tmp_path: Path
) -> None:
    path = write(tmp_path, [row])
    with pytest.raises(DataError, match=r"row 1: .*configs/data/processbench.yaml, with --data.path FILE"):
        list(read_rollouts(path, LeftOut("error")))
