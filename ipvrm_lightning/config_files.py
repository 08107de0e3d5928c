"""Config files looked at before they are parsed: what is wrong with one is told with its name, line and column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

_MOST_VALUES = 100_000
#: What the parser reads with: stricter than the one in Python, where there is one in C.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_config_files(arguments: Sequence[str]) -> None:
    """Refuse config files that are no YAML mapping, give a key twice, or expand without end.

    Args:
        arguments: of a command; those after `--config` and `-c` are files.

    Raises:
        ValueError: names file, line and column.
    """
    for file in _config_files(arguments):
        if file.is_file():  # what is not there, the parser says
            _check(file)


def _config_files(arguments: Sequence[str]) -> Iterator[Path]:
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, is_pair, value = word.partition("=")
        if name in ("--config", "-c") and (value if is_pair else following):
            yield Path(value if is_pair else following)


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
