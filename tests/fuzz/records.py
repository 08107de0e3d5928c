"""Files of trajectories, prompts, solutions and scores, sound ones and spoilt ones."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from .damage import DAMAGE, HARMLESS, ODD_VALUES
from .driver import Case

Record = dict[str, Any]


def _chat(*texts: str) -> list[Record]:
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=False)]


TRAJECTORIES: list[Record] = [
    {"prompt": "1 + 1?", "responses": ["2", "3", "so 2"], "scores": [1, 0, 1.0], "answers": ["2", "3", None]},
    {"prompt": _chat("1 + 2?"), "completions": ["3", ["a", "b"]], "correctness": [True, False]},
    {"conversation": _chat("1 + 3?", "4"), "label": 1, "id": "x", "data_source": "math"},
    {"prompt": "1 + 4?", "completion": "5", "label": False},
    {"prompt": "1 + 5?", "chosen": "6", "rejected": "7"},
    {"chosen": _chat("1 + 6?", "7"), "rejected": _chat("1 + 6?", "8")},
]
PROMPTS: list[Record] = [
    {"prompt": "1 + 1?", "ground_truth": "2", "id": "p"},
    {"problem": _chat("1 + 2?"), "answer": 3, "data_source": "math"},
    {"question": "1 + 3?", "reward_model": {"ground_truth": "4"}, "extra_info": {"index": 7}},
]
SOLUTIONS: list[Record] = [
    {"id": "s-0", "problem": "1 + 1?", "steps": ["add", "2"], "label": -1, "final_answer_correct": True},
    {"prompt": "1 + 2?", "completions": ["add", "4"], "labels": [True, False]},
]
SCORES: list[Record] = [
    {
        "id": "s-0",
        "subset": "gsm8k",
        "problem": "p0",
        "label": 1,
        "step_scores": {"step_sum": [0.5, -1.0], "step_mean": [0.25, -0.5]},
        "step_lengths": [3, 9],
        "final_answer_correct": False,
        "final_value": 0.25,
    }
]


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a record, the record itself first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, part in inner for path in _paths(part, (*at, key)))]


def _place(record: Record, path: tuple[Any, ...]) -> Any:
    for key in path:
        record = record[key]
    return record


@st.composite
def _spoilt(draw: Callable[..., Any], record: Record) -> tuple[str, Any]:
    """A record with one thing wrong (or merely odd) in it, and what that is."""
    record = copy.deepcopy(record)
    how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "repeat", "wrap", "column"]))
    path = draw(st.sampled_from(_paths(record)[1:]))
    parent, key = _place(record, path[:-1]), path[-1]
    if how == "replace":
        parent[key] = draw(st.sampled_from(ODD_VALUES) | st.text(max_size=20) | st.integers() | st.floats())
    elif how == "remove":
        del parent[key]
    elif how == "add":
        name = draw(
            st.sampled_from(["id", "answers", "subset", "data_source", "extra_info", "answer", "label", "\ud800"])
        )
        record[name] = draw(st.sampled_from(ODD_VALUES))
    elif how == "repeat" and isinstance(parent, list):
        parent.append(parent[key])
    elif how == "column":
        record[draw(st.sampled_from(["PROMPT", "step", "", "a.b"]))] = record.pop(next(iter(record)))
    else:
        parent[key] = draw(st.sampled_from([[parent[key]], {"value": parent[key]}, str(parent[key])]))
    return f"{how} {path}", record


@st.composite
def _rows(draw: Callable[..., Any], records: list[Record], mixed: bool) -> tuple[str, list[Any]]:
    """Two to four records of one form, with up to two spoilt, repeated or of another form."""
    record = draw(st.sampled_from(records))
    rows: list[Any] = []
    for number in range(draw(st.integers(2, 4))):
        row = copy.deepcopy(record)
        if "id" in row:
            row["id"] = f"{row['id']}-{number}"
        rows.append(row)
    labels = []
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(rows) - 1))
        how = draw(st.sampled_from(["spoil", "spoil", "spoil", "again", "other form", "no record"]))
        label = how
        if how == "spoil":
            if not isinstance(rows[place], dict) or len(rows[place]) < 2:
                continue
            label, rows[place] = draw(_spoilt(rows[place]))
        elif how == "again":
            rows.append(copy.deepcopy(rows[place]))
        elif how == "other form":
            rows[place] = copy.deepcopy(draw(st.sampled_from(records if mixed else ODD_VALUES)))
        else:
            rows[place] = draw(st.sampled_from(ODD_VALUES))
        labels.append(f"row {place + 1}: {label}")
    return ", ".join(labels), rows


def _jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _parquet(rows: list[Any]) -> bytes | None:
    """The rows as parquet, None where they have no common schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_pylist(rows), out)
    except Exception:
        return None
    return out.getvalue()


@st.composite
def _files(
    draw: Callable[..., Any], records: list[Record], stem: str, kinds: list[str]
) -> tuple[str, str, bytes, bool]:
    """What was done, name, content, and whether nothing was done."""
    label, rows = draw(_rows(records, mixed=True))
    kind = draw(st.sampled_from(kinds))
    content = _jsonl(rows)
    if kind == ".json":
        content = json.dumps(rows).encode()
    elif kind == ".parquet" and (table := _parquet(rows)) is not None:
        content = table
    elif kind == ".parquet":
        kind = ".jsonl"
    damage = draw(st.none() | st.none() | st.sampled_from(sorted(DAMAGE)))
    if damage is not None:
        content = DAMAGE[damage](content, draw(st.integers(1, 10_000)))
        label = f"{label}; {damage}".lstrip("; ")
    sound = not label or (label in HARMLESS and kind != ".parquet")
    return label or "nothing", stem + kind, content, sound


KINDS = [".jsonl", ".jsonl", ".json", ".parquet"]


@st.composite
def trajectories(draw: Callable[..., Any], configs: str) -> Case:
    """`ipvrm fit` and `test` on rollouts."""
    label, name, content, sound = draw(_files(TRAJECTORIES, "rollouts", KINDS))
    extra = draw(st.sampled_from([(), (), ("--data.on_bad_rows", "skip"), ("--data.validation_fraction", "0.5")]))
    command = draw(st.sampled_from(["fit", "fit", "test"]))
    if command == "test":
        extra = (*extra, "--data.test", f"{{here}}/{name}")
    return Case(
        "trajectories",
        f"{name}: {label} {extra}",
        {name: content},
        (command, "--config", f"{configs}/fit.yaml", "--data.train", f"{{here}}/{name}", *_out(), *extra),
        (f"{{here}}/{name}", "validation"),
        valid=sound and not extra,
    )


@st.composite
def prompts(draw: Callable[..., Any], configs: str) -> Case:
    """`ipvrm rollout` on prompts."""
    label, name, content, sound = draw(_files(PROMPTS, "prompts", KINDS))
    extra = draw(st.sampled_from([(), (), ("--prompts.on_bad_rows", "skip")]))
    return Case(
        "prompts",
        f"{name}: {label} {extra}",
        {name: content},
        (
            *("rollout", "--config", f"{configs}/rollout.yaml"),
            *("--prompts.train", f"{{here}}/{name}", "--output", "{out}", *extra),
        ),
        (f"{{here}}/{name}",),
        valid=sound,
    )


@st.composite
def solutions(draw: Callable[..., Any], configs: str) -> Case:
    """`ipvrm test` and `predict` on solutions with a first wrong step."""
    label, name, content, sound = draw(_files(SOLUTIONS, "gsm8k", KINDS))
    extra = draw(st.sampled_from([(), (), ("--data.on_bad_rows", "skip"), ("--data.subsets", "[math]")]))
    command = draw(st.sampled_from(["test", "test", "predict"]))
    return Case(
        "ProcessBench",
        f"{command} {name}: {label} {extra}",
        {f"bench/{name}": content},
        (command, "--config", f"{configs}/test.yaml", "--data.path", "{here}/bench", *_out(), *extra),
        ("{here}/bench",),
        valid=sound and "--data.subsets" not in extra,
    )


@st.composite
def scores(draw: Callable[..., Any], configs: str) -> Case:
    """`ipvrm judge` on a score file."""
    label, name, content, sound = draw(_files(SCORES, "scores", [".jsonl"]))
    return Case(
        "scores",
        f"{name}: {label}",
        {name: content},
        ("judge", f"{{here}}/{name}", "--resamples", "2", "--random-seeds", "2", "--json", "{out}/report.json"),
        (f"{{here}}/{name}",),
        valid=sound,
    )


def _out() -> tuple[str, ...]:
    return "--trainer.default_root_dir", "{out}"
