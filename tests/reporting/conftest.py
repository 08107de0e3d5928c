from __future__ import annotations

from pathlib import Path

import pytest

from ipvrm_lightning.cli import main
from tests.reporting.runs import write_fit_run, write_test_run


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a fit run and a test run of its checkpoint."""
    root = tmp_path_factory.mktemp("runs")
    write_fit_run(root / "20260101-100000-fit", candidates=True)
    folder = root / "20260101-110000-test"
    write_test_run(folder)
    (folder / "config.yaml").write_text("ckpt_path: gone/20260101-100000-fit/checkpoints/last.ckpt\n")
    return root


@pytest.fixture(scope="session")
def page_file(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of that test run."""
    out = tmp_path_factory.mktemp("page") / "new" / "report.html"
    main(["report", str(runs), "--out", str(out)])
    return out
