"""Feed the command line broken data, configs and model folders; count what is accepted, refused in one line, or fails.

python benchmarks/fuzz.py --cases 250      # of each kind; writes benchmarks/results/fuzz.md

A case is refused well when `ipvrm` ends with a status above 0 and one printable line that names the file or the key,
leaves nothing half-written and nothing outside of its output folder; it fails when there is a traceback, an error
nobody expected, several lines, or no end within two minutes. `tests/fuzz` holds the cases and runs a part of them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent.parent))

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.bases import write_bases
from tests.fuzz.configs import configs
from tests.fuzz.driver import Case, Result, run_case
from tests.fuzz.folders import folders
from tests.fuzz.records import prompts, scores, solutions, trajectories

RESULTS = Path(__file__).parent / "results" / "fuzz.md"
COMMANDS = {
    "trajectories": "fit, test",
    "prompts": "rollout",
    "solutions": "test, predict",
    "scores": "judge",
    "configs": "all",
    "folders": "fit, test, rollout",
}
NAMES = {"solutions": "ProcessBench", "folders": "model folders"}


def run(strategy, count: int, number: int, folder: Path) -> list[Result]:  # type: ignore[no-untyped-def]
    """Results of so many different cases that a strategy draws."""
    results: dict[str, Result] = {}

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def one(case: Case) -> None:
        if (name := repr((case.command, case.files))) not in results:
            results[name] = run_case(case, folder / "case")

    one()
    return list(results.values())


def table(results: dict[str, list[Result]], seconds: dict[str, float], command: str) -> str:
    """The results as Markdown."""
    lines = [
        "# Broken input",
        "",
        f"`{command}`",
        "",
        "| kind | commands | cases | accepted | refused in one line | failed | s/case |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    total: Counter[str] = Counter()
    for kind, found in results.items():
        counts = Counter(result.verdict for result in found)
        total += counts
        numbers = f"{len(found)} | {counts['accepted']} | {counts['refused']} | {counts['failed']}"
        lines.append(
            f"| {NAMES.get(kind, kind)} | {COMMANDS[kind]} | {numbers} | {seconds[kind] / max(1, len(found)):.2f} |"
        )
    numbers = f"{sum(total.values())} | {total['accepted']} | {total['refused']} | {total['failed']}"
    lines += [f"| **all** | | {numbers} | |", "", "No two cases are equal. Examples of what is said:", ""]
    for kind, found in results.items():
        refused = [result for result in found if result.verdict == "refused"]
        for result in refused[:: max(1, len(refused) // 3)][:3]:
            text = result.text.replace("`", "'")
            lines.append(f"- {NAMES.get(kind, kind)}, {result.case.label[:80]!r}: `{text[:300]}`")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=250, help="of each kind (default: 250)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", choices=list(COMMANDS), default=list(COMMANDS))
    arguments = parser.parse_args()
    strategies = {s.__name__: s for s in (trajectories, prompts, solutions, scores, configs, folders)}
    results: dict[str, list[Result]] = {}
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bases = write_bases(folder / "bases")
        for kind in arguments.kinds:
            began = time.process_time()
            results[kind] = run(strategies[kind](bases), arguments.cases, arguments.seed, folder)
            seconds[kind] = time.process_time() - began
            print(kind, dict(Counter(result.verdict for result in results[kind])), flush=True)
            for result in results[kind]:
                if result.verdict == "failed":
                    print(f"FAILED {kind}: {result.case.label!r}\n    {result.text}".encode(errors="replace").decode())
        text = table(results, seconds, f"python benchmarks/fuzz.py --cases {arguments.cases} --seed {arguments.seed}")
        text = text.replace(str(folder), "")
    if set(arguments.kinds) == set(COMMANDS):
        RESULTS.write_text(text, encoding="utf-8", errors="backslashreplace")
        print(f"in {RESULTS}")
    sys.exit(any(result.verdict == "failed" for found in results.values() for result in found))


if __name__ == "__main__":
    main()
