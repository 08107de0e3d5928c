"""`ipvrm completion`: what real shells offer once they have read the script."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ipvrm_lightning import completion
from ipvrm_lightning.cli import COMMANDS, LIGHTNING
from ipvrm_lightning.completion import SHELLS

from .processes import Started


def write_scripts(folder: Path) -> None:
    os.chdir(folder)
    sys.argv[1:] = ["completion", "bash"]
    options = {name: list(completion.options_of(name, parser)) for name, parser in completion.all_parsers().items()}
    for shell in SHELLS:
        Path(shell).write_text(completion.script(shell, options))


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("completion")
    assert Started(write_scripts, folder).wait() == 0
    (folder / "mine.yaml").touch()
    (folder / "some folder").mkdir()
    return {shell: folder / shell for shell in SHELLS}


def in_bash(script: Path, *words: str) -> list[str]:
    """What bash would offer for the last word."""
    line = " ".join(f"'{word}'" for word in ("ipvrm", *words))
    code = (
        f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _ipvrm;"
        ' [ ${#COMPREPLY[@]} = 0 ] || printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", code], cwd=script.parent, capture_output=True, text=True, check=True
    )  # fmt: skip
    return done.stdout.splitlines()


def test_bash_completes(scripts: dict[str, Path]) -> None:
    bash = scripts["bash"]
    assert set(in_bash(bash, "")) == {*LIGHTNING, *COMMANDS}
    assert in_bash(bash, "sc") == ["score"]
    assert in_bash(bash, "score", "--form") == ["--format"]
    assert in_bash(bash, "score", "--format", "") == ["table", "json", "jsonl"]
    assert in_bash(bash, "score", "--format", "=", "js") == ["json", "jsonl"]
    assert in_bash(bash, "score", "--format", "=") == ["table", "json", "jsonl"]
    assert in_bash(bash, "serve", "--token") == ["--token_file"]
    assert in_bash(bash, "export", "--part", "re") == ["reward"]
    assert in_bash(bash, "fit", "--trainer.max_e") == ["--trainer.max_epochs"]
    assert in_bash(bash, "fit", "--res") == ["--resume"]
    assert in_bash(bash, "fit", "--resume", "") == ["auto", "never"]
    assert in_bash(bash, "test", "--data.tra")[0] == "--data.train"
    assert in_bash(bash, "fit", "--model.objec") == ["--model.objective"]
    assert in_bash(bash, "completion", "") == list(SHELLS)
    assert in_bash(bash, "nothing", "--x") == []


def test_bash_completes_configs_and_leaves_the_rest_to_files(scripts: dict[str, Path]) -> None:
    bash = scripts["bash"]
    offered = in_bash(bash, "fit", "--config", "")
    assert {"configs/ipvrm_qwen.yaml", "configs/strategy/lora.yaml", "mine.yaml", "some folder"} <= set(offered)
    assert in_bash(bash, "rollout", "--config", "=", "configs/rollout_q") == ["configs/rollout_qwen.yaml"]
    assert in_bash(bash, "score", "--model", "") == in_bash(bash, "report", "") == []  # bash's own completion of files
    assert "complete -o default" in bash.read_text()


class Terminal:
    """An interactive zsh: it completes nothing without a terminal."""

    def __init__(self, folder: Path) -> None:
        self.process, self.terminal = pty.fork()
        if self.process == 0:
            os.chdir(folder)
            os.execvpe("zsh", ["zsh", "-f"], {**os.environ, "TERM": "dumb", "PS1": "> "})

    def after(self, typed: str, expected: str) -> None:
        """Type, and wait for what should appear."""
        os.write(self.terminal, typed.encode())
        shown, until = "", time.monotonic() + 20
        while expected not in shown:
            assert time.monotonic() < until, shown
            if select.select([self.terminal], [], [], 0.1)[0]:
                shown += os.read(self.terminal, 65536).decode(errors="replace")

    def close(self) -> None:
        os.close(self.terminal)
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
def test_zsh_completes(scripts: dict[str, Path]) -> None:
    zsh = Terminal(scripts["zsh"].parent)
    try:
        zsh.after("autoload -U compinit && compinit -D -u; source ./zsh; echo read'y'\n", "ready")
        zsh.after("ipvrm sco\t", "score ")
        zsh.after("--form\t", "--format ")
        zsh.after("tab\t", "table ")
        zsh.after("--out mi\t", "mine.yaml ")
        zsh.after("\x15ipvrm fit --config configs/ipvrm_q\t", "ipvrm_qwen.yaml ")
        zsh.after("--trainer.max_ep\t", "--trainer.max_epochs ")
    finally:
        zsh.close()


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish")
def test_fish_completes(scripts: dict[str, Path]) -> None:
    def offered(line: str) -> list[str]:
        code = f"source {scripts['fish']}; complete -C '{line}'"
        done = subprocess.run(
            ["fish", "--no-config", "-c", code], cwd=scripts["fish"].parent, capture_output=True, text=True
        )
        assert done.returncode == 0 and not done.stderr, done.stderr
        return [word.split("\t")[0] for word in done.stdout.splitlines()]

    assert offered("ipvrm sc") == ["score"]
    assert offered("ipvrm score --form") == ["--format"]
    assert {"json", "jsonl"} <= set(offered("ipvrm score --format js"))
    assert "configs/ipvrm_qwen.yaml" in offered("ipvrm fit --config configs/ipvrm_q")
    assert offered("ipvrm fit --trainer.max_ep") == ["--trainer.max_epochs"]


def test_fish_lines_are_whole(scripts: dict[str, Path]) -> None:
    lines = scripts["fish"].read_text().splitlines()
    assert all(line.startswith("complete -c ipvrm -n ") for line in lines)
    (line,) = [line for line in lines if "-l format" in line and "from score'" in line]
    assert line == (
        "complete -c ipvrm -n '__fish_seen_subcommand_from score' -l format -a 'table json jsonl' -r -d 'default table'"
    )


def test_completing_starts_no_python(scripts: dict[str, Path]) -> None:
    for script in scripts.values():
        assert "python" not in script.read_text().replace("run python", "")
