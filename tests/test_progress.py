"""Bars of what takes long before the first step, and lines of what does within one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ipvrm_lightning import progress
from ipvrm_lightning.data.reading import LeftOut, render_chunks
from ipvrm_lightning.models.reference import CachedReference
from ipvrm_lightning.modules import IPVRMModule
from ipvrm_lightning.modules.distrl_settings import Collecting
from ipvrm_lightning.rollouts.sources import Sampling

from .modules.conftest import InMemoryData, quiet_trainer, tiny
from .modules.distrl_cases import TinyPrompts, module

ROWS: Any = [SimpleNamespace(source="file", row=number) for number in range(1300)]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the seconds after which there is a bar."""
    monkeypatch.setattr(progress, "_DELAY", 0)
    monkeypatch.setattr(progress, "_INTERVAL", 0)


def read(rows: Any) -> int:
    return sum(len(chunk) for chunk in render_chunks(rows, lambda row: str(row.row), LeftOut()))


def test_reading_says_how_far_it_is(at_once: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert read(ROWS) == 1300
    assert "tokenising: 100%" in (said := capsys.readouterr().err)
    assert [f"{done}/1300" in said for done in (512, 1024, 1300)] == [True] * 3
    read(iter(ROWS))  # nobody knows how many there are
    assert "tokenising: 1300row" in capsys.readouterr().err


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


def test_a_line_a_minute_says_how_far_a_step_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter([0.0, 30.0, 61.0, 61.0, 100.0, 125.0, 125.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    say = progress.lines(2048, "sampling responses")
    with caplog.at_level("INFO"):
        for more in (512, 512, 512, 256, 256):  # at the end there is nothing to say
            say(more)
    assert caplog.messages == ["sampling responses: 1,024 of 2,048", "sampling responses: 1,792 of 2,048"]


def test_a_policy_says_how_many_responses_it_has_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "_PAUSE", 0.0)
    policy = module(sampling=Sampling(group_size=4, max_new_tokens=6), collecting=Collecting(batch_size=4))
    with caplog.at_level("INFO"):
        quiet_trainer(tmp_path, limit_train_batches=1, limit_val_batches=0).fit(policy, datamodule=TinyPrompts())
    assert "sampling responses: 4 of 8" in caplog.messages
