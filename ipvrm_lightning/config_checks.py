"""What the parser of configs lets through or tells without the place: broken files, functions as classes, nulls."""

from __future__ import annotations

import errno
import inspect
import os
from ast import literal_eval
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import partial, reduce
from operator import or_
from pathlib import Path
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

import yaml

from ipvrm_lightning.packaged_configs import packaged_names

if TYPE_CHECKING:
    from argparse import ArgumentParser

_MOST_VALUES = 100_000
#: What the parser reads with: stricter than the one in Python, where there is one in C.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_config_files(arguments: Sequence[str]) -> None:
    """Refuse config files that are not there, are no YAML mapping, give a key twice, or expand without end.

    Args:
        arguments: of a command; those after `--config` and `-c` are files.

    Raises:
        FileNotFoundError: there is no such file; names the nearest of the package's own.
        ValueError: names file, line and column.
    """
    for file in _config_files(arguments):
        if os.path.isfile(file):  # of a config in place of a name, which may be too long for one, `is_file` fails
            _check(file)
        elif file.suffix in {".yaml", ".yml", ".json"}:  # the parser takes a config in place of a file's name, too
            near = get_close_matches(str(file), packaged_names(), n=1)
            raise FileNotFoundError(f"{file}: no such config{f'; did you mean {near[0]}?' if near else ''}")


def bound_values() -> None:
    """Have the parser refuse what expands without end, in files that arguments name too; keep nulls and comments."""
    from jsonargparse import get_loader, set_loader

    load = get_loader("yaml")
    if getattr(load, "func", None) is not _load_bounded:
        set_loader("yaml", partial(_load_bounded, load), (yaml.YAMLError,))


def carry_parts_over() -> None:
    """Have the parser keep parts such as `lora` where a later config names another class for what they belong to.

    To see which arguments the new class takes it tries each, and leaves what it has tried in a form that it cannot read
    itself, where that holds a part without a `class_path`.
    """
    from jsonargparse import Namespace, _typehints

    discard = getattr(_typehints, "discard_init_args_on_class_path_change", None)
    if discard is None or discard.__module__ == __name__:  # a version that does otherwise, or done
        return

    def discard_by_a_copy(parser: Any, earlier: Any, value: Any) -> None:
        if not isinstance(earlier, Namespace) or not isinstance(earlier.get("init_args"), Namespace):
            return discard(parser, earlier, value)
        tried = earlier.clone()
        discard(parser, tried, value)
        for name in vars(earlier.init_args).keys() - vars(tried.init_args).keys():
            del vars(earlier.init_args)[name]

    _typehints.discard_init_args_on_class_path_change = discard_by_a_copy


def read_counts_as_counts(parser: ArgumentParser) -> None:
    """Have the parser read `1` as one batch, not as all of them, in Lightning's arguments that are a count or a share.

    It tries the types in the order that Python hands out, and Python keeps `Union`s by their members in any order:
    Lightning's `Union[int, float]` is `Union[float, int]` where another library has asked for that one before.

    Args:
        parser: of a command.
    """
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else ()
        if int in kinds and float in kinds:
            # numbers before text, too: 0.5 of val_check_interval would be taken for a time
            ordered = sorted(kinds, key=lambda kind: (kind is not int, kind is not float))
            action._typehint = reduce(or_, ordered)  # type: ignore[attr-defined]


def expand_home(config: Any) -> Any:
    """Put the user's folder in place of `~/` at the start of a value, which no shell does in a file or after `--key=`.

    Lightning does for some files of a run and not for others: it would be divided over two folders.

    Args:
        config: parsed, nothing in it built yet; what it holds is replaced.

    Returns:
        The same, or what a list or a dictionary is replaced by: a default belongs to its class.
    """
    from jsonargparse import Namespace

    if isinstance(config, str):
        return os.path.expanduser(config) if config.startswith("~/") else config
    if isinstance(config, list):
        return [expand_home(value) for value in config]
    if isinstance(config, dict):
        return {name: expand_home(value) for name, value in config.items()}
    if isinstance(config, Namespace):
        vars(config).update(expand_home(vars(config)))
    return config


def describe_options(parser: ArgumentParser, texts: Mapping[str, str]) -> None:
    """Have `--help` say these texts of options.

    Args:
        parser: of a command.
        texts: by the option's name.
    """
    for action in parser._actions:
        action.help = texts.get(action.dest, action.help)


def _load_bounded(load: Callable[[str], Any], text: str) -> Any:
    try:
        if text.startswith(("None", "[", "{")) and "None" in text:
            # the parser reads the value of a nested key at every level, and hands it down as Python writes it
            with suppress(ValueError, SyntaxError, MemoryError):
                return literal_eval(text)
        if "&" in text and "*" in text:  # anchors and aliases, without which a text is as long as what it says
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            values = 0 if root is None else _count(root, {})
            if values > _MOST_VALUES:
                raise yaml.YAMLError(f"expands to {values} values, more than {_MOST_VALUES}")
        found = load(text)
        # to YAML a prompt that starts with # is a comment, which would be no prompt
        return text if found is None and text and yaml.compose(text, Loader=yaml.SafeLoader) is None else found
    except RecursionError as error:
        raise yaml.YAMLError("nested too deeply, or within itself") from error


def _config_files(arguments: Sequence[str]) -> Iterator[Path]:
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, is_pair, value = word.partition("=")
        if name in ("--config", "-c") and (value if is_pair else following):
            yield Path(expand_home(value if is_pair else following))  # as the parser does


def _check(file: Path) -> None:
    try:
        text = file.read_text(encoding="utf-8-sig")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = 0 if root is None else _count(root, {})
        if values <= _MOST_VALUES:
            yaml.load(text, Loader=_LOADER)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 ({error.reason} at byte {error.start})") from error
    except RecursionError as error:
        raise ValueError(f"{file}: nested too deeply, or within itself") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{file}: {place}{error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: not YAML ({error})") from error
    except (ValueError, TypeError) as error:  # a date in month 13, a key that is a list
        raise ValueError(f"{file}: a value that cannot be read ({error})") from error
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{file}: expected keys and values, found {'nothing' if root is None else root.id}")
    if values > _MOST_VALUES:
        raise ValueError(f"{file}: expands to {values} values, more than {_MOST_VALUES}")


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Values a node expands to; each node is visited once however often aliases name it.

    Raises:
        RecursionError: it contains itself.
        MarkedYAMLError: a key comes twice.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = -1
        children = node.value
        if isinstance(node, yaml.MappingNode):
            _refuse_repeated_keys(node)
            children = [value for _, value in node.value]
        known[id(node)] = 1 + sum(_count(child, known) for child in children)
    if known[id(node)] < 0:
        raise RecursionError
    return known[id(node)]


def _refuse_repeated_keys(node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value in seen:
            raise yaml.MarkedYAMLError(problem=f"key '{key.value}' comes twice", problem_mark=key.start_mark)
        seen.add(str(key.value))


def check_class_paths(config: Any, key: str = "") -> None:
    """Refuse a `class_path` that names a function, which would be called with `init_args`, and nulls for numbers.

    Args:
        config: parsed, nothing in it built yet.
        key: where it stands.

    Raises:
        ValueError: names the key.
    """
    if isinstance(config, (list, tuple)):
        for position, value in enumerate(config):
            check_class_paths(value, f"{key}[{position}]")
    values = config if isinstance(config, dict) else getattr(config, "__dict__", None)
    if not isinstance(values, dict) or isinstance(config, type):
        return
    path = values.get("class_path")
    if isinstance(path, str):
        if not isinstance(kind := resolve_name(path), type):
            raise ValueError(f"{key}: class_path {path} is no class")
        _refuse_nulls(kind, values.get("init_args"), f"{key}.init_args".lstrip("."))
    for name, value in values.items():
        check_class_paths(value, f"{key}.{name}".lstrip("."))


def check_output_folder(folder: Path) -> None:
    """Refuse a folder that runs cannot be written to; it is made by the first that is.

    Args:
        folder: `trainer.default_root_dir`.

    Raises:
        OSError: it could not be made or written to; names the key.
    """
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        reason = os.strerror(errno.EACCES if nearest.is_dir() else errno.ENOTDIR)
        raise OSError(f"trainer.default_root_dir {folder}: runs cannot be written there ({reason})")


def _refuse_nulls(kind: type, arguments: Any, key: str) -> None:
    """The parser takes null for an argument of any type; what fails is the first line that computes with it."""
    given = arguments if isinstance(arguments, Mapping) else getattr(arguments, "__dict__", {})
    nulls = [name for name, value in given.items() if value is None]
    if not nulls:
        return
    try:
        hints = get_type_hints(kind.__init__)  # type: ignore[misc]
        parameters = inspect.signature(kind).parameters
    except (NameError, TypeError, ValueError):  # types that are imported for checkers only: nothing can be said
        return
    for name in nulls:
        hint = hints.get(name, Any)
        takes_null = hint is Any or hint in (None, NoneType, object) or NoneType in get_args(hint)
        if not takes_null and name in parameters and parameters[name].default is not None:
            raise ValueError(f"{key}.{name}: expected {getattr(hint, '__name__', hint)}, found null")
