from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from ipvrm_lightning.cli import main
from ipvrm_lightning.metrics import judge_solutions, read_scores
from ipvrm_lightning.metrics.token_file import read_tokens
from ipvrm_lightning.reporting.browser import choose
from tests.reporting.runs import HOSTILE, SETTINGS, write_fit_run, write_test_run


class Page(HTMLParser):
    """Elements, ids, links and texts of a page."""

    VOID = frozenset({"meta", "link", "input", "br", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.data = ""
        self.words: list[str] = []
        self._stack: list[str] = []
        self.feed(text)
        assert not self._stack, f"not closed: {self._stack}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self._stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._stack and self._stack.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self._stack and self._stack[-1] == "script" and data.startswith("{"):
            self.data = data
        elif not self._stack or self._stack[-1] not in {"script", "style"}:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, name: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == name]


TEST = "20260101-110000-test"


def report(*arguments: str | Path, out: Path) -> Page:
    main(["report", *map(str, arguments), "--out", str(out)])
    return Page(out.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(page_file: Path) -> Page:
    return Page(page_file.read_text(encoding="utf-8"))


def test_it_holds_what_the_run_found(page: Page, runs: Path) -> None:
    for expected in (
        "longest step (floor)",
        "random scores (floor)",
        "95 % interval",
        "Best of n",
        "Reliability of all",
    ):
        assert expected in page.text
    results = json.loads((runs / TEST / "results.json").read_text())
    for subset in ("alpha", "beta"):
        found = results["reports"]["step_f1"]["subsets"][subset]["protocols"]["step_sum"]["cross_fitted"]
        interval = found["f1_interval"]
        assert f"{100 * found['f1']:.1f} [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]" in page.text
    titles = ["F1 against the threshold", "Values of prefixes of rollouts", "Value along the solution"]
    titles += ["Value around the first wrong step", "mass that the candidates cover", "optimiser step", "val/auroc"]
    for title in titles:
        assert title in page.text
    assert "circle: oracle" in page.text.lower()
    assert page.elements["svg"] == page.elements["figure"] == page.elements["figcaption"] >= 8


def test_it_loads_nothing_and_its_names_are_its_own(page: Page) -> None:
    assert not page.values("src") and page.elements["link"] == 0
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    links = page.values("href") + page.values("xlink:href")
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    clips = re.findall(r"url\(#([^)]*)\)", " ".join(page.values("clip-path") + page.values("style")))
    assert clips and set(clips) <= set(ids)
    assert "default-src 'none'" in page.values("content")[0]


def test_what_is_said_of_all_subsets_comes_first(page_file: Path, runs: Path) -> None:
    """A terminal shows it last."""
    titles = [
        str(table.title) for table in judge_solutions(read_scores(runs / TEST / "scores.jsonl"), SETTINGS).tables()
    ]
    captions = re.findall(r"<caption[^>]*>\s*<span>(.*?)</span>", page_file.read_text(), re.DOTALL)
    assert len(set(titles)) == 4 and captions[:4] == [titles[3], titles[2], titles[0], titles[1]]


def test_it_can_be_read_without_seeing_it(page: Page) -> None:
    ids = set(page.values("id"))
    for name in ("aria-labelledby", "aria-describedby"):
        assert set(page.values(name)) <= ids
    assert ("html", "lang", "en") in page.attributes
    assert page.elements["main"] == page.elements["h1"] == 1 and page.elements["nav"] == 1
    assert page.elements["caption"] == page.elements["table"]
    assert page.values("role").count("img") == page.elements["figure"]
    assert "#main" in page.values("href")


def test_texts_of_models_stay_texts(page: Page, runs: Path) -> None:
    assert page.elements["img"] == 0
    assert page.elements["script"] == 2
    solutions = {one["id"]: one for one in json.loads(page.data)["solutions"]}
    records = {one.id: one for one in read_tokens(runs / TEST / "tokens.jsonl")}
    assert solutions.keys() == records.keys()
    assert solutions["alpha-0"]["tokens"][1] == HOSTILE
    for name, one in solutions.items():
        assert (one["tokens"], one["prompt"]) == (records[name].tokens, records[name].prompt)


def test_names_of_data_sets_stay_texts(tmp_path: Path) -> None:
    write_test_run(tmp_path, count=12, subsets=("<img src=x>", "[b]$_{"))
    page = report(tmp_path, out=tmp_path / "report.html")
    assert page.elements["img"] == 0
    assert "Step F1 on <img src=x>" in page.text and "[b]$_{" in page.text


def test_a_big_run_is_sampled_and_says_so(runs: Path, tmp_path: Path) -> None:
    page = report(runs, "--max-solutions", "7", out=tmp_path / "a.html")
    data = json.loads(page.data)
    assert len(data["solutions"]) == 7
    assert "A sample: 7 of 40 judged solutions" in page.text
    again = choose(read_scores(runs / TEST / "scores.jsonl"), read_tokens(runs / TEST / "tokens.jsonl"), 9)
    assert {one["id"] for one in data["solutions"]} < {one.id for one in again}
    files = [runs / TEST / name for name in ("results.json", "scores.jsonl")]
    none = report(*files, "--max-solutions", "0", out=tmp_path / "b.html")
    assert not none.data and none.elements["table"] > 3


def test_parts_that_are_not_there_are_left_out(runs: Path, tmp_path: Path) -> None:
    test = runs / TEST
    scores = report(test / "scores.jsonl", out=tmp_path / "scores.html")
    assert "longest step (floor)" in scores.text and "No tokens were kept" in scores.text
    assert "Final values of judged solutions" in scores.text
    assert "tokens" not in json.loads(scores.data)["solutions"][0]
    write_fit_run(tmp_path / "fit")
    fit = report(tmp_path / "fit", out=tmp_path / "fit.html")
    assert "optimiser step" in fit.text and "candidates" not in fit.text
    assert f"torch {torch.__version__}" in fit.text  # of its run.json
    assert fit.elements["form"] == 0 and not fit.data
    results = report(test / "results.json", out=tmp_path / "results.html")
    assert "Best of n" in results.text and "F1 against" not in results.text and results.elements["form"] == 0


def test_the_same_run_gives_the_same_page(runs: Path, page_file: Path, tmp_path: Path) -> None:
    report(runs, out=tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == page_file.read_bytes()


def test_it_goes_into_the_folder_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_fit_run(tmp_path / "fit")
    main(["report", str(tmp_path / "fit")])
    assert (tmp_path / "fit" / "report.html").is_file()
    assert "report.html" in capsys.readouterr().out
