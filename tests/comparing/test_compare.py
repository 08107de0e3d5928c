from __future__ import annotations

import csv
import io
import json
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ipvrm_lightning.cli import main
from ipvrm_lightning.functional import best_threshold, first_error
from ipvrm_lightning.metrics import JudgeSettings, write_scores
from ipvrm_lightning.metrics.resampling import assign_folds, joint_bootstrap_weights, seed_of
from ipvrm_lightning.types import ScoredSolution

from .runs import (
    DPORM,
    IMPLICIT,
    IPVRM,
    SETTINGS,
    config,
    policy_reports,
    responses_of,
    reward_model,
    reward_reports,
    solutions_of,
    write_run,
)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Three runs of IPVRM, two of DPO-RM on pairs, one of Implicit PRM."""
    for number, (objective, pairs) in enumerate([(IPVRM, False)] * 3 + [(DPORM, True)] * 2 + [(IMPLICIT, False)]):
        trained = config(reward_model(objective), seed=number, data={"pairwise": pairs})
        write_run(tmp_path, f"{number}", trained, reward_reports(number))
    return tmp_path


def shown(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    main(["compare", *map(str, arguments)])
    return capsys.readouterr().out


def compared(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shown(capsys, *arguments, "--format", "json"))
    return found


def groups(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[tuple[Any, ...], int]:
    """Values of the settings of each row, and its number of runs."""
    found = compared(capsys, *arguments)["groups"]
    return {tuple(one["settings"].values()): len(one["runs"]) for one in found}


def reports_of(study: Path, *numbers: int) -> list[dict[str, Any]]:
    return [json.loads((study / f"{number}-test/results.json").read_text())["reports"] for number in numbers]


def row(text: str, name: str, table: str) -> list[str]:
    """Cells of a row of a printed table, its interval in brackets below left out."""
    part = text[text.index(f"\n{table}") :]
    line = next(line for line in part.splitlines() if line.startswith(name))
    return re.split(r"\s{2,}", line.strip())


@pytest.mark.parametrize("origin", ["cross_fitted", "oracle"])
@pytest.mark.parametrize("protocol", ["step_sum", "step_mean"])
def test_means_and_spreads(study: Path, capsys: pytest.CaptureFixture[str], protocol: str, origin: str) -> None:
    options = ("--protocol", protocol, "--threshold", origin)
    found = compared(capsys, study, *options)
    by_objective = {one["settings"]["model.init_args.objective.class_path"]: one for one in found["groups"]}
    ipvrm = by_objective[IPVRM["class_path"]]["measures"]
    reports = reports_of(study, 0, 1, 2)
    for subset in ("alpha", "beta"):
        f1 = [one["step_f1"]["subsets"][subset]["protocols"][protocol][origin]["f1"] for one in reports]
        assert len(set(f1)) > 1
        assert ipvrm[f"step_f1.{subset}"]["mean"] == pytest.approx(np.mean(f1))
        assert ipvrm[f"step_f1.{subset}"]["spread"] == pytest.approx(np.std(f1, ddof=1))
        assert ipvrm[f"step_f1.{subset}"]["low"] is None
    average = [one["step_f1"]["average"]["protocols"][protocol][origin]["f1"] for one in reports]
    best = [one["best_of_n"]["accuracy"]["final_value"]["4"]["accuracy"] for one in reports]
    ece = [one["calibration"]["final_ece"] for one in reports]
    assert ipvrm["step_f1.average"]["mean"] == pytest.approx(np.mean(average))
    assert ipvrm["rollouts.best of 4"]["spread"] == pytest.approx(np.std(best, ddof=1))
    assert ipvrm["rollouts.ECE"]["mean"] == pytest.approx(np.mean(ece))
    within = [one["prefix_truth"]["within_solution"] for one in reports]
    assert ipvrm["prefix_truth.in a solution"]["mean"] == pytest.approx(np.mean(within))

    text = shown(capsys, study, *options)
    cells = row(text, "IPVRM", "Step F1  ")
    assert cells[:2] == ["IPVRM", "3"]
    assert cells[-1] == f"{100 * statistics.mean(average):.1f} ± {100 * statistics.stdev(average):.1f}"
    assert row(text, "IPVRM", "Correlation")[-1] == f"{statistics.mean(within):.3f} ± {statistics.stdev(within):.3f}"
    assert "\nPercent, but for ECE and correlations: mean ± " in text
    assert row(text, "IPVRM", "Whole")[-1] == f"{statistics.mean(ece):.3f} ± {statistics.stdev(ece):.3f}"


def test_a_single_run_shows_its_interval(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (report,) = reports_of(study, 5)
    result = report["step_f1"]["subsets"]["alpha"]["protocols"]["step_sum"]["cross_fitted"]
    low, high = (100 * result["f1_interval"][end] for end in ("low", "high"))
    lines = shown(capsys, study).splitlines()
    place = next(index for index, line in enumerate(lines) if line.startswith("ImplicitPRM"))
    assert lines[place].split()[1:3] == ["1", f"{100 * result['f1']:.1f}"]
    assert lines[place + 1].strip().startswith(f"[{low:.1f}, {high:.1f}]")
    assert "±" not in lines[place]


def test_floors_and_what_the_numbers_are(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, study)
    (report,) = reports_of(study, 0)
    parts = [*report["step_f1"]["subsets"].values(), report["step_f1"]["average"]]
    luck = [f"{100 * part['random']['cross_fitted_mean']:.1f}" for part in parts]
    longest = [f"{100 * part['longest_step']['cross_fitted']['f1']:.1f}" for part in parts]
    assert row(text, "random scores", "Step F1  ") == ["random scores (floor)", *luck]
    assert row(text, "longest step", "Step F1  ") == ["longest step (floor)", *longest]
    by_luck = f"{100 * report['best_of_n']['accuracy']['pass@1']['2']['accuracy']:.1f}"
    assert row(text, "random scores", "Whole") == ["random scores (floor)", by_luck, by_luck, "50.0"]
    assert row(text, "random scores", "Correlation") == ["random scores (floor)", *["0.000"] * 3]
    head = text[: text.index("\nStep F1  ")]
    assert "protocol step_sum; threshold cross-fitted" in head and "± sample standard deviation" in head
    assert "Runs of one row differ in data.seed." in head
    assert "Rows differ in data.pairwise, too." in head
    oracle = shown(capsys, study, "--threshold", "oracle")
    assert "threshold oracle (best on the same solutions" in oracle
    assert row(oracle, "random scores", "Step F1  ")[1] == f"{100 * parts[0]['random']['oracle_mean']:.1f}"


def test_csv_says_the_same(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compared(capsys, study)
    rows = list(csv.DictReader(io.StringIO(shown(capsys, study, "--format", "csv"))))
    assert [one["floor"] for one in rows] == ["", "", "", "random scores (floor)", "longest step (floor)"]
    assert {one["protocol"] for one in rows} == {"step_sum"}
    assert {one["threshold"] for one in rows} == {"cross_fitted"}
    for one, group in zip(rows, found["groups"], strict=False):
        assert [one["model.objective"]] == list(group["settings"].values())
        assert int(one["runs"]) == len(group["runs"])
        for key, cell in group["measures"].items():
            for name, value in cell.items():
                text = one[key if name == "mean" else f"{key} {name}"]
                assert (float(text) if text else None) == value
    for one in rows[3:]:
        for key, value in found["floors"][one["floor"]].items():
            assert float(one[key]) == value


def test_a_sweep_is_found_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objective = "ipvrm_lightning.objectives.IPVRM"
    for number, (lr, seed) in enumerate([(3e-4, 0), (3e-4, 1), (1e-3, 0), (1e-3, 1), (1e-5, 0)]):
        write_run(tmp_path, f"{number}", config(reward_model(lr=lr), seed=seed), reward_reports(number))
    assert groups(capsys, tmp_path) == {(objective, 1e-5): 1, (objective, 3e-4): 2, (objective, 1e-3): 2}
    lines = shown(capsys, tmp_path).splitlines()
    assert next(line for line in lines if "runs" in line and "alpha" in line).split()[:3] == ["objective", "lr", "runs"]
    assert [line.split()[1] for line in lines if line.startswith("IPVRM")][:3] == ["1e-05", "0.0003", "0.001"]
    # any setting, by its key, without the config's own words, or by its last part
    for name in ("data.init_args.seed", "data.seed", "--by=data.seed"):
        chosen = (name,) if name.startswith("--") else ("--by", name)
        assert groups(capsys, tmp_path, *chosen) == {(0,): 3, (1,): 2}
    assert groups(capsys, tmp_path, "--by", "lr", "--by", "data.seed")[(1e-5, 0)] == 1
    assert "Runs of one row differ in model.optimizer.lr." in shown(capsys, tmp_path, "--by", "data.seed")


def test_arguments_of_an_objective_divide_its_runs_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = {**IPVRM, "init_args": {"beta": 5.0, "margin": 5.0}}
    for number, objective in enumerate([IPVRM, IPVRM, other, DPORM]):
        write_run(tmp_path, f"{number}", config(reward_model(objective), seed=number), reward_reports(number))
    found = groups(capsys, tmp_path)
    assert found == {(IPVRM["class_path"], 10.0): 2, (IPVRM["class_path"], 5.0): 1, (DPORM["class_path"], 0.05): 1}


def test_policies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def policy(reward: dict[str, Any] | None, seed: int) -> dict[str, Any]:
        model = {"reward": reward and {**reward, "checkpoint": f"rm-{seed}"}, "evaluation": {"seed": 1}}
        return config(model, seed=seed)

    reward = {"objective": IPVRM, "update": "before"}
    for number, chosen in enumerate([None, None, reward, reward]):
        write_run(tmp_path, f"{number}", policy(chosen, number % 2), policy_reports(number))
    (tmp_path / "start").mkdir()
    (tmp_path / "start/config.yaml").write_text(yaml.safe_dump(policy(None, 0)))
    (tmp_path / "start/results.json").write_text(json.dumps({"reports": policy_reports(9)}))
    found = compared(capsys, tmp_path)
    assert [list(one["settings"].values()) for one in found["groups"]] == [
        [None, False],
        [None, True],
        [IPVRM["class_path"], True],
    ]
    assert set(found["runs_differ_in"]) == {"model.reward.checkpoint", "data.seed"}
    assert not found["floors"]
    outcomes = [policy_reports(number)["average_at_k"]["micro"] for number in (2, 3)]
    measured = found["groups"][2]["measures"]
    shares = [one["average"]["share"] for one in outcomes]
    assert measured["avg_at_k.all prompts"]["mean"] == pytest.approx(np.mean(shares))
    assert measured["avg_at_k.all prompts"]["spread"] == pytest.approx(np.std(shares, ddof=1))
    passed = [one["pass_at"]["4"]["share"] for one in outcomes]
    assert measured["pass_at_k.k = 4"]["mean"] == pytest.approx(np.mean(passed))
    text = shown(capsys, tmp_path)
    assert "Step F1" not in text and "floor" not in text
    header = next(line for line in text.splitlines() if "gsm8k" in line)
    assert re.split(r"\s{2,}", header.strip()) == [
        "objective", "trained", "runs", "gsm8k", "math", "all prompts", "mean of sources",
    ]  # fmt: skip


def test_what_a_policy_is_tested_with_is_of_its_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, temperature in enumerate([0.6, 1.0]):
        tested = config({"evaluation": {"temperature": temperature}})["model"]
        trained = config({"evaluation": {"temperature": 1.0}})
        write_run(tmp_path, f"{number}", trained, policy_reports(number), model=tested)
    assert groups(capsys, tmp_path) == {(0.6,): 1, (1.0,): 1}


def model(**arguments: Any) -> dict[str, Any]:
    return {"model": {"init_args": arguments}}


def verifier(kind: str) -> dict[str, Any]:
    return model(verifier={"class_path": kind, "init_args": {"workers": len(kind)}})


@pytest.mark.parametrize(
    ("one", "other", "names"),
    [
        ({"data": {"init_args": {"system_prompt": "Be brief."}}}, {"data": {"init_args": {}}}, ("Be brief.", None)),
        ({"trainer": {"precision": "bf16-mixed"}}, {"trainer": {"precision": "32-true"}}, ("bf16-mixed", "32-true")),
        (verifier("own.Own"), verifier("MathVerifier"), ("own.Own", "MathVerifier")),
        (model(stop_tokens=["<end>"]), model(stop_tokens=None), ('["<end>"]', None)),
        (
            model(language_model={"init_args": {"dtype": "bfloat16"}}),
            model(language_model={"init_args": {"dtype": "float32"}}),
            ("bfloat16", "float32"),
        ),
    ],
)
def test_runs_that_were_tested_otherwise_do_not_share_a_row(
    one: dict[str, Any],
    other: dict[str, Any],
    names: tuple[Any, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for number, tested in enumerate([one, other]):
        write_run(tmp_path, f"{number}", config(reward_model()), reward_reports(number), **tested)
    objective = IPVRM["class_path"]
    assert groups(capsys, tmp_path) == {(objective, names[0]): 1, (objective, names[1]): 1}


def test_prompts_that_a_seed_has_drawn_are_others_with_another_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(folder: Path, **named: str) -> None:
        for number in range(2):
            data = {"init_args": {"seed": number, **named}}
            write_run(folder, f"{number}", config({}, seed=number), policy_reports(number), data=data)

    write(tmp_path / "drawn")
    with pytest.raises(SystemExit):
        main(["compare", str(tmp_path / "drawn")])
    assert "not judged on the same data: data.seed, which drew the prompts: 0 against 1" in capsys.readouterr().err
    for name in ("test", "validation"):
        write(tmp_path / name, **{name: "held_out.jsonl"})
        assert len(groups(capsys, tmp_path / name)) == 1


def test_policies_judged_on_other_prompts_or_with_another_k_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: list[tuple[Callable[[dict[str, Any]], object], str]] = [
        (lambda r: r["sources"]["math"].update(prompts=6), "number of prompts in math: 5 against 6"),
        (lambda r: r["sources"]["math"].update(max_responses=5), "k of avg@k in math: 4, 4 against 4, 5"),
        (lambda r: r["sources"]["math"].update(min_responses=3), "k of avg@k in math: 4, 4 against 3, 4"),
        (lambda r: r["micro"]["pass_at"].pop("4"), "k of pass@k: 1, 2, 4 against 1, 2"),
        (lambda r: r["sources"].pop("math"), "data sources of avg@k: gsm8k, math against gsm8k"),
    ]
    for number, (change, said) in enumerate(changes):
        files = [write_run(tmp_path / f"{number}", name, config({}), policy_reports(number)) for name in "ab"]
        _rewrite(files[1], lambda reports, change=change: change(reports["average_at_k"]))  # type: ignore[misc]
        assert_refused(capsys, [str(tmp_path / f"{number}")], said)


@pytest.mark.parametrize("columns", [20, 80])
def test_numbers_are_whole_in_any_terminal(
    study: Path, capsys: pytest.CaptureFixture[str], columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = shown(capsys, study)
    assert "…" not in text
    if columns == 80:
        assert max(map(len, re.sub(r"\x1b\[[\d;]*m", "", text).splitlines())) <= 80


def test_moved_runs_and_lost_configs_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        trained = config(reward_model(lr=10.0**-number), seed=number)
        write_run(tmp_path / "old", f"{number}", trained, reward_reports(number))
    moved = (tmp_path / "old").rename(tmp_path / "new")
    (moved / "1-fit/config.yaml").unlink()
    (moved / "2-test/config.yaml").unlink()
    main(["compare", str(moved), "--format", "json"])
    done = capsys.readouterr()
    found = json.loads(done.out)
    learned, unknown, lost = found["notes"]
    assert f"{moved}/0-test/results.json" in learned and f"settings are those of {moved}/0-fit/config.yaml" in learned
    assert f"{moved}/1-test/results.json" in unknown and f"{tmp_path}/old/1-fit/config.yaml" in unknown
    assert f"{moved}/2-test/results.json: no config.yaml beside it" in lost
    assert [len(one["runs"]) for one in found["groups"]] == [1, 1, 1]
    assert done.err.splitlines() == [f"Note: {note}" for note in found["notes"]]


def test_a_relative_checkpoint_is_one_from_where_the_test_was_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, project in enumerate(("here", "there")):
        root = tmp_path / project / "outputs" / "study"
        relative = "outputs/study/0-fit/checkpoints/last.ckpt"
        write_run(root, "0", config(reward_model(lr=10.0**-number)), reward_reports(number), ckpt_path=relative)
    for place in ("here", "there", "."):
        monkeypatch.chdir(tmp_path / place)
        found = compared(capsys, tmp_path / "here/outputs/study", tmp_path / "there/outputs/study")
        rows = {tuple(one["settings"].values())[-1]: one["runs"] for one in found["groups"]}
        assert rows == {
            rate: [str(tmp_path / project / "outputs/study/0-test/results.json")]
            for rate, project in ((1.0, "here"), (0.1, "there"))
        }
        assert found["notes"] == []
        studies = [tmp_path / project / "outputs/study" for project in ("here", "there")]
        assert list(groups(capsys, *studies, "--by", "ckpt_path").values()) == [1, 1]


def test_a_checkpoint_may_be_named_from_within_its_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its folder is then `.`, and the test's own is no training, though it holds a config."""
    for number in range(2):
        fit = tmp_path / f"{number}-fit"
        results = write_run(
            tmp_path, f"{number}", config(reward_model(lr=10.0**-number)), reward_reports(number),
            ckpt_path="checkpoints/last.ckpt",
        )  # fmt: skip
        (fit / "tests").mkdir()
        results.parent.rename(fit / "tests" / "test")
    folders = [tmp_path / f"{number}-fit" / "tests" for number in range(2)]
    assert groups(capsys, *folders, "--by", "optimizer.lr") == {(0.1,): 1, (1.0,): 1}


def test_models_that_are_tested_as_they_start_are_runs_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        model = {**reward_model(), "language_model": {"init_args": {"seed": number}}}
        write_run(tmp_path, f"{number}", {}, reward_reports(number), **config(model))
    assert list(groups(capsys, tmp_path).values()) == [2]


def test_a_checkpoint_may_lie_beside_its_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        checkpoint = str(tmp_path / f"{number}-fit" / "best.ckpt")
        write_run(
            tmp_path, f"{number}", config(reward_model(lr=10.0**-number)), reward_reports(number), ckpt_path=checkpoint
        )
    assert groups(capsys, tmp_path, "--by", "optimizer.lr") == {(0.1,): 1, (1.0,): 1}


def test_the_same_numbers_twice_are_pointed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        write_run(tmp_path, f"{number}", {**config(reward_model()), "seed_everything": number}, reward_reports(0))
    write_run(tmp_path, "2", config(reward_model(), seed=1), reward_reports(1))
    main(["compare", str(tmp_path)])
    done = capsys.readouterr()
    (line,) = done.err.splitlines()
    assert line.startswith(f"Note: {tmp_path}/0-test/results.json and {tmp_path}/1-test/results.json: the same numbers")
    assert "although they differ in seed_everything" in line and "2-test" not in line


def _rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    plain = json.loads(path.read_text())
    change(plain["reports"])
    path.write_text(json.dumps(plain))


#: What is done to the second of two runs, and what must be said of it.
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no JSON": (lambda file: file.write_text("{"), "{1}: not JSON"),
    "not text": (lambda file: file.write_bytes(b"\xff"), "{1}: not JSON"),
    "no results": (lambda file: file.write_text("[]"), "{1}: reports: missing"),
    "other reports": (lambda file: file.write_text('{"reports": {"mine": {}}}'), "{1}: none of step_f1"),
    "a text for a number": (
        lambda file: _rewrite(file, lambda r: r["calibration"].update(final_ece="low")),
        "{1}: not a results.json that `ipvrm test` writes (TypeError: expected a number",
    ),
    "a number beyond any float": (
        lambda file: _rewrite(file, lambda r: r["calibration"].update(final_ece=10**400)),
        "{1}: not a results.json that `ipvrm test` writes (OverflowError: int too large",
    ),
    "a field that is missing": (
        lambda file: _rewrite(file, lambda r: r["step_f1"]["average"].pop("random")),
        "{1}: not a results.json that `ipvrm test` writes (KeyError: 'random')",
    ),
    "no config": (lambda file: (file.parent / "config.yaml").write_text("- a"), "1-test/config.yaml: not the config"),
    "other kinds": (
        lambda file: _rewrite(file, lambda r: r.pop("calibration")),
        "{0} and {1} were not judged on the same data: kinds of reports: step_f1, best_of_n, calibration, prefix_truth"
        " against",
    ),
    "other subsets": (
        lambda file: _rewrite(file, lambda r: r.update(reward_reports(1, subsets=("alpha", "gamma")))),
        "{0} and {1} were not judged on the same data: subsets of step F1: alpha, average, beta against alpha, average",
    ),
    "other numbers": (
        lambda file: _rewrite(file, lambda r: r.update(reward_reports(1, count=42))),
        "number of solutions in alpha: 20 against 21",
    ),
    "other solutions, as many": (
        lambda file: _rewrite(file, lambda r: r.update(step_f1=reward_reports(1, data=14)["step_f1"])),
        "{0} and {1} were not judged on the same data",
    ),
    "other rollouts, as many": (
        lambda file: _rewrite(file, lambda r: r.update(best_of_n=reward_reports(1, data=1)["best_of_n"])),
        "pass@1 among 2 rollouts (other rollouts)",
    ),
    "other prefixes, as many": (
        lambda file: _rewrite(file, lambda r: r.update(prefix_truth=reward_reports(1, data=1)["prefix_truth"])),
        "variance of the truth (other prefixes)",
    ),
    "another n": (
        lambda file: _rewrite(file, lambda r: r.update(best_of_n=reward_reports(1, sizes=(2, 3))["best_of_n"])),
        "n of best-of-n: 2, 4 against 2, 3",
    ),
    "another protocol": (
        lambda file: _rewrite(
            file, lambda r: [part["protocols"].pop("step_sum") for part in [r["step_f1"]["average"]]]
        ),
        "{1}: has no step F1 by step_sum; --protocol can be step_mean",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compared_is_refused_in_a_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [
        write_run(tmp_path, f"{seed}", config(reward_model(), seed=seed), reward_reports(seed)) for seed in range(2)
    ]
    change, message = REFUSED[name]
    change(files[1])
    assert_refused(capsys, [*map(str, files)], message.format(*files))


def assert_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str, status: int = 1) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["compare", *arguments])
    done = capsys.readouterr()
    assert exit_info.value.code == status and not done.out
    (line,) = done.err.splitlines()
    assert line.startswith("ipvrm compare: ") and message in line and "unexpected" not in line


def test_labels_of_the_same_size_tell_data_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Same counts, same labels, other lengths of steps: the longest-step floor says so."""
    reports = reward_reports(1)
    reports["step_f1"]["subsets"]["beta"]["longest_step"]["cross_fitted"]["f1"] += 1e-6
    files = [
        write_run(tmp_path, f"{seed}", config(reward_model(), seed=seed), found)
        for seed, found in enumerate([reward_reports(0), reports])
    ]
    assert_refused(capsys, [*map(str, files)], "longest step floor of beta (other solutions, or other folds)")


def test_numbers_that_no_run_knows_are_equal_and_so_are_the_last_digits_of_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a subset without an error, and of processors that add up in another order."""
    files = []
    for seed in range(2):
        reports = reward_reports(seed)
        subsets = reports["step_f1"]["subsets"]
        subsets["beta"]["longest_step"]["cross_fitted"]["f1"] = None
        subsets["alpha"]["longest_step"]["cross_fitted"]["f1"] *= 1 + seed * 1e-12
        subsets["beta"]["protocols"]["step_sum"]["cross_fitted"]["f1"] = 0.5 if seed else None
        files.append(write_run(tmp_path, f"{seed}", config(reward_model(), seed=seed), reports))
    (group,) = compared(capsys, tmp_path)["groups"]
    assert set(group["measures"]["step_f1.beta"].values()) == {None}
    assert group["measures"]["step_f1.alpha"]["spread"] is not None
    rows = list(csv.DictReader(io.StringIO(shown(capsys, tmp_path, "--format", "csv"))))
    assert {row["step_f1.beta"] for row in rows if row["floor"] != "random scores (floor)"} == {""}
    _rewrite(files[1], lambda r: r["step_f1"]["subsets"]["beta"]["longest_step"]["cross_fitted"].update(f1=0.25))
    assert_refused(capsys, [str(tmp_path)], "floor of beta (other solutions, or other folds): nan against 0.25")


def test_one_run_counts_once(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = study / "0-test/results.json"
    assert_refused(capsys, [str(study), str(study / "0-test")], f"{first}: given twice, also as {first}")
    (link := study / "link.json").symlink_to(first)
    assert_refused(capsys, [str(first), str(link)], f"{link}: given twice, also as {first}")
    link.unlink()
    # another checkpoint of the same training, or the same checkpoint tested again
    (study / "9-test").mkdir()
    text = (study / "0-test/config.yaml").read_text().replace("last.ckpt", "best.ckpt")
    (study / "9-test/config.yaml").write_text(text)
    (study / "9-test/results.json").write_text(json.dumps({"reports": reward_reports(9)}))
    assert_refused(capsys, [str(study)], f"{first} and {study}/9-test/results.json both judge what {study}/0-fit")
    found = groups(capsys, first, study / "9-test", "--by", "ckpt_path")
    assert list(found.values()) == [1, 1]


def test_paths_and_settings_that_there_are_not(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(capsys, [str(study / "nowhere")], "nowhere: no such file or folder")
    assert_refused(capsys, [str(study / "0-fit")], "0-fit: neither results.json nor */results.json is there")
    assert_refused(capsys, [str(study), "--by", "betta"], "--by betta: no run has such a setting; they differ in")
    assert_refused(capsys, [str(study), "--by", "class_path"], "--by class_path: no run has such a setting")
    assert_refused(capsys, [], "RUN", status=2)
    assert_refused(capsys, [str(study), "--threshold", "best"], "--threshold", status=2)


@pytest.fixture
def scored(study: Path) -> Path:
    """The same with the raw scores of each run beside its results."""
    for number in range(6):
        write_scores(study / f"{number}-test/scores.jsonl", solutions_of(number))
    return study


@pytest.mark.parametrize("origin", ["cross_fitted", "oracle"])
def test_differences_are_those_on_the_same_problems(
    scored: Path, capsys: pytest.CaptureFixture[str], origin: str
) -> None:
    options = (scored / "3-test", scored / "5-test", "--against", scored / "5-test", "--threshold", origin)
    found = compared(capsys, *options)
    group, baseline = found["groups"]
    assert found["against"] == baseline["settings"] and "differences" not in baseline
    assert set(group["differences"]) == {"step_f1.alpha", "step_f1.beta", "step_f1.average"}
    draws = {name: np.subtract(*(f1_on_resamples_by_hand(noise, origin)[name] for noise in (3, 5))) for name in DRAWN}
    for name, own in draws.items():
        less = group["differences"][f"step_f1.{name}"]
        means = [one["measures"][f"step_f1.{name}"]["mean"] for one in (group, baseline)]
        assert less["value"] == pytest.approx(means[0] - means[1])
        assert [less["low"], less["high"]] == pytest.approx(np.nanquantile(own, [0.025, 0.975]))

    text = shown(capsys, *options)
    shares = [[100 * value for value in one.values()] for one in group["differences"].values()]
    cells = row(text, "DPORM", "Step F1: difference from objective = ImplicitPRM")
    assert cells[2:] == [f"{value:+.1f}" for value, _, _ in shares]
    assert all(f"[{low:+.1f}, {high:+.1f}]" in text for _, low, high in shares)
    line = next(one for one in csv.DictReader(io.StringIO(shown(capsys, *options, "--format", "csv"))))
    for name, less in group["differences"].items():
        assert [float(line[f"{name} difference{end}"]) for end in ("", " low", " high")] == list(less.values())


DRAWN = ("alpha", "beta", "average")


def f1_on_resamples_by_hand(noise: int, origin: str) -> dict[str, np.ndarray]:
    """Step F1 on each resample, by subset and their mean; both subsets share their problems, and draw them together."""
    parts = {
        name: sorted((one for one in solutions_of(noise) if one.subset == name), key=lambda one: one.id)
        for name in DRAWN[:2]
    }
    keys = {name: [one.problem for one in part] for name, part in parts.items()}
    weights = joint_bootstrap_weights(keys, resamples=JudgeSettings.resamples, seed=SETTINGS.seed)
    found = {}
    for name, part in parts.items():
        folds = assign_folds(keys[name], folds=SETTINGS.folds, seed=seed_of((name,), SETTINGS.seed)).tolist()
        found[name] = np.array([f1_by_hand(part, folds, times, origin) for times in weights[name].long().tolist()])
    return {**found, "average": (found["alpha"] + found["beta"]) / 2}


def f1_by_hand(part: list[ScoredSolution], folds: list[int], times: list[int], origin: str) -> float:
    """Step F1 where each solution occurs so many times, at thresholds that are fitted to them."""
    scores, labels = [one.step_scores["step_sum"] for one in part], [one.label for one in part]
    rows = [row for row, count in enumerate(times) for _ in range(count)]
    chosen = {}
    for fold in set(folds):
        fitted = [row for row in rows if origin == "oracle" or folds[row] != fold]
        chosen[fold] = best_threshold([scores[row] for row in fitted], [labels[row] for row in fitted]).threshold
    hits: dict[bool, list[bool]] = {True: [], False: []}
    for row in rows:
        hits[labels[row] < 0].append(first_error(scores[row], chosen[folds[row]]) == labels[row])
    return statistics.harmonic_mean([sum(one) / len(one) for one in hits.values()]) if all(hits.values()) else math.nan


def test_a_row_of_several_runs_differs_by_their_mean(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compared(capsys, scored, "--against", scored / "5-test")
    *rows, baseline = found["groups"]
    assert [len(one["runs"]) for one in found["groups"]] == [2, 3, 1]
    for row in rows:
        less = row["differences"]["step_f1.average"]
        means = [one["measures"]["step_f1.average"]["mean"] for one in (row, baseline)]
        assert less["value"] == pytest.approx(means[0] - means[1]) and less["low"] < less["value"] < less["high"]
        # runs are drawn as well as problems: the interval is wider than that of the means of the same runs
        noises = [int(Path(run).parent.name.split("-")[0]) for run in row["runs"]]
        draws = [f1_on_resamples_by_hand(noise, "cross_fitted")["average"] for noise in (*noises, 5)]
        low, high = np.nanquantile(np.mean(draws[:-1], axis=0) - draws[-1], [0.025, 0.975])
        assert less["high"] - less["low"] > high - low
    assert "and over the runs of a row" in shown(capsys, scored, "--against", scored / "5-test")
    # the baseline's run need not be among those that are named, and any run of a row names the row
    others = [scored / f"{number}-test" for number in range(5)]
    assert compared(capsys, *others, "--against", scored / "5-test")["groups"] == found["groups"]
    assert compared(capsys, scored, "--against", scored / "1-test")["against"] == rows[1]["settings"]


def test_policies_differ_on_the_same_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        file = write_run(tmp_path, f"{number}", config({"reward": {"update": f"{number}"}}), policy_reports(number))
        lines = [json.dumps(one) for one in responses_of(number)]
        (file.parent / "responses.jsonl").write_text("\n".join(lines))
    found = compared(capsys, tmp_path, "--against", tmp_path / "0-test")
    means = [[np.mean(one["scores"]) for one in responses_of(number)] for number in range(2)]
    apart = np.subtract(means[1], means[0])
    less = found["groups"][1]["differences"]
    assert less["avg_at_k.all prompts"]["value"] == pytest.approx(apart.mean())
    assert less["avg_at_k.mean of sources"]["value"] == pytest.approx((apart[:5].mean() + apart[5:].mean()) / 2)
    assert {"avg_at_k.gsm8k", "avg_at_k.math", "pass_at_k.k = 4"} < set(less)
    drawn = np.random.default_rng(0).choice(apart, (10_000, len(apart))).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    all_prompts = less["avg_at_k.all prompts"]
    assert [all_prompts["low"], all_prompts["high"]] == pytest.approx([low, high], abs=0.03)
    text = shown(capsys, tmp_path, "--against", tmp_path / "0-test")
    assert "avg@k by data source: difference from update = 0" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.unlink(), "scores.jsonl: not there"),
        (lambda file: file.write_text("{}"), "scores.jsonl, line 1: id: missing"),
        (lambda file: write_scores(file, solutions_of(4)), "they are not of one test"),
        (
            lambda file: write_scores(file, [replace(one, id=f"{one.id}'") for one in solutions_of(3)]),
            "judged on the same",
        ),
    ],
)
def test_scores_that_are_not_those_of_the_results_are_refused(
    scored: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], object], message: str
) -> None:
    change(scored / "3-test/scores.jsonl")
    assert_refused(capsys, [str(scored), "--against", str(scored / "5-test")], message)


def test_settings_of_judging_may_differ_in_resamples_alone(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compared(capsys, scored, "--against", scored / "5-test")
    other = scored / "3-test/results.json"
    _rewrite(other, lambda r: r["step_f1"]["settings"].update(resamples=30))
    assert compared(capsys, scored, "--against", scored / "5-test") == found
    _rewrite(other, lambda r: r["step_f1"]["settings"].update(folds=1))
    assert_refused(capsys, [str(scored), "--against", str(scored / "5-test")], f"{other}: step_f1.settings: ValueError")


def test_a_baseline_is_one_row_of_several(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(capsys, [str(scored), "--against", str(scored)], "its runs are in 3 rows: name one run")
    alone = [str(scored / f"{number}-test") for number in range(3)]
    assert_refused(capsys, [*alone, "--against", alone[0]], "all runs are in its row, and there is no other")


def test_it_starts_without_torch(study: Path) -> None:
    code = (
        "import sys; from ipvrm_lightning.cli import main\n"
        f"main(['compare', {str(study)!r}])\n"
        "assert not {'torch', 'lightning', 'transformers', 'jsonargparse'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
