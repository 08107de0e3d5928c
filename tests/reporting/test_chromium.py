"""The page in a real browser: no error, filters, keyboard, width."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ipvrm_lightning.metrics import read_scores
from tests.reporting.chromium import EXECUTABLE, Chromium

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="no chromium on the PATH")

VERDICTS = "[...document.querySelectorAll('#list > li')].map((one) => one.dataset.verdict)"


def test_it_opens_from_disk_and_is_used_by_keyboard(runs: Path, page_file: Path, tmp_path: Path) -> None:
    solutions = read_scores(next(runs.glob("*-test")) / "scores.jsonl")
    report = json.loads((next(runs.glob("*-test")) / "results.json").read_text())["reports"]["step_f1"]
    with Chromium(tmp_path / "profile") as browser:
        browser.resize(390)
        browser.open(page_file)
        check_filters(browser, report, len(solutions))
        check_solution(browser)
        for width in (320, 390, 1280):
            browser.resize(width, dark=width == 390)
            assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.run("document.title") != "owned"
        assert browser.run("document.images.length") == 0
        assert browser.problems == []


def check_filters(browser: Chromium, report: dict, total: int) -> None:
    shown = browser.run(VERDICTS)
    assert len(shown) == total and set(shown) == {"right", "wrong", "missed"}
    right = sum(
        round(part["protocols"]["step_sum"]["cross_fitted"][name] * count)
        for part in report["subsets"].values()
        for name, count in (
            ("error_accuracy", part["with_error"]),
            ("correct_accuracy", part["solutions"] - part["with_error"]),
        )
    )
    assert shown.count("right") == right
    for verdict in ("right", "wrong", "missed"):
        browser.run(f"document.querySelector('[name=verdict][value={verdict}]').click()")
        assert set(browser.run(VERDICTS)) == {"right", "wrong", "missed"} - {verdict}
        browser.run(f"document.querySelector('[name=verdict][value={verdict}]').click()")
    choose = "(() => {{ const one = document.getElementById('{0}'); one.value = '{1}';"
    choose += " one.dispatchEvent(new Event('change', {{bubbles: true}})); }})()"
    browser.run(choose.format("subset", "beta"))
    subsets = browser.run("[...document.querySelectorAll('#list > li')].map((one) => one.dataset.subset)")
    assert set(subsets) == {"beta"} and len(subsets) == report["subsets"]["beta"]["solutions"]
    assert str(len(subsets)) in browser.run("document.getElementById('shown').textContent")
    browser.run(choose.format("subset", ""))
    browser.run(choose.format("origin", "oracle"))
    browser.run(choose.format("protocol", "step_mean"))
    right_of_oracle = browser.run(VERDICTS).count("right")
    assert right_of_oracle != right or report["average"]["protocols"]["step_mean"]["oracle"]["f1"] > 0
    browser.run(choose.format("protocol", "step_sum"))


def check_solution(browser: Chromium) -> None:
    """The solution whose text would like to be markup: opened, read token by token, never anything but text."""
    browser.run(
        "[...document.querySelectorAll('#list summary')]"
        ".find((one) => one.textContent.includes('alpha / alpha-0')).focus()"
    )
    browser.press("Enter")
    opened = "document.querySelector('#list details[open]')"
    # the body is built when the element has told that it is open
    browser.run("new Promise((done) => setTimeout(done, 50))")
    assert "onerror=" in browser.run(f"{opened}.textContent")
    assert browser.run(f"{opened}.querySelectorAll('.step').length") >= 2
    assert browser.run(f"{opened}.querySelectorAll('.token[title^=\"TD advantage\"]').length") >= 8
    browser.run(f"{opened}.querySelector('.tokens').focus()")
    browser.press("ArrowRight")
    first = browser.run("document.getElementById('readout').textContent")
    browser.press("ArrowRight")
    second = browser.run("document.getElementById('readout').textContent")
    assert "TD advantage" in first and "value after it" in first and first != second
    assert browser.run(f"getComputedStyle({opened}.querySelector('.tokens')).outlineStyle") != "none"
