"""What the README says can be typed."""

from __future__ import annotations

import re

from .conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_its_python_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 2
    (block,) = [block for block in blocks if "from_pretrained" not in block]  # tests/scoring runs the other
    scope: dict = {}
    exec(block, scope)
    assert scope["loss"].ndim == 0
    assert scope["values"].shape == (2, 8)


def test_its_files_exist() -> None:
    files = set(re.findall(r"(?:configs|benchmarks|docs)/[\w./]+\.(?:yaml|py|md|png)", README))
    assert len(files) >= 8
    assert not [file for file in files if not (REPOSITORY / file).exists()]


def test_its_targets_are_in_the_makefile() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile
