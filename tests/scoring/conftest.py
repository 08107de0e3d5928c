from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ipvrm_lightning.cli import main
from ipvrm_lightning.exporting import export_checkpoint

from ..conftest import REPOSITORY
from ..exporting.runs import fit, save_model
from ..test_cli import real_inputs  # noqa: F401


class Judged(NamedTuple):
    """A reward model, what a test run and a prediction run say of some solutions, and the solutions."""

    base: str
    run: Path
    export: str
    rows: list[dict[str, Any]]
    tested: dict[str, dict[str, Any]]
    predicted: dict[str, dict[str, Any]]


#: Of different lengths, with characters of several bytes, and a system prompt and template that are not the defaults.
ROWS = [
    {
        "id": f"gsm8k-{n}",
        "problem": f"What is {n} + {n} ≤ 9?" + " Think." * (n % 3),
        "steps": [f"We add {n} é times" * (1 + n % 4), "so ≤ 日本", f"{n * n}"][: 1 + n % 3],
        "label": -1 if n % 2 else 0,
        "final_answer_correct": bool(n % 2),
    }
    for n in range(14)
]


@pytest.fixture(scope="session")
def judged(tmp_path_factory: pytest.TempPathFactory, real_inputs: dict[str, str]) -> Judged:  # noqa: F811
    folder = tmp_path_factory.mktemp("judged")
    base = save_model(folder / "base", real_inputs["tokenizer"])
    (folder / "rows").mkdir()
    (folder / "rows" / "gsm8k.json").write_text(json.dumps(ROWS))
    (folder / "run").mkdir()
    run = fit(folder / "run", base, real_inputs, lora=True)
    shared = [
        *("--config", str(REPOSITORY / "configs" / "ipvrm_smollm2.yaml"), "--config", f"{folder}/run/tiny.yaml"),
        *("--config", str(REPOSITORY / "configs/data/processbench.yaml"), "--data.subsets", "[gsm8k]"),
        *("--data.path", str(folder / "rows"), "--data.system_prompt", "Be brief.", "--data.separator", ";"),
        *("--data.step_template", "({number}) {step}", "--data.max_tokens", "900", "--ckpt_path", "last"),
    ]
    main(["test", *shared])
    main(["predict", *shared])
    (test_run,) = (folder / "run").glob("*-test")
    (file,) = (folder / "run").glob("*-predict/predictions.jsonl")
    lines = {name: map(json.loads, path.open()) for name, path in (("t", test_run / "scores.jsonl"), ("p", file))}
    export = export_checkpoint(run, folder / "export", results=test_run / "results.json")
    return Judged(
        base=base,
        run=run,
        export=str(export),
        rows=ROWS,
        tested={line["id"]: line for line in lines["t"]},
        predicted={line["id"]: line for line in lines["p"]},
    )


@pytest.fixture(scope="session")
def full_export(tmp_path_factory: pytest.TempPathFactory, judged: Judged, real_inputs: dict[str, str]) -> str:  # noqa: F811
    """A model trained whole, whose reference is the base."""
    folder = tmp_path_factory.mktemp("full")
    return str(export_checkpoint(fit(folder, judged.base, real_inputs, lora=False), folder / "export"))


@pytest.fixture
def copied_base(judged: Judged, tmp_path: Path) -> Path:
    """The base, where it may be damaged."""
    return Path(shutil.copytree(judged.base, tmp_path / "copied"))
