"""Repositories on the hub, as its cache keeps them: what tells two models of one name apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipvrm_lightning.models.exported import ExportedConfig, ModelSource
from ipvrm_lightning.objectives import ImplicitPRM
from ipvrm_lightning.scoring import command
from ipvrm_lightning.scoring.description import Part, describe
from ipvrm_lightning.scoring.opening import _positions

from .test_gguf import QWEN2


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts files of a revision of owner/name where the hub's client keeps what it has downloaded."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--name"

    def put(revision: str, **files: Any) -> None:
        commit = (revision[0] * 40).replace("m", "a")
        (folder := repository / "snapshots" / commit).mkdir(parents=True)
        (refs := repository / "refs").mkdir(exist_ok=True)
        (refs / revision).write_text(commit)
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content))

    return put


def test_scores_of_two_files_or_commits_of_a_repository_are_not_mixed(cache: Callable[..., None]) -> None:
    cache("main", **{"q4.gguf": 1, "q8.gguf": 2})
    cache("better", **{"q4.gguf": 3, "q8.gguf": 4})
    places = [("main", "q4.gguf"), ("main", "q8.gguf"), ("better", "q4.gguf"), (None, "q4.gguf")]
    found = [command._identity(Part(ModelSource("owner/name", revision, file))) for revision, file in places]
    assert len(set(found)) == 3 and found[3] == found[0]


def test_a_repository_is_no_reference_of_its_default_revision(cache: Callable[..., None]) -> None:
    cache("main", **{"config.json": {}})
    cache("better", **{"config.json": {}})
    assert describe("owner/name", beta=1.0, reference="owner/name", revision="better").reference is not None
    with pytest.raises(ValueError, match="the reference is the model itself"):
        describe("owner/name", beta=1.0, reference="owner/name", revision="main")


def test_the_limit_of_a_revision_is_its_own(cache: Callable[..., None]) -> None:
    for revision, longest in (("main", 64), ("longer", 256)):
        cache(revision, **{"config.json": {**QWEN2, "max_position_embeddings": longest}})
        assert _positions(ModelSource("owner/name", revision=revision)) == longest


def test_an_export_of_a_revision_is_read_as_it_is_there(cache: Callable[..., None], tmp_path: Path) -> None:
    for revision, beta in (("main", 3.0), ("better", 4.0)):
        ExportedConfig("model", objective=ImplicitPRM(beta=beta).describe(), reference=ModelSource("base")).write(
            tmp_path
        )
        cache(revision, **{"ipvrm_config.json": json.loads((tmp_path / "ipvrm_config.json").read_text())})
        found = describe("owner/name", revision=revision)
        assert found.objective.beta == beta
        assert f'"beta": {beta}' in (Path(found.reward.model.name) / "ipvrm_config.json").read_text()
