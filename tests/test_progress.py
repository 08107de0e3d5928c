"""Bars of what takes long before the first step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ipvrm_lightning import progress
from ipvrm_lightning.data.reading import Report, render_chunks
from ipvrm_lightning.models.reference import CachedReference
from ipvrm_lightning.modules import IPVRMModule

from .modules.conftest import InMemoryData, quiet_trainer, tiny

ROWS: Any = [SimpleNamespace(source="file", row=number) for number in range(1300)]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the seconds after which there is a bar."""
    monkeypatch.setattr(progress, "_DELAY", 0)
    monkeypatch.setattr(progress, "_INTERVAL", 0)


def read(rows: Any) -> int:
    return sum(len(chunk) for chunk in render_chunks(rows, lambda row: str(row.row), Report()))


def test_reading_says_how_far_it_is(at_once: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert read(ROWS) == 1300
    assert "tokenising: 100%" in (said := capsys.readouterr().err)
    assert [f"{done}/1300" in said for done in (512, 1024, 1300)] == [True] * 3
    read(iter(ROWS))  # nobody knows how many there are
    assert "tokenising: 1300 rows" in capsys.readouterr().err


def test_what_is_done_at_once_has_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    read(ROWS)
    assert not capsys.readouterr().err


def test_the_first_process_says_it(
    at_once: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    read(ROWS)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("bars", [True, False])
def test_a_reference_that_is_computed_first_says_how_far_it_is(
    bars: bool, at_once: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference, data = CachedReference(cache_dir=str(tmp_path / "cache")), InMemoryData()
    data.setup()
    batches = sum(len(data.evaluation_loader(dataset)) for dataset in (data.train_set, data.val_set) if dataset)
    trainer = quiet_trainer(tmp_path, enable_progress_bar=bars)
    trainer.fit(IPVRMModule(language_model=tiny(), reference=reference), datamodule=data)
    said = capsys.readouterr().err
    assert ("values of the reference: 100%" in said) is bars and (f"{batches}/{batches}" in said) is bars
