"""`ipvrm completion`: a script that lets a shell complete commands, options, their values and configs.

The script holds every word, so that a TAB starts no Python. It is made from the parsers themselves.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Iterator
from inspect import Parameter, isclass, signature
from typing import Any, Literal, NamedTuple, get_args, get_origin

from ipvrm_lightning.failures import OneLineParser
from ipvrm_lightning.packaged_configs import packaged_names

SHELLS = ("bash", "zsh", "fish")


class Option(NamedTuple):
    """What can be typed after a command.

    Args:
        names: spellings; the command itself for its first positional argument.
        values: words that can follow, beside files.
        help: one line.
        flag: nothing follows.
    """

    names: tuple[str, ...]
    values: tuple[str, ...] = ()
    help: str = ""
    flag: bool = False


def build_parser() -> argparse.ArgumentParser:
    """The options of `ipvrm completion`; mistakes are raised."""
    parser = OneLineParser(
        prog="ipvrm completion",
        description="Print a script for a shell to read at its start; see docs/completion.md for where to put it.",
    )
    parser.add_argument("shell", choices=SHELLS)
    return parser


def main(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: after `ipvrm completion`.

    Raises:
        ArgumentError: another shell, or none.
    """
    shell = build_parser().parse_args(arguments).shell
    print(script(shell, {name: list(options_of(name, parser)) for name, parser in all_parsers().items()}))


def all_parsers() -> dict[str, argparse.ArgumentParser]:
    """Every command's parser."""
    from ipvrm_lightning import export_cli, lightning_cli, rollout_cli, score_cli, serve_cli
    from ipvrm_lightning.comparing import command as compare_cli
    from ipvrm_lightning.metrics import judge as judge_cli
    from ipvrm_lightning.reporting import command as report_cli

    return {
        **lightning_cli.IPVRMCLI.parsers(),
        "rollout": rollout_cli.build_parser(),
        "export": export_cli.build_parser(),
        "score": score_cli.build_parser(),
        "serve": serve_cli.build_parser(),
        "report": report_cli.build_parser(),
        "compare": compare_cli.build_parser(),
        "judge": judge_cli.build_parser(),
        "completion": build_parser(),
    }


def options_of(command: str, parser: argparse.ArgumentParser) -> Iterator[Option]:
    """A command's options; of a class that a config names, the arguments of this package's classes as well.

    Args:
        command: its name.
        parser: its parser.
    """
    for action in parser._actions:
        if action.help is argparse.SUPPRESS:
            continue
        names = tuple(action.option_strings) or (command,)
        values = tuple(packaged_names()) if "--config" in names else tuple(map(str, action.choices or _values(action)))
        flag = action.nargs == 0
        if action.option_strings or values:
            yield Option(names, values, " ".join((action.help or "").split("\n")[0].split()).replace("%%", "%"), flag)
        for part in {"--model", "--data"}.intersection(names) if hasattr(action, "_typehint") else ():
            yield from (Option((f"{part}.{name}",)) for name in sorted(_arguments_of(part)))


def _values(action: argparse.Action) -> Iterable[Any]:
    """Of jsonargparse's actions, by the type that they check."""
    kind = getattr(action, "_typehint", None)
    if kind is bool:
        return ("true", "false")
    return get_args(kind) if get_origin(kind) is Literal else ()


def _arguments_of(part: str) -> set[str]:
    """What the constructors of this package's modules, or data modules, take."""
    from ipvrm_lightning import data, modules
    from ipvrm_lightning.worlds import arithmetic

    packages = (modules,) if part == "--model" else (data, arithmetic)
    wanted = "Module" if part == "--model" else "Data"
    classes = [getattr(package, name) for package in packages for name in package.__all__ if wanted in name]
    skipped = (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
    return {
        name
        for one in classes
        if isclass(one)
        for name, parameter in signature(one).parameters.items()
        if parameter.kind not in skipped
    }


def script(shell: str, commands: dict[str, list[Option]]) -> str:
    """The script.

    Args:
        shell: one of `SHELLS`.
        commands: name to options.
    """
    if shell == "fish":
        return "\n".join(_fish(commands))
    bash = _BASH.format(
        commands=_words(commands),
        options="\n".join(
            f"        {name}) known={_words(word for option in options for word in option.names if word != name)} ;;"
            for name, options in commands.items()
        ),
        values="\n".join(
            f"        {'|'.join(f'{name}:{word}' for word in option.names)}) choices={_words(option.values)} ;;"
            for name, options in commands.items()
            for option in options
            if option.values
        ),
    )
    return bash if shell == "bash" else f"autoload -U +X bashcompinit && bashcompinit\n{bash}"


def _words(words: Iterable[str]) -> str:
    """Words one a line, as the shell reads a string."""
    return "$'" + "\\n".join(words) + "'"


#: Empty replies become files. An equals sign is a word of its own to bash. zsh has variables `options` and `commands`.
_BASH = """\
_ipvrm() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" command="${{COMP_WORDS[1]}}"
    local known= choices= IFS=$'\\n'
    if [ "$word" = "=" ]; then word=; elif [ "$before" = "=" ]; then before="${{COMP_WORDS[COMP_CWORD-2]}}"; fi
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W {commands} -- "$word"))
        return
    fi
    case "$command" in
{options}
    esac
    case "$command:$before" in
{values}
    esac
    if [[ "$word" == -* ]]; then
        COMPREPLY=($(compgen -W "$known" -- "$word"))
    elif [[ "$before" == --config || "$before" == -c ]]; then
        compopt -o filenames 2>/dev/null
        COMPREPLY=($(compgen -W "$choices" -- "$word") $(compgen -f -- "$word"))
    elif [ -n "$choices" ]; then
        COMPREPLY=($(compgen -W "$choices" -- "$word"))
    fi
}}
complete -o default -F _ipvrm ipvrm"""


def _fish(commands: dict[str, list[Option]]) -> Iterator[str]:
    yield f"complete -c ipvrm -n __fish_use_subcommand -xa {shlex.quote(' '.join(commands))}"
    for name, options in commands.items():
        for option in options:
            line = f"complete -c ipvrm -n '__fish_seen_subcommand_from {name}'"
            for word in option.names:
                if word.startswith("-"):
                    line += f" -{'l' if word.startswith('--') else 's'} {word.lstrip('-')}"
            line += f" -a {shlex.quote(' '.join(option.values))}" if option.values else ""
            yield line + ("" if option.flag else " -r") + (f" -d {shlex.quote(option.help)}" if option.help else "")
