"""What an export reads of a test run's results, and which it takes for those of its checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from ipvrm_lightning.exporting.record import Choices, Results, describe, read_results
from ipvrm_lightning.exporting.source import Run, find_run
from ipvrm_lightning.models.exported import Layout, ModelSource
from ipvrm_lightning.objectives import IPVRM

REPORTS = {"step_f1": {"subsets": {}}}
RUN = Run(Path("last.ckpt"), {"model": {"init_args": {}}})
TRAINED = {"objective": IPVRM(beta=3.0).describe()}
BASE = ModelSource("owner/base", revision="0a1b", dtype="bfloat16")
CHOICES = Choices("policy", False, False, "step_sum", "oracle")


def half_precision(name: str, *, adapter: bool = False) -> tuple[Any, Any]:
    """A factory and what it builds, as far as a record asks them; `quantized` leaves the weights unread."""
    factory = SimpleNamespace(name=name, dtype="bfloat16", has_adapters=adapter, quantized=True)
    return factory, SimpleNamespace(config=SimpleNamespace(_commit_hash="0a1b"))


def write_results(folder: Path, config: dict[str, Any] | None, **others: Any) -> Path:
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"reports": REPORTS, **others}))
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "results.json"


def test_of_checkpoints_and_of_runs_the_one_written_last_is_exported(tmp_path: Path) -> None:
    written = {"2025-fit/checkpoints/a": 4, "2025-fit/checkpoints/b": 3, "2026-fit/checkpoints/last": 2}
    for name, when in written.items():
        file = tmp_path / f"{name}.ckpt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        os.utime(file, (when, when))
        model = {"class_path": "Module", "init_args": {"language_model": {"class_path": name}}}
        (file.parent.parent / "config.yaml").write_text(yaml.safe_dump({"model": model}))
    for named in (tmp_path, tmp_path / "2025-fit", tmp_path / "2025-fit" / "checkpoints" / "a.ckpt"):
        found = find_run(named)
        assert found.checkpoint == tmp_path / "2025-fit" / "checkpoints" / "a.ckpt"
        assert found.config["model"]["init_args"]["language_model"]["class_path"] == "2025-fit/checkpoints/b"
    os.utime(tmp_path / "2025-fit" / "checkpoints" / "b.ckpt", (5, 5))
    assert find_run(tmp_path / "2025-fit").checkpoint == find_run(tmp_path).checkpoint == named.with_name("b.ckpt")
    assert find_run(tmp_path / "2026-fit").checkpoint == tmp_path / "2026-fit" / "checkpoints" / "last.ckpt"


def test_results_belong_to_a_run_wherever_it_lies_now(tmp_path: Path) -> None:
    """A folder of runs may have been moved, or is seen under another name from another machine."""
    data = {"class_path": "ipvrm_lightning.data.ProcessBenchDataModule"}
    for number, name in enumerate(("last.ckpt", "val/auroc=0.9.ckpt")):
        there, here = (Path(root, "2026-fit", "checkpoints", name) for root in ("/there/runs", "/here"))
        results = write_results(tmp_path / f"{number}", {"ckpt_path": str(there), "data": data})
        run = Run(here, {"model": {"init_args": {}}})
        assert read_results(results, run) == read_results(results.parent, run) == Results(REPORTS, data, "32-true")
        for other in ("/there/runs/2025-fit/checkpoints", "/there/runs/2026-fit/elsewhere"):
            with pytest.raises(ValueError, match=rf"is of checkpoint {there}, this exports {other}/{name}: test that"):
                read_results(results, run._replace(checkpoint=Path(other, name)))


def test_results_that_were_copied_alone_are_read(tmp_path: Path) -> None:
    run = Run(Path("/runs/2026-fit/checkpoints/last.ckpt"), {"model": {"init_args": {}}})
    assert read_results(write_results(tmp_path / "alone", None), run) == Results(REPORTS, None)


def test_checkpoints_of_a_folder_of_ones_own_are_told_apart(tmp_path: Path) -> None:
    """As `ModelCheckpoint` writes them with a `dirpath`."""
    trainer = {"precision": "bf16-mixed"}
    results = write_results(tmp_path / "test", {"ckpt_path": "/first/kept/last.ckpt", "trainer": trainer})
    run = Run(Path("/first/kept/last.ckpt"), {"model": {"init_args": {}}})
    assert read_results(results, run) == Results(REPORTS, None, "bf16-mixed")
    with pytest.raises(ValueError, match=r"is of checkpoint /first/.*, this exports /second/kept/last\.ckpt"):
        read_results(results, run._replace(checkpoint=Path("/second/kept/last.ckpt")))


@pytest.mark.parametrize("beside", [True, False])
def test_results_of_an_earlier_step_are_not_those_of_a_checkpoint_that_was_written_over(
    beside: bool, tmp_path: Path
) -> None:
    """`last.ckpt` may be tested while the fit goes on."""
    checkpoint = tmp_path / "2026-fit" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    config = {"ckpt_path": str(checkpoint)} if beside else None
    results = write_results(tmp_path / "test", config, run={"checkpoint_step": 3})
    unknown = write_results(tmp_path / "older", config, run={"checkpoint_step": None})
    run = Run(checkpoint, {"model": {"init_args": {}}})
    for step in (3, 5):
        torch.save({"state_dict": {}, "global_step": step}, checkpoint)
        assert read_results(unknown, run).reports == REPORTS
        if step == 3:
            assert read_results(results, run).reports == REPORTS
            continue
        with pytest.raises(
            ValueError, match=r"results\.json: is of step 3, and .*last\.ckpt is of step 5: test that one"
        ):
            read_results(results, run)


@pytest.mark.parametrize("objective", [None, {"class_path": "ipvrm_lightning.objectives.IPVRM"}])
def test_results_of_the_model_as_it_starts_are_not_those_of_a_checkpoint(objective: Any, tmp_path: Path) -> None:
    results = write_results(tmp_path / "test", {"ckpt_path": None})
    run = Run(Path("/runs/2026-fit/checkpoints/last.ckpt"), {"model": {"init_args": {"objective": objective}}})
    with pytest.raises(ValueError, match=r"its test run loaded no checkpoint, this exports .*: test that one"):
        read_results(results, run)


@pytest.mark.parametrize(
    ("adapter", "merge", "dtype", "reference"),
    [
        (True, True, "float32", "base"),  # an update that is small beside its weight would be rounded away
        (True, False, "bfloat16", "adapters_off"),
        (False, True, "bfloat16", "base"),  # nothing to merge
        (False, False, "bfloat16", "base"),
    ],
)
def test_an_export_is_read_in_the_precision_that_it_was_trained_in(
    adapter: bool, merge: bool, dtype: str, reference: str
) -> None:
    factory, model = half_precision("owner/base", adapter=adapter)
    record = describe(RUN, factory, model, TRAINED, CHOICES._replace(merge=merge), results=None, layout=Layout())
    assert (record.dtype, record.base) == (dtype, BASE)
    assert record.reference == (BASE if reference == "base" else reference)
    assert (record.temperature, record.part, record.thresholds) == (1.0, None, {})


def test_a_reference_in_the_folder_is_read_in_the_precision_that_it_was_scored_in() -> None:
    """In another one its log-probabilities are others, and so are log-ratios."""
    inside = ModelSource("reference", dtype="bfloat16")
    made, loaded = half_precision(""), half_precision("owner/base")
    asked = CHOICES._replace(with_reference=True)
    for parts, choices in ((made, CHOICES), (loaded, asked)):
        assert describe(RUN, *parts, TRAINED, choices, results=None, layout=Layout()).reference == inside
    assert describe(RUN, *loaded, TRAINED, CHOICES, results=None, layout=Layout()).reference == BASE
    arguments = {"reward": {"objective": {}}, "sampling": {"temperature": 0.7}}
    policies = Run(Path("last.ckpt"), {"model": {"init_args": arguments}})
    trained = {"settings": {"reward": TRAINED}}
    for adapter in (False, True):
        parts = half_precision("owner/base", adapter=adapter)
        reward = CHOICES._replace(part="reward")
        record = describe(policies, *parts, trained, reward, results=None, layout=Layout())
        assert (record.reference, record.dtype, record.temperature) == (inside, "bfloat16", 0.7)
        assert record.part == "reward"


def test_a_base_in_a_folder_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    factory, model = half_precision("")
    model.config._name_or_path = "owner/base"  # of a factory of one's own, which has no `name`
    for parts in (half_precision("owner/base"), (factory, model)):
        record = describe(RUN, *parts, TRAINED, CHOICES, results=None, layout=Layout())
        assert record.base == ModelSource(str(tmp_path / "owner" / "base"), revision="0a1b", dtype="bfloat16")
