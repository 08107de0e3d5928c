"""Finished prompts on disk: nothing lost, nothing twice, nothing mixed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ipvrm_lightning.append_only import StoreError
from ipvrm_lightning.rollouts.store import RolloutStore
from ipvrm_lightning.types import PromptExample

SETTINGS = {"sampling": {"temperature": 1.0, "seed": 0}, "source": {"class_path": "a.B", "init_args": {}}}
PROMPTS = [PromptExample([1, 2, n], f"problem {n}", str(n), "tests", f"p{n}") for n in range(5)]


def fill(folder: Path, prompts: list[PromptExample], settings: dict[str, Any] = SETTINGS) -> list[str]:
    """Ids that had to be added."""
    added = []
    with RolloutStore(folder, settings) as store:
        for prompt in prompts:
            if not store.holds(prompt):
                store.append(prompt, {"responses": [f"größer\u2028\n{prompt.ground_truth}\ud800"], "scores": [1]})
                added.append(prompt.id)
    return added


def test_finished_prompts_are_kept_and_more_may_be_added(tmp_path: Path) -> None:
    assert fill(tmp_path, PROMPTS[:2]) == ["p0", "p1"]
    assert fill(tmp_path, PROMPTS[::-1]) == ["p4", "p3", "p2"]
    lines = (tmp_path / "rollouts.jsonl").read_bytes().split(b"\n")
    assert len(lines) == 6 and lines[-1] == b""
    assert [json.loads(line)["id"] for line in lines[:-1]] == ["p0", "p1", "p4", "p3", "p2"]
    assert json.loads(lines[0])["responses"] == ["größer\u2028\n0\ud800"]


def test_a_line_is_on_the_disk_when_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    with RolloutStore(tmp_path, SETTINGS) as store:
        monkeypatch.setattr("os.fsync", lambda file: synced.append(store.path.stat().st_size))
        for number, prompt in enumerate(PROMPTS, 1):
            store.append(prompt, {})
            assert synced[-1] == store.path.stat().st_size > 0 and len(synced) == number == len(store)


@pytest.mark.parametrize("kept", [0, 1, 17, -2, -1])
def test_a_torn_last_line_is_dropped(tmp_path: Path, kept: int) -> None:
    fill(tmp_path, PROMPTS)
    path = tmp_path / "rollouts.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:kept])
    assert fill(tmp_path, PROMPTS) == ["p4"]
    assert path.read_bytes() == whole


def test_a_torn_line_longer_than_a_block_is_dropped(tmp_path: Path) -> None:
    fill(tmp_path, PROMPTS)
    path = tmp_path / "rollouts.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b'{"id": "' + b"x" * 200_000)
    assert fill(tmp_path, PROMPTS) == [prompt.id for prompt in PROMPTS]
    assert path.read_bytes() == whole
    path.write_bytes(whole + b'{"id": "' + b"x" * 200_000)
    assert fill(tmp_path, PROMPTS) == []
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("whole", "broken"), [(b'{"id": "p1"', b'{"id": p1'), (b'{"id": "p1", "prompt_hash"', b'{"id": "p1", "hash"')]
)
def test_a_broken_line_before_the_last_is_an_error(whole: bytes, broken: bytes, tmp_path: Path) -> None:
    fill(tmp_path, PROMPTS)
    path = tmp_path / "rollouts.jsonl"
    assert whole in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(whole, broken))
    with pytest.raises(StoreError, match=r"rollouts\.jsonl, row 2: broken line"):
        fill(tmp_path, PROMPTS)


@pytest.mark.parametrize("change", [{"prompt": "other"}, {"ground_truth": "other"}, {"input_ids": [1]}])
def test_another_prompt_under_a_finished_id_is_an_error(tmp_path: Path, change: dict[str, Any]) -> None:
    fill(tmp_path, PROMPTS)
    with pytest.raises(StoreError, match="prompt 'p1' was finished with another text"):
        fill(tmp_path, [PROMPTS[0], replace(PROMPTS[1], **change)])
    with (
        pytest.raises(ValueError, match="'p1' is finished"),
        RolloutStore(tmp_path, SETTINGS) as store,
    ):
        store.append(PROMPTS[1], {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**SETTINGS, "sampling": {"temperature": 0.7, "seed": 0}}, "sampling.temperature 1.0, now it is 0.7"),
        ({**SETTINGS, "source": {"class_path": "a.C", "init_args": {}}}, "source.class_path a.B, now it is a.C"),
        ({**SETTINGS, "verifier": {"strict": True}}, "verifier.strict not set, now it is True"),
    ],
)
def test_two_settings_never_mix(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    fill(tmp_path, PROMPTS[:2])
    before = (tmp_path / "rollouts.jsonl").read_bytes()
    with pytest.raises(StoreError, match=f"was made with {message}: use another folder"):
        fill(tmp_path, PROMPTS, settings)
    assert (tmp_path / "rollouts.jsonl").read_bytes() == before
    assert fill(tmp_path, PROMPTS) == ["p2", "p3", "p4"]  # the lock is free again


def test_weights_of_one_name_never_mix(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    fill(tmp_path, PROMPTS[:1])  # as an earlier version did, which knew of none
    manifest.write_text(json.dumps({k: v for k, v in json.loads(manifest.read_text()).items() if k != "weights"}))
    for weights, kept in (("a", "a"), ("a", "a"), (None, "a"), ("a-config", "a-config"), (None, "a-config")):
        with RolloutStore(tmp_path, SETTINGS, weights=weights):
            assert json.loads(manifest.read_text())["weights"] == kept
    with pytest.raises(StoreError, match="was made with other weights of the same name, or another config"):
        RolloutStore(tmp_path, SETTINGS, weights="b").__enter__()
    with pytest.raises(StoreError, match="was made with other weights of the same name, or another config"):
        RolloutStore(tmp_path, SETTINGS, weights="a-other").__enter__()
    assert fill(tmp_path, PROMPTS[:2]) == ["p1"]  # the lock is free again
    fill(tmp_path / "hub", PROMPTS[:1])  # by a name on the hub, which has none: they are not known, and any may go on
    with RolloutStore(tmp_path / "hub", SETTINGS, weights="a"):
        assert json.loads((tmp_path / "hub" / "manifest.json").read_text())["weights"] == "a"
    with RolloutStore(tmp_path / "new", SETTINGS, weights="a") as store:
        store.append(PROMPTS[0], {})
    with pytest.raises(StoreError, match="was made with other weights of the same name, or another config"):
        RolloutStore(tmp_path / "new", SETTINGS, weights="b").__enter__()


def test_rollouts_without_a_manifest_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, PROMPTS)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"no manifest\.json"):
        fill(tmp_path, PROMPTS)
    for text in ("[]", "{}", "{"):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(StoreError, match="not a manifest"):
            fill(tmp_path, PROMPTS)


def test_new_versions_are_added_to_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, PROMPTS[:1])
    fill(tmp_path, PROMPTS[:2])
    monkeypatch.setattr("platform.python_version", lambda: "9.9")
    fill(tmp_path, PROMPTS)
    versions = json.loads((tmp_path / "manifest.json").read_text())["versions"]
    assert [entry["python"] == "9.9" for entry in versions] == [False, True]


def test_two_processes_cannot_write_one_store(tmp_path: Path) -> None:
    script = (
        "import sys; from ipvrm_lightning.rollouts import RolloutStore\n"
        "try:\n    RolloutStore(sys.argv[1], {}).__enter__()\nexcept ValueError as error:\n    print(error)"
    )
    with RolloutStore(tmp_path, SETTINGS):
        done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'rollouts.jsonl'}: another process is writing to it\n"


def test_a_store_without_rollouts_binds_nobody(tmp_path: Path) -> None:
    fill(tmp_path, [])
    assert fill(tmp_path, PROMPTS[:1], {**SETTINGS, "verifier": {"strict": True}}) == ["p0"]
    with pytest.raises(StoreError, match=r"verifier.strict True, now it is not set"):
        fill(tmp_path, PROMPTS)
