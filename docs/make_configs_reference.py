"""Write docs/configs.md: what a config can name, with every argument, from the code itself.

python docs/make_configs_reference.py            # --check: fail where the file is not what the code says
"""

from __future__ import annotations

import argparse
import json
import sys
import typing
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("configs.md")

WORLD = "ipvrm_lightning.worlds.arithmetic.settings.WorldSettings"
#: Arguments that a config gives elsewhere.
ELSEWHERE = {WORLD: {"size", "seed"}}
#: Title to class paths, in the order of the page.
SECTIONS: dict[str, list[str]] = {
    "Modules (`model`)": [
        "ipvrm_lightning.modules.IPVRMModule",
        "ipvrm_lightning.modules.DistRLModule",
        "ipvrm_lightning.modules.PolicyModule",
        "ipvrm_lightning.modules.SFTModule",
    ],
    "Parts of `DistRLModule`": [
        f"ipvrm_lightning.modules.distrl_settings.{name}"
        for name in ("RewardModel", "Collecting", "AdvantageSettings", "PolicyUpdate")
    ]
    + ["ipvrm_lightning.modules.alarms.Alarms"],
    "Data (`data`)": [
        "ipvrm_lightning.data.TrajectoryDataModule",
        "ipvrm_lightning.data.ProcessBenchDataModule",
        "ipvrm_lightning.data.PromptDataModule",
        "ipvrm_lightning.worlds.arithmetic.ArithmeticDataModule",
        "ipvrm_lightning.worlds.arithmetic.ArithmeticPromptData",
    ],
    "Language models (`language_model`)": [
        "ipvrm_lightning.models.PretrainedLanguageModel",
        "ipvrm_lightning.models.RandomLanguageModel",
        "ipvrm_lightning.worlds.arithmetic.ArithmeticPolicy",
        "ipvrm_lightning.models.LoRA",
    ],
    "Objectives (`objective`)": [
        f"ipvrm_lightning.objectives.{name}" for name in ("IPVRM", "ImplicitPRM", "DPORM", "QRM", "EndoRM")
    ],
    "References (`reference`)": [
        f"ipvrm_lightning.models.{name}" for name in ("AdaptersOff", "FrozenCopy", "CachedReference")
    ],
    "Learning rate (`scheduler`)": ["ipvrm_lightning.modules.schedule.Schedule"],
    "Sampling (`sampling`, `evaluation`)": ["ipvrm_lightning.rollouts.Sampling"],
    "Where responses come from (`source` of `ipvrm rollout`)": [
        "ipvrm_lightning.rollouts.InProcess",
        "ipvrm_lightning.rollouts.Endpoint",
    ],
    "Verifiers (`verifier`)": [
        "ipvrm_lightning.rollouts.MathVerifier",
        "ipvrm_lightning.rollouts.ExactMatch",
        "ipvrm_lightning.worlds.arithmetic.ArithmeticVerifier",
    ],
    "Callbacks (`trainer.callbacks`)": ["ipvrm_lightning.callbacks.HFExport"],
    "Strategies (`trainer.strategy`)": ["ipvrm_lightning.strategies.FullyShard"],
    "Loggers (`trainer.logger`)": ["ipvrm_lightning.loggers.MetricsFile"],
    "Built-in worlds (`overrides`)": [WORLD],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    text = page()
    if not arguments.check:
        FILE.write_text(text, encoding="utf-8")
    elif text != FILE.read_text(encoding="utf-8"):
        sys.exit(f"{FILE} is not what the code says: python docs/make_configs_reference.py")


def page() -> str:
    """The whole page."""
    lines = [
        "# What a config can name",
        "",
        "A class is given by `class_path` and `init_args`, and one of your own with the same base fits in its place.",
        "Those that say *plain keys* are groups of settings: their arguments stand in the config as they are.",
        "`ipvrm fit --help`, `--model.help IPVRMModule` and `--print_config` show the same on the command line.",
        "This page is made from the code by `docs/make_configs_reference.py`.",
    ]
    for title, paths in SECTIONS.items():
        lines += ["", f"## {title}"]
        for path in paths:
            lines += ["", *section(path)]
    return "\n".join(lines) + "\n"


def section(path: str) -> list[str]:
    """A class: its purpose, and a table of its arguments."""
    from pkgutil import resolve_name

    from docstring_parser import parse
    from jsonargparse import ArgumentParser

    found: Any = resolve_name(path)
    described = parse(found.__doc__ or "")
    plain_keys = "*Plain keys.*" if is_dataclass(found) else None
    described_by = filter(None, [plain_keys, described.short_description, described.long_description])
    lines = [f"### `{path}`", "", *described_by]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(found, sub_configs=True)
    left_out = ELSEWHERE.get(path, set())
    rows = [
        row(action)
        for action in parser._actions
        if hasattr(action, "_typehint") and not action.dest.endswith(".help") and action.dest not in left_out
    ]
    if rows:
        lines += ["", "| argument | type | default | |", "| --- | --- | --- | --- |", *rows]
    return lines


def row(action: Any) -> str:
    """One argument as a line of the table."""
    default = "required" if action.required else f"`{plain(action.default)}`"
    cells = [f"`{action.dest}`", f"`{type_name(action._typehint)}`", default, " ".join((action.help or "").split())]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def plain(value: Any) -> str:
    """A default as YAML would have it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"])
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    return json.dumps(value) if isinstance(value, str) and "\n" in value else str(value)


def type_name(hint: Any) -> str:
    """A type without the modules of its parts."""
    if hint is type(None):
        return "null"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is None:
        return getattr(hint, "__name__", str(hint).rsplit(".", 1)[-1])
    if origin is typing.Literal:
        return " | ".join(map(str, arguments))
    if origin is typing.Union or getattr(origin, "__name__", "") == "UnionType":
        return " | ".join(type_name(one) for one in arguments)
    inside = ", ".join("..." if one is Ellipsis else type_name(one) for one in arguments if not isinstance(one, list))
    return f"{origin.__name__}[{inside}]"


if __name__ == "__main__":
    main()
