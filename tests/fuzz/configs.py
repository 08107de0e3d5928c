"""Configs and arguments: keys that do not exist, values of the wrong kind, classes of the wrong kind, broken YAML."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from .bases import bases
from .config_values import CLASS_PATHS, ODD, PAIRS, SETTINGS, TEXTS, arguments
from .damage import DAMAGE
from .driver import Case


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else ()
    return [at, *(path for key, part in inner for path in _paths(part, (*at, key)))]


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _out(name: str) -> tuple[str, ...]:
    return ("--output", "{out}") if name == "rollout.yaml" else ("--trainer.default_root_dir", "{out}")


@st.composite
def _spoilt(draw: Callable[..., Any], configs: str) -> Case:
    """A sound config with one key changed, removed or added."""
    name = draw(st.sampled_from(["fit.yaml", "test.yaml", "rollout.yaml"]))
    config = copy.deepcopy(bases(Path(configs))[name])
    path = draw(st.sampled_from(_paths(config)[1:]))
    how = draw(st.sampled_from(["set", "set", "remove", "unknown", "class"]))
    parent, key = _at(config, path[:-1]), path[-1]
    value: Any = ""
    if how == "class":
        path = draw(st.sampled_from([p for p in _paths(config) if p and p[-1] == "class_path"]))
        parent, key = _at(config, path[:-1]), path[-1]
        value = draw(st.sampled_from(CLASS_PATHS))
        parent[key] = value
    elif how == "set" and key != "devices":  # two would start this process again
        value = draw(st.sampled_from(ODD))
        parent[key] = value
    elif how == "remove":
        del parent[key]
    else:
        key = draw(st.sampled_from(["betaa", "Class_path", "", "a.b", "é", "init_args", "__class__", "help"]))
        parent[key] = value
    text = yaml.safe_dump(config, allow_unicode=False).encode()
    named = [str(part) for part in path if part not in ("init_args", "class_path")]
    return Case(
        "configs",
        f"{name}: {how} {'.'.join(map(str, path))} {key!r} = {value!r}",
        {name: text},
        (name.removesuffix(".yaml"), "--config", f"{{here}}/{name}", *_out(name)),
        (*named[-2:], str(key) or "key", str(value)[:20] or "key", name, "none is given", "has no step for"),
    )


@st.composite
def _broken(draw: Callable[..., Any], configs: str) -> Case:
    """A file that is no config."""
    name = draw(st.sampled_from(["fit.yaml", "rollout.yaml"]))
    sound = yaml.safe_dump(bases(Path(configs))[name]).encode()
    what = draw(st.sampled_from(sorted(TEXTS)) | st.sampled_from(sorted(set(DAMAGE) - {"nested", "a long number"})))
    files: dict[str, bytes | None]
    files = {name: TEXTS[what].encode()} if what in TEXTS else {name: DAMAGE[what](sound, draw(st.integers(1, 10000)))}
    where = draw(st.sampled_from(["", "", "", "", "missing", "folder"]))
    if where:
        files = {} if where == "missing" else {name: None}
    option = draw(st.sampled_from(["--config", "-c", "--config="]))
    given = [f"--config={{here}}/{name}"] if option == "--config=" else [option, f"{{here}}/{name}"]
    return Case(
        "configs",
        f"{name}: {where or what}",
        files,
        (name.removesuffix(".yaml"), *given, *_out(name)),
        (name, "required", "c/fit", "key", "/here", "Option", "argument"),
    )


@st.composite
def _settings(draw: Callable[..., Any], configs: str) -> Case:
    """A sound config with odd arguments after it."""
    pair = draw(st.none() | st.sampled_from(PAIRS))
    mentions: tuple[str, ...] = ()
    if pair is None:
        key = draw(st.sampled_from(SETTINGS))
        text = (
            yaml.safe_dump(draw(st.sampled_from(ODD)), default_flow_style=True, width=10_000).split("\n...")[0].strip()
        )
        pair = (f"--{key}", text)
        if key.startswith("model.language_model.lora"):
            pair = ("--model.language_model.lora", "{r: 2}", *pair)
        name = key.rpartition(".")[2]
        mentions = (name, name.replace("_", " "), text[:20], {"max_time": "duration"}.get(name, name))
    out = _out("fit.yaml")
    command = ("fit", "--config", f"{configs}/fit.yaml", *out, *pair)
    return Case("configs", f"fit {' '.join(pair)}"[:400], {}, command, mentions)


@st.composite
def _arguments(draw: Callable[..., Any], configs: str) -> Case:
    """Commands and options that do not exist."""
    words = draw(st.sampled_from(arguments(configs)))
    return Case("configs", f"arguments {words}", {}, words)


def configs(folder: str) -> st.SearchStrategy[Case]:
    """Configs and arguments of every command."""
    return st.one_of(
        _spoilt(folder), _spoilt(folder), _settings(folder), _settings(folder), _broken(folder), _arguments(folder)
    )
