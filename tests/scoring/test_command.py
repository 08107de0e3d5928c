"""`ipvrm score`: what is read, what is printed, and files that a stopped run goes on with."""

from __future__ import annotations

import io
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

from ipvrm_lightning.cli import main
from ipvrm_lightning.data.steps import join_steps
from ipvrm_lightning.functional import PROTOCOLS
from ipvrm_lightning.models.exported import Layout, ModelSource
from ipvrm_lightning.score_cli import OBJECTIVES, build_parser
from ipvrm_lightning.score_cli import PROTOCOLS as OFFERED
from ipvrm_lightning.scoring import PrefixValueModel, ScoreRequest, command
from ipvrm_lightning.scoring.description import Part, describe
from ipvrm_lightning.scoring.opening import open_encoder
from ipvrm_lightning.scoring.requests import read_requests, split_solution
from ipvrm_lightning.scoring.store import ScoreStore
from ipvrm_lightning.scoring.store import _digest as digest_of

from .conftest import Judged


@pytest.fixture
def solutions(judged: Judged, tmp_path: Path) -> Path:
    file = tmp_path / "solutions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in judged.rows[:6]))
    return file


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading weights is a failure of the test."""

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("ipvrm_lightning.scoring.model.load_frozen", load)


def score(*arguments: str) -> None:
    main(["score", *arguments])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        score(*arguments)
    assert ended.value.code in (1, 2)
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_precision_that_drowns_log_ratios_is_noted(
    judged: Judged, solutions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for dtype in ("bfloat16", "float32"):
        score("--model", judged.export, str(solutions), "--format", "jsonl", "--device", "cpu", "--dtype", dtype)
        noted = "note: the model is of float32; in bfloat16 rounding can exceed" in capsys.readouterr().err
        assert noted == (dtype == "bfloat16")


def test_a_threshold_of_a_test_in_another_precision_is_noted(
    judged: Judged, solutions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = shutil.copytree(judged.export, tmp_path / "export")
    record = json.loads((export / "ipvrm_config.json").read_text())
    options = (str(solutions), "--format", "jsonl", "--device", "cpu")
    for precision, more, expected in (
        ("bf16-mixed", (), True),
        ("bf16-mixed", ("--threshold", "0"), False),
        ("bf16-mixed", ("--separator", "|"), False),
        ("32-true", (), False),
        (None, (), False),
    ):
        (export / "ipvrm_config.json").write_text(json.dumps({**record, "thresholds_precision": precision}))
        score("--model", str(export), *options, *more)
        assert ("note: thresholds were chosen in bf16-mixed" in capsys.readouterr().err) == expected
        with warnings.catch_warnings(record=True) as warned:
            PrefixValueModel.from_pretrained(str(export), device="cpu")
        said = [str(one.message) for one in warned if "thresholds were chosen" in str(one.message)]
        assert len(said) == (precision == "bf16-mixed")
        assert all(one.startswith(f"{export}: thresholds were chosen in bf16-mixed") for one in said)


def test_json_lines_are_what_python_says(judged: Judged, solutions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score("--model", judged.export, str(solutions), "--format", "jsonl", "--device", "cpu")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    scorer = PrefixValueModel.from_pretrained(judged.export, device="cpu")
    asked = [ScoreRequest(row["problem"], row["steps"], row["id"]) for row in judged.rows[:6]]
    assert lines == [json.loads(json.dumps(one.to_dict())) for one in scorer.score_many(asked)]
    score("--model", judged.export, str(solutions), "--format", "json", "--tokens")
    listed = json.loads(capsys.readouterr().out)
    assert [one["id"] for one in listed] == [row["id"] for row in judged.rows[:6]]
    assert all(one["tokens"] for one in listed)


def test_a_table_names_the_first_error(judged: Judged, capsys: pytest.CaptureFixture[str]) -> None:
    problem = ("--problem", "1 + 1?", "--solution", r"take \neq [bold]x[/bold]" + "\n\nso 2")
    score("--model", judged.export, *problem, "--threshold", "1e9")
    shown = capsys.readouterr().out
    assert r"take \neq [bold]x[/bold]" in shown and "so 2" in shown
    assert "first error" in shown and "after it" in shown
    assert "step 1 is the first with step_sum below 1e+09" in shown
    score("--model", judged.export, *problem, "--protocol", "prefix_mean", "--step_template", "{step}")
    caught = capsys.readouterr()
    assert "no verdict: give --threshold, or export with --results" in " ".join(caught.out.split())
    assert "prefix_mean" in caught.out and "thresholds are for its own layout" in caught.err


@pytest.mark.parametrize("array", [True, False])
def test_standard_input_is_read(
    array: bool, judged: Judged, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"problem": "1?", "solution": "a\n\nb"}, {"problem": "2?", "solution": "c", "steps": None}]
    text = json.dumps(rows, indent=1) if array else "\n".join(map(json.dumps, rows))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    score("--model", judged.export, "-", "--format", "jsonl")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["id"], len(line["steps"])) for line in lines] == [("standard input-1", 2), ("standard input-2", 1)]
    monkeypatch.setattr("sys.stdin", io.StringIO("\ufeffa\n\nb"))
    score("--model", judged.export, "--problem", "1?", "--solution", "-", "--format", "jsonl")
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["final_value"] == pytest.approx(lines[0]["final_value"], abs=1e-5)


def test_a_file_goes_on_where_it_was(
    judged: Judged, solutions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "WINDOW", 4)
    out = tmp_path / "results" / "scores.jsonl"
    command_line = ("--model", judged.export, str(solutions), "--out", str(out))
    score(*command_line)
    assert "6 solutions, 6 of them scored in this run" in capsys.readouterr().out
    whole = out.read_bytes()
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [line["id"] for line in lines] == [row["id"] for row in judged.rows[:6]]
    # a run that was killed while it wrote the fourth line
    kept = whole.splitlines(keepends=True)
    out.write_bytes(b"".join(kept[:3]) + kept[3][:40])
    scored: list[str] = []
    encoded = PrefixValueModel.score_encoded
    monkeypatch.setattr(
        PrefixValueModel,
        "score_encoded",
        lambda self, chosen, **options: (
            scored.extend(one.request.id for one in chosen) or encoded(self, chosen, **options)
        ),
    )
    score(*command_line)
    assert scored == [row["id"] for row in judged.rows[3:6]]
    again = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert [line["id"] for line in again] == [line["id"] for line in lines]
    for old, new in zip(lines, again, strict=True):
        assert new["final_value"] == pytest.approx(old["final_value"], abs=1e-5)
        assert new["tokens_hash"] == old["tokens_hash"]
    # more rows, and nothing new
    solutions.write_text(solutions.read_text() + json.dumps(judged.rows[6]) + "\n")
    score(*command_line)
    assert scored[3:] == [judged.rows[6]["id"]]
    before = out.read_bytes()
    monkeypatch.setattr("ipvrm_lightning.scoring.model.load_frozen", None)  # nothing is loaded for nothing
    score(*command_line)
    assert out.read_bytes() == before


@pytest.mark.usefixtures("no_weights")
def test_a_file_of_other_settings_is_refused(
    judged: Judged, solutions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.jsonl"
    out.write_text('{"id": "gsm8k-0", "tokens_hash": "0"}\n')
    command_line = ("--model", judged.export, str(solutions), "--out", str(out))
    assert f"{out}: no scores.jsonl.settings.json beside it says what made it" in refused(capsys, *command_line)
    chosen = build_parser().parse_args(list(command_line))
    settings = {**command._settings(command.described(chosen)), "tokens": False}
    record = tmp_path / "scores.jsonl.settings.json"
    record.write_text(json.dumps(settings))
    assert "solution 'gsm8k-0' was scored with another text or other tokens" in refused(capsys, *command_line)
    for name, *option in (
        ("threshold", "--threshold", "0.25"),
        ("protocol", "--protocol", "step_mean"),
        ("dtype", "--dtype", "bfloat16"),
        ("layout", "--separator", "|"),
        ("tokens", "--tokens"),
    ):
        assert f"was made with {name} " in refused(capsys, *command_line, *option)
    for name in ("objective", "reference", "temperature"):
        record.write_text(json.dumps({**settings, name: "another"}))
        assert f"was made with {name} another, now it is {settings[name]}: use" in refused(capsys, *command_line)
    for before, old, now in (
        ({**settings, "top": 1}, "top 1", "not set"),
        ({name: value for name, value in settings.items() if name != "temperature"}, "temperature not set", "1.0"),
    ):
        record.write_text(json.dumps(before))
        assert f"was made with {old}, now it is {now}: use" in refused(capsys, *command_line)
    assert settings["dtype"] == "float32"
    assert command.described(build_parser().parse_args([*command_line, "--trust_remote_code"])).trust_remote_code
    record.write_text(json.dumps({**settings, "model": "another"}))
    assert "was made with model another, now it is" in refused(capsys, *command_line)
    record.write_text(json.dumps(settings))
    out.write_text("{}\n")
    assert f"{out}, row 1: broken line" in refused(capsys, *command_line)
    assert "--out writes JSONL" in refused(capsys, *command_line, "--format", "table")


def test_other_weights_in_the_same_folders_are_another_model(judged: Judged, copied_base: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(judged.export, tmp_path / "adapter"))
    part, seen = Part(ModelSource(str(copied_base)), str(adapter)), []
    for file in (None, copied_base / "model.safetensors", adapter / "adapter_model.safetensors"):
        if file is not None:
            file.write_bytes(file.read_bytes() + b"0")
        seen.append(command._identity(part))
    assert len(set(seen)) == 3 and command._identity(part) == seen[-1]
    pair = command._settings(describe(str(copied_base), beta=1.0, reference=judged.base))
    own, reference = (command._identity(Part(ModelSource(name))) for name in (str(copied_base), judged.base))
    assert own != reference and (pair["model"], pair["reference"]) == (own, reference)


def test_the_same_text_in_other_steps_is_another_solution(judged: Judged, tmp_path: Path) -> None:
    layout = Layout("plain", step_template="{step}")
    encoder = open_encoder(describe(judged.export).read_as(layout=layout, protocol=None, threshold=None))
    one, two = encoder.encode([ScoreRequest("1?", steps, "a") for steps in (["a\n\nb"], ["a", "b"])])
    assert one.text == two.text and one.example.input_ids == two.example.input_ids
    line = {"id": "a", "tokens_hash": digest_of(one)}
    (tmp_path / "scores.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "scores.jsonl.settings.json").write_text("{}")
    with ScoreStore(tmp_path / "scores.jsonl", {}) as store:
        assert store.holds(one)
        with pytest.raises(ValueError, match="was scored with another text or other tokens"):
            store.holds(two)


def test_other_configs_beside_the_same_weights_are_another_model(
    judged: Judged, copied_base: Path, tmp_path: Path
) -> None:
    adapter = Path(shutil.copytree(judged.export, tmp_path / "adapter"))
    files = {"base": copied_base / "config.json", "adapter": adapter / "adapter_config.json"}

    def identity(file: str, **changes: Any) -> str:
        files[file].write_text(json.dumps(json.loads(files[file].read_text()) | changes))
        return command._identity(Part(ModelSource(str(copied_base)), str(adapter)))

    layers = json.loads(files["adapter"].read_text())["target_modules"]
    first = identity("adapter", base_model_name_or_path="elsewhere", target_modules=layers[::-1])
    assert len(layers) > 1 and first == identity("base", transformers_version="0", _name_or_path="elsewhere")
    seen = [first, identity("adapter", lora_alpha=1000), identity("base", rms_norm_eps=0.5)]
    assert len(set(seen)) == 3
    assert command._identity(Part(ModelSource(str(copied_base)))) != identity("base", rope_theta=5.0) != seen[-1]
    files["base"].write_text("{")
    with pytest.raises(ValueError, match=f"{files['base']}: the config cannot be read"):
        command._identity(Part(ModelSource(str(copied_base))))


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"steps": ["a"]}', "row 2, field 'problem': missing column"),
        ('{"problem": "1?"}', "row 2, field 'solution': missing column"),
        ('{"problem": "1?", "steps": ["a"], "tools": [{"name": "add"}]}', "row 2, field 'tools': tool definitions"),
        ('{"problem": "1?", "steps": ["a", 1]}', r"row 2, field 'steps[1]': step is not a string, found 1"),
        ('{"problem": "1?", "steps": ["a"], "id": "\\ud800"}', "row 2, field 'id': text holds half of"),
        ('{"problem": "1?", "steps": []}', "row 2, field 'steps': empty list"),
        ('{"problem": "1?", "solution": " "}', "row 2, field 'solution': empty solution"),
        ('{"problem": "1?", "solution": "a", "id": "first"}', "row 2, field 'id': the id of "),
        ('{"problem": "1?", "steps": ["a<|im_end|>"]}', "row 2, field 'response': the text holds the token that ends"),
        ('{"problem": "1?", "steps": ["%s"]}' % ("x" * 300), "row 2, field 'steps': longer than the 250 tokens"),
        ('{"problem": "1?", "steps"', "row 2: broken JSON"),
        ("[1]", "row 2: record is not a mapping"),
    ],
)
def test_bad_rows_are_named_before_weights_are_loaded(
    line: str, message: str, judged: Judged, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"problem": "1?", "steps": ["a"], "id": "first"}\n' + line + "\n")
    out = tmp_path / "out.jsonl"
    told = refused(capsys, "--model", judged.export, str(file), "--max_length", "250", "--out", str(out))
    assert told.startswith(f"ipvrm score: {file}, {message}")
    assert not out.exists()


@pytest.mark.usefixtures("no_weights")
def test_options_that_do_not_go_together_are_refused(
    judged: Judged, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments, message in (
        ((), "give files of solutions, or --problem and --solution"),
        (("--problem", "1?"), "give files of solutions, or --problem and --solution"),
        (("x.jsonl", "--problem", "1?", "--solution", "2"), "give files of solutions"),
        (("x.jsonl", "--tokens"), "--tokens needs --format json or jsonl"),
        (("/nowhere/x.jsonl",), "no such file or folder"),
        (("--problem", "1?", "--solution", " "), "field 'steps': empty list"),
        (("--problem", "1?", "--solution", "2", "--beta", "1"), "leave beta out"),
        (("--problem", "1?", "--solution", "2", "--max_length", "-5"), "max_length must be at least 1, found -5"),
        (("-",), "standard input: no row to score"),
    ):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
        assert message in refused(capsys, "--model", judged.export, *arguments)
    assert "is no export of ipvrm" in refused(
        capsys, "--model", judged.base, "--problem", "1?", "--solution", "2"
    )  # fmt: skip


def test_a_pair_is_scored_with_its_objective(
    judged: Judged, full_export: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--problem", "1?", "--solution", "a\n\nb", "--format", "json", "--prompt_format", "plain")
    pair = ("--model", full_export, "--reference", judged.base)
    Path(full_export, "ipvrm_config.json").rename(Path(full_export, "hidden.json"))
    try:
        values = []
        for objective in (
            ("--objective", "implicit_prm"),
            ("--objective", "ipvrm", "--beta", "0.05"),
            ("--beta", "0.05"),
        ):
            score(*pair, *asked, *objective, "--separator", r"\n")
            values.append(json.loads(capsys.readouterr().out)[0]["final_value"])
    finally:
        Path(full_export, "hidden.json").rename(Path(full_export, "ipvrm_config.json"))
    tokens = len("Step 1: a\nStep 2: b") + 1
    assert values[1] == values[2] == pytest.approx(values[0] / tokens, abs=1e-6)


def test_what_the_parser_offers_is_there() -> None:
    assert OFFERED == PROTOCOLS and set(OBJECTIVES) == set(command._OBJECTIVES)


def test_blank_lines_part_steps() -> None:
    assert split_solution("\n a\nb \n\n\n c\r\n \r\nd\n") == ["a\nb", "c", "d"]
    assert split_solution(" \n ") == []


def test_what_the_layout_writes_around_a_step_is_taken_off_where_it_stands() -> None:
    template = "Step {number}: {step}"
    steps = ["a = 1\nb", "Step 2: c", "10"]
    assert split_solution(join_steps(steps)[0], template) == steps
    assert split_solution("(1) a.\n\n(2) b.", "({number}) {step}.") == ["a", "b"]
    assert split_solution("(1) a.\n\n(2) b", "({number}) {step}.") == ["(1) a.", "(2) b"]
    assert split_solution("(1)\n\n(2)b", "({number}){step}") == ["(1)", "(2)b"]  # a step would be empty
    # one that has it not, or has it with another number: none is a number of the layout's
    for text in ("Step 1: a\n\nb", "Step 1: a\n\nStep 3: b", "Step 2: a", "Step 1:\n\nStep 2: b"):
        assert split_solution(text, template) == text.split("\n\n")
    assert split_solution("Step 1: a", "{step}") == ["Step 1: a"]


def test_numbers_of_a_solution_are_not_written_twice(
    judged: Judged, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The layout of the export is "({number}) {step}"."""
    file = tmp_path / "numbered.jsonl"
    numbered = "(1) add\n\n(2) so 2"
    rows = [{"problem": "1?", "solution": numbered}, {"problem": "1?", "steps": ["add", "so 2"]}]
    rows.append({"problem": "1?", "steps": ["(1) add", "(2) so 2"]})  # given as steps: as they are
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    score("--model", judged.export, str(file), "--format", "jsonl", "--device", "cpu")
    score("--model", judged.export, "--problem", "1?", "--solution", numbered, "--format", "jsonl", "--device", "cpu")
    one, two, given, alone = (json.loads(line)["final_value"] for line in capsys.readouterr().out.splitlines())
    assert [one, alone] == pytest.approx([two, two], abs=1e-6)
    assert given != pytest.approx(two, abs=1e-6)


def test_rows_of_several_files_have_ids_of_their_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps([{"problem": "1?", "steps": [name], "label": 0}]))
    asked = read_requests([str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert [(one.request.id, one.row) for one in asked] == [("a-1", 1), ("b-1", 1)]
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.json").write_bytes((tmp_path / "a.json").read_bytes())
    again = read_requests([str(tmp_path), str(tmp_path / "more")])
    assert [one.request.id for one in again] == ["a-1", "b-1", f"{tmp_path}/more/a.json-1"]
    (tmp_path / "more" / "a.json").write_text(
        json.dumps([{"problem": "1?", "steps": ["a"], "id": n} for n in (0, None)])
    )
    assert [one.request.id for one in read_requests([str(tmp_path / "more")])] == ["0", "a-2"]


def test_a_folder_s_own_scores_are_none_of_its_solutions(
    judged: Judged, solutions: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = str(solutions.parent), solutions.parent / "scores.jsonl"
    monkeypatch.chdir(folder)
    for new, place, file in ((6, folder, str(out)), (0, ".", str(out)), (0, folder, "scores.jsonl")):
        score("--model", judged.export, place, "--out", file, "--device", "cpu")
        assert f"6 solutions, {new} of them scored in this run" in capsys.readouterr().out
    out.rename(solutions.parent / "other.jsonl")
    assert "other.jsonl, row 1, field 'problem': missing column" in refused(
        capsys, "--model", judged.export, folder, "--out", str(out)
    )
