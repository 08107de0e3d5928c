"""Solutions with a first wrong step, and the steps of their tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ipvrm_lightning.data import DataError, ProcessBenchDataModule
from tests.data.tokenizers import byte_level

TOKENIZER = byte_level()
GOOD = {
    "id": "math-0",
    "problem": "3+4+1?",
    "steps": ["3+4=7", "7+1=9", "so 9"],
    "label": 1,
    "final_answer_correct": False,
}
STEPWISE = {"prompt": "3+4+1?", "completions": ["3+4=7", "7+1=9", "so 9"], "labels": [True, False, True]}


def module(path: Path, **options: Any) -> ProcessBenchDataModule:
    data = ProcessBenchDataModule(path=str(path), **options)
    data.with_tokenizer(TOKENIZER)
    data.setup("test")
    return data


def write(folder: Path, rows: list[Any], name: str = "math.json") -> Path:
    (folder / name).write_text(json.dumps(rows))
    return folder


def test_a_solution_is_joined_and_labelled(tmp_path: Path) -> None:
    dataset = module(write(tmp_path, [GOOD])).test_sets[0]
    example = dataset[0]
    response = example.input_ids[example.response_start :]
    assert TOKENIZER.decode(response) == "Step 1: 3+4=7\n\nStep 2: 7+1=9\n\nStep 3: so 9<|im_end|>"
    assert example.step_label == 1 and example.outcome == 0 and example.step_ids is not None
    parts = [
        TOKENIZER.decode([token for token, step in zip(response, example.step_ids, strict=True) if step == number])
        for number in (0, 1, 2, -1)
    ]
    assert parts == ["Step 1: 3+4=7\n\n", "Step 2: 7+1=9\n\n", "Step 3: so 9", "<|im_end|>"]
    assert example.metadata == {
        "id": "math-0",
        "subset": "math",
        "problem": example.group,
        "step_lengths": [5, 5, 4],
        "final_answer_correct": False,
    }


def test_stepwise_form_is_the_same(tmp_path: Path) -> None:
    rows = [STEPWISE, {**STEPWISE, "labels": [True, True, True]}]
    dataset = module(write(tmp_path, rows)).test_sets[0]
    assert dataset[0].input_ids == module(write(tmp_path, [GOOD])).test_sets[0][0].input_ids
    assert dataset.step_labels is not None and dataset.step_labels.tolist() == [1, -1]
    assert dataset.outcomes is None and dataset.metadata(1)["id"] == "math-2"


def test_template_and_separator_are_arguments(tmp_path: Path) -> None:
    data = module(write(tmp_path, [GOOD]), step_template="({number}) {step}", separator=" | ", prompt_format="plain")
    assert TOKENIZER.decode(data.test_sets[0][0].input_ids) == "3+4+1?(1) 3+4=7 | (2) 7+1=9 | (3) so 9<|im_end|>"
    with pytest.raises(ValueError, match="step_template has no"):
        ProcessBenchDataModule(step_template="no step")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "label": ({**GOOD, "label": 3}, "field 'label': label is not a step number from -1 to 2, found 3"),
    "low": ({**GOOD, "label": -2}, "field 'label': label is not a step number from -1 to 2, found -2"),
    "float": ({**GOOD, "label": 0.5}, "field 'label': label is not a step number from -1 to 2, found 0.5"),
    "bool": ({**GOOD, "label": True}, "field 'label': label is not a step number from -1 to 2, found True"),
    "none": ({**GOOD, "steps": []}, "field 'steps': empty list, found []"),
    "blank": ({**GOOD, "steps": ["a", " ", "c"]}, "field 'steps[1]': empty step, found ' '"),
    "number": ({**GOOD, "steps": ["a", 2]}, "field 'steps[1]': step is not a string, found 2"),
    "text": ({**GOOD, "steps": "abc"}, "field 'steps': not a list, found 'abc'"),
    "missing": ({"problem": "p", "step": [], "label": 0}, "field 'steps': missing column; known forms are"),
    "tools": ({**GOOD, "tools": [{"name": "add"}]}, "field 'tools': tool definitions"),
    "labels": ({**STEPWISE, "labels": [True]}, "field 'labels': lengths differ, found '1 labels of 3 steps'"),
    "mark": ({**STEPWISE, "labels": [True, "no", True]}, "field 'labels[1]': label is not true or false, found 'no'"),
    "final": ({**GOOD, "final_answer_correct": "yes"}, "field 'final_answer_correct': label is not 0 or 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_named_or_skipped(tmp_path: Path, case: str) -> None:
    bad, message = BAD[case]
    form = STEPWISE if "completions" in bad else GOOD
    path = write(tmp_path, [form, bad])
    with pytest.raises(DataError) as caught:
        module(path)
    assert f"{path / 'math.json'}, row 2, {message}" in str(caught.value)
    skipped = module(path, on_bad_rows="skip")
    assert len(skipped.test_sets[0]) == 1 and sum(skipped.report.values()) == 1


def test_over_long_solutions_are_an_error_or_dropped_but_never_cut(tmp_path: Path) -> None:
    path = write(tmp_path, [GOOD, {**GOOD, "steps": ["long " * 100]}, {**GOOD, "steps": ["x", "y"]}])
    with pytest.raises(DataError, match=r"row 2.*label is not a step number"):
        module(path)
    path = write(tmp_path, [GOOD, {**GOOD, "id": "math-1", "steps": ["a", "long " * 100]}])
    with pytest.raises(DataError, match=r"row 2, field 'steps': solution is longer than max_length 150"):
        module(path, max_length=150)
    data = module(path, max_length=150, over_length="drop")
    assert len(data.test_sets[0]) == 1 and data.report == {"dropped: longer than 150 tokens (math)": 1}
    length = int(data.test_sets[0].lengths[0])
    assert data.test_sets[0][0] == module(write(tmp_path, [GOOD]), max_length=length).test_sets[0][0]
    with pytest.raises(ValueError, match="lose steps"):
        ProcessBenchDataModule(over_length="truncate")  # type: ignore[arg-type]


def test_subsets_and_limit(tmp_path: Path) -> None:
    for name in ("math", "gsm8k"):
        write(tmp_path, [{**GOOD, "id": f"{name}-{i}"} for i in range(9)], f"{name}.json")

    def ids(**options: Any) -> list[str]:
        dataset = module(tmp_path, **options).test_sets[0]
        return [dataset.metadata(i)["id"] for i in range(len(dataset))]

    assert len(ids()) == 18 and ids()[0] == "gsm8k-0"
    assert ids(subsets=["math"]) == [f"math-{i}" for i in range(9)]
    some = ids(limit=4)
    assert len(some) == 8 and some == ids(limit=4) and some != ids(limit=4, seed=1)
    with pytest.raises(
        DataError, match=r"no file for subset omnimath; .* gsm8k, math; give --data\.subsets null for all"
    ):
        module(tmp_path, subsets=["omnimath"])


def test_a_tokenizer_that_is_named_is_the_one_that_is_used(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    path = write(tmp_path, [GOOD])
    data = ProcessBenchDataModule(path=str(path / "math.json"), tokenizer=str(tmp_path / "tokenizer"))
    data.setup("test")
    assert data.test_sets[0].fingerprint() == module(path / "math.json").test_sets[0].fingerprint()


def test_hub_subsets_are_splits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, _, split: [{**GOOD, "id": f"{name} {split}"}])
    data = ProcessBenchDataModule()
    data.with_tokenizer(TOKENIZER)
    data.prepare_data()
    data.setup("test")
    names = [data.test_sets[0].metadata(i)["id"] for i in range(4)]
    assert names == [f"Qwen/ProcessBench {subset}" for subset in ("gsm8k", "math", "olympiadbench", "omnimath")]


def test_real_processbench(shared_dir: Path) -> None:
    data = module(shared_dir / "data" / "processbench")
    dataset = data.test_sets[0]
    subsets = [dataset.metadata(i)["subset"] for i in range(len(dataset))]
    assert {name: subsets.count(name) for name in set(subsets)} == {"gsm8k": 400, "math": 1000, "olympiadbench": 1000}
    assert data.report == {}
    for i in range(len(dataset)):
        steps = dataset.response_field(i, "step_ids")
        assert steps is not None and steps[-1] == -1 and steps[0] == 0
        assert len(set(steps.tolist())) - 1 == len(dataset.metadata(i)["step_lengths"])
    (loader,) = data.test_dataloader()
    assert sorted(row for batch in loader.batches for row in batch) == list(range(2400))


def test_an_id_that_comes_twice_is_refused_before_anything_is_scored(tmp_path: Path) -> None:
    row = {"id": "x", "problem": "p", "steps": ["a", "b"], "label": -1}
    file = tmp_path / "gsm8k.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in (row, {**row, "id": "y"}, row)))
    with pytest.raises(DataError) as caught:
        ProcessBenchDataModule(path=str(file)).with_tokenizer(byte_level()).setup()
    assert str(caught.value) == f"{file}, row 3, field 'id': the id of row 1, found 'x'"
    (tmp_path / "gsm8k.json").write_text("[]")
    with pytest.raises(DataError, match="two files of one subset"):
        ProcessBenchDataModule(path=str(tmp_path)).with_tokenizer(byte_level()).setup()
    file.rename(tmp_path / "average.jsonl")
    with pytest.raises(DataError, match="a subset is named 'average', as the mean over subsets is: rename it"):
        ProcessBenchDataModule(path=str(tmp_path)).with_tokenizer(byte_level()).setup()


def test_final_answers_known_of_some_solutions_only_are_no_reason_to_refuse_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, [GOOD, {**GOOD, "id": "math-1", "final_answer_correct": None}])
    dataset = module(path).test_sets[0]
    assert dataset.outcomes is None
    assert [dataset.metadata(i)["final_answer_correct"] for i in range(2)] == [GOOD["final_answer_correct"], None]
