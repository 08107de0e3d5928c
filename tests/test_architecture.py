"""Imports point one way, and heavy libraries load where they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import REPOSITORY

PACKAGE = REPOSITORY / "ipvrm_lightning"

#: What each part may import of the package, beside itself.
ALLOWED: dict[str, set[str]] = {
    "types": set(),
    "devices": set(),
    "failures": set(),
    "append_only": set(),
    "config_checks": {"packaged_configs"},
    "config_keys": set(),
    "config_notes": set(),
    "packaged_configs": set(),
    "permissions": set(),
    "progress": set(),
    "tokenizer_threads": set(),
    "whole_files": {"permissions"},
    "pretrained": {"failures"},
    "functional": set(),
    "objectives": {"functional", "types"},
    "metrics": {"functional", "types", "whole_files", "failures"},
    "data": {"functional", "types", "pretrained", "progress", "tokenizer_threads"},
    "models": {"functional", "types", "objectives", "failures", "permissions", "pretrained"},
    "rollouts": {"append_only", "types", "models", "devices", "failures", "pretrained", "whole_files"},
    "strategies": {"models", "devices"},
    "modules": {"functional", "types", "objectives", "metrics", "data", "models", "rollouts", "strategies", "progress"},
    "callbacks": {"types", "metrics", "run_folders", "exporting", "whole_files"},
    "run_folders": {"config_keys", "models", "whole_files"},
    "checkpoint_io": {"callbacks"},
    "loggers": {"callbacks", "run_folders", "whole_files"},
    "exporting": {
        "config_keys",
        "functional",
        "objectives",
        "models",
        "modules",
        "callbacks",
        "failures",
        "permissions",
        "pretrained",
    },
    "reporting": {"functional", "types", "metrics", "failures", "whole_files"},
    "comparing": {"config_keys", "failures", "metrics", "score_cli"},
    "worlds": {
        "functional",
        "types",
        "objectives",
        "metrics",
        "models",
        "rollouts",
        "modules",
        "data",
        "permissions",
        "tokenizer_threads",
    },
    "scoring": {
        "append_only",
        "functional",
        "types",
        "objectives",
        "metrics",
        "data",
        "models",
        "devices",
        "failures",
        "pretrained",
    },
    "serving": {"scoring", "data", "failures"},
    "score_cli": {"scoring", "failures"},
    "serve_cli": {"score_cli", "serving", "failures"},
    "completion": {
        "comparing",
        "failures",
        "packaged_configs",
        "export_cli",
        "lightning_cli",
        "metrics",
        "reporting",
        "rollout_cli",
        "score_cli",
        "serve_cli",
        "data",
        "modules",
        "worlds",
    },
    "export_cli": {"exporting", "failures", "models"},
    "rollout_cli": {"types", "data", "rollouts", "config_checks", "failures"},
    "cli": {
        "completion",
        "lightning_cli",
        "export_cli",
        "rollout_cli",
        "score_cli",
        "serve_cli",
        "metrics",
        "callbacks",
        "failures",
        "config_checks",
        "packaged_configs",
        "reporting",
        "comparing",
        "tokenizer_threads",
    },
    "lightning_cli": {
        "callbacks",
        "models",
        "modules",
        "strategies",
        "config_checks",
        "config_keys",
        "config_notes",
        "run_folders",
        "loggers",
        "checkpoint_io",
        "failures",
    },
    "__main__": {"cli"},
    "__init__": set(),
}


def imported_parts(file: Path) -> set[str]:
    """Parts of the package that a file imports anywhere, inside functions too."""
    parts = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            pytest.fail(f"{file}: relative import")
        names = []
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "ipvrm_lightning" else [base]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        parts |= {name.split(".")[1] for name in names if name.startswith("ipvrm_lightning.")}
    return parts - {"__version__"}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_one_way(file: Path) -> None:
    part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert part in ALLOWED, f"{part} is not part of the layout"
    assert imported_parts(file) - {part} <= ALLOWED[part]


def test_functional_needs_torch_only() -> None:
    script = "import sys, ipvrm_lightning.functional; print(sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stdout))
    assert not loaded & {"lightning", "transformers", "torchmetrics", "datasets", "peft", "pandas", "pyarrow"}


@pytest.mark.parametrize("command", ["", "score", "export", "report", "compare"])
def test_help_does_not_wait_for_torch(command: str) -> None:
    script = (
        "import sys; from ipvrm_lightning.cli import main\n"
        f"try: main({[*command.split(), '--help']})\n"
        "except SystemExit as end: assert not end.code\n"
        "print(sorted({m.split('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "usage: ipvrm" in done.stdout
    assert not set(ast.literal_eval(done.stdout.splitlines()[-1])) & {"torch", "lightning", "transformers"}


def test_files_and_functions_stay_small() -> None:
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert text.count("\n") <= 400, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno <= 80, f"{file}: {node.name}"


def test_nothing_is_called_utils() -> None:
    assert not [file for file in PACKAGE.rglob("*.py") if file.stem in {"utils", "common", "helpers", "misc"}]
