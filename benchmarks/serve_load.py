"""Many clients at once against a real server process: nothing lost, nothing wrong, and what batches are worth.

    python benchmarks/serve_load.py                                    # 50 clients, 60 seconds, a tiny model
    python benchmarks/serve_load.py --model EXPORT --solutions FILE    # a model and solutions of yours

`ipvrm serve` is started on a free port of this machine. Each client keeps a connection, asks for a solution drawn at
random, and compares the answer with what `PrefixValueModel` says of that solution alone, in this process: values,
probabilities and means to 1e-5, sums to 1e-5 of what beta is multiplied with. One request in twenty is bad on purpose
and has to be refused, while its neighbours are answered. At the end the server gets SIGTERM and has to end with status
0. "One by one" is the same server with batches of one. Clients and server share the machine's cores.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from measuring import Found, compare, table

VARIANTS = ("batched", "one by one")
#: The tiny pair, whose time is that of everything around the model. Its tokens are words.
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 192, "vocab_size": 4096}
BETA, SUMS = 10.0, {"td_advantage", "step_sum", "prefix_sum"}
BAD = {"problem": "", "steps": ["a"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--model", help="an export; default a pair with random weights")
    parser.add_argument("--solutions", help="what `ipvrm score` reads; default random words")
    parser.add_argument("--shape", help="of the pair: a key of shapes.SHAPES; default hidden 64, 2 layers")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--max_tokens", default="16384", help="of a batch")
    compare(parser, "serve_load", VARIANTS, measure, make_table, rounds=1)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Counts of the answers, their rate and times, and how the server ended."""
    options = ["--device", arguments.device]
    options += ["--model", arguments.model] if arguments.model else random_pair(arguments.shape, folder)
    asked = solutions_of(arguments.solutions)
    expected = alone(options, asked)
    batch = arguments.max_tokens if arguments.variant == "batched" else "1"
    command = [sys.executable, "-m", "ipvrm_lightning", "serve", *options, "--port", "0", "--max_tokens", batch]
    with open(folder / "log", "w+", encoding="utf-8") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True)
        try:
            port = wait_for_port(server, folder / "log")
            clients = Clients(port, asked, expected)
            took = clients.run(arguments.clients, arguments.seconds)
            status = get(port, "/status")
            server.send_signal(signal.SIGTERM)
            ended = server.wait(60)
        finally:
            server.kill()
    return {**clients.found(took), "mean_batch": status["scored"] / status["batches"], "ended": ended}


def random_pair(shape: str | None, folder: Path) -> list[str]:
    """Two models with random weights in the folder, as options of `ipvrm serve`."""
    from shapes import WordModel

    for seed, name in enumerate(("reward", "reference")):
        factory = WordModel(shape or "qwen3-tiny", TINY if shape is None else None, seed=seed)
        factory.build_model().save_pretrained(folder / name)
        factory.build_tokenizer().save_pretrained(folder / name)
    return [
        *("--model", f"{folder}/reward", "--reference", f"{folder}/reference", "--beta", str(BETA)),
        *("--threshold", "0", "--prompt_format", "plain"),
    ]


def solutions_of(file: str | None) -> list[dict[str, Any]]:
    """From a file, or two to eight steps of 5 to 25 random words."""
    if file is not None:
        from ipvrm_lightning.scoring.requests import read_requests

        return [{"problem": one.request.problem, "steps": one.request.steps} for one in read_requests([file])]
    draw = random.Random(0)

    def words() -> str:
        return " ".join(f"w{draw.randrange(3, TINY['vocab_size'])}" for _ in range(draw.randrange(5, 26)))

    return [{"problem": words(), "steps": [words() for _ in range(draw.randrange(2, 9))]} for _ in range(200)]


def alone(options: list[str], asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the model says of each solution, with nothing beside it."""
    from ipvrm_lightning.score_cli import build_parser
    from ipvrm_lightning.scoring import PrefixValueModel
    from ipvrm_lightning.scoring.command import described

    chosen = build_parser().parse_args(options)
    model = PrefixValueModel(described(chosen), device=chosen.device)
    return [model.score(one["problem"], one["steps"]).to_dict() for one in asked]


def wait_for_port(server: subprocess.Popen[str], log: Path) -> int:
    """The port that the server says it answers at."""
    while True:
        if found := re.search(r"answers at http://127.0.0.1:(\d+)", log.read_text(encoding="utf-8")):
            return int(found[1])
        if server.poll() is not None:
            sys.exit(f"the server did not start:\n{log.read_text(encoding='utf-8')}")
        time.sleep(0.1)


def get(port: int, path: str) -> Any:
    """The JSON of a path."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    return json.loads(connection.getresponse().read())


def difference(given: Any, expected: Any, scale: float = 1.0) -> float:
    """Largest difference of two answers' numbers, infinite where anything else differs."""
    if isinstance(expected, float):
        return abs(given - expected) / scale
    if isinstance(expected, dict) and given.keys() == expected.keys():
        scales = {key: BETA if key in SUMS else 1.0 for key in expected}
        return max(difference(given[key], expected[key], scales[key]) for key in expected)
    if isinstance(expected, (list, tuple)) and len(given) == len(expected):
        return max(map(difference, given, expected))
    return 0.0 if given == expected else math.inf


class Clients:
    """Threads that ask, each the next as soon as it has its answer."""

    def __init__(self, port: int, asked: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
        self.port, self.asked, self.expected = port, asked, expected
        self.counts: Counter[str] = Counter()
        self.times: list[float] = []
        self.apart = 0.0

    def run(self, clients: int, seconds: float) -> float:
        """Ask for so long; returns the seconds until the last answer was there."""
        began = time.perf_counter()
        until = began + seconds
        threads = [threading.Thread(target=self._ask, args=(number, until)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - began

    def found(self, seconds: float) -> dict[str, Any]:
        counts: dict[str, float] = {name: self.counts[name] for name in ("answered", "refused", "wrong", "lost")}
        cuts = statistics.quantiles(self.times, n=100)
        counts["apart"] = self.apart
        return {**counts, "per_second": self.counts["answered"] / seconds, "median": cuts[49], "p99": cuts[98]}

    def _ask(self, number: int, until: float) -> None:
        draw = random.Random(number)
        connection = HTTPConnection("127.0.0.1", self.port, timeout=120)
        while (began := time.perf_counter()) < until:
            bad, place = draw.random() < 0.05, draw.randrange(len(self.asked))
            body = json.dumps({"solutions": [BAD if bad else self.asked[place]]})
            try:
                connection.request("POST", "/score", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                status, answer = response.status, json.loads(response.read())
            except (OSError, HTTPException, ValueError):
                connection.close()
                self.counts["lost"] += 1
                continue
            if bad:
                self.counts["refused" if (status, answer["field"]) == (422, "solutions[0].problem") else "wrong"] += 1
            elif status != 200:
                self.counts["lost"] += 1
            else:
                apart = difference(answer["scores"][0], self.expected[place])
                self.apart = max(self.apart, apart)
                self.counts["answered" if apart <= 1e-5 else "wrong"] += 1
                self.times.append(time.perf_counter() - began)


def make_table(found: Found, arguments: argparse.Namespace) -> list[str]:
    """A row for each way, and the ratio of their rates."""
    rows = []
    for name, runs in found.items():
        (run,) = runs[-1:]
        counts = [str(run[key]) for key in ("answered", "refused", "wrong", "lost")]
        counts.append(f"{run['apart']:.1e}")
        times = [f"{run['per_second']:.1f}", f"{1000 * run['median']:.0f}", f"{1000 * run['p99']:.0f}"]
        rows.append([name, *counts, *times, f"{run['mean_batch']:.1f}", str(run["ended"])])
    header = [
        "",
        "answered",
        "bad, refused",
        "wrong",
        "lost",
        "largest difference",
        "answers/s",
        "median ms",
        "99% ms",
        "mean batch",
        "exit",
    ]
    what = arguments.model or f"a pair with random weights, {arguments.shape or 'hidden 64, 2 layers'}"
    lines = [
        f"{arguments.clients} clients for {arguments.seconds:g} seconds each way, on one machine with the server;"
        f" {what}, {arguments.device}.",
        "",
        *table(header, rows),
    ]
    if len(found) == 2:
        batched, single = (runs[-1]["per_second"] for runs in found.values())
        lines += ["", f"Batches answer {batched / single:.2f} times as many requests as one by one."]
    return lines


if __name__ == "__main__":
    main()
