from __future__ import annotations

import itertools
import math
import random
import re
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from ipvrm_lightning.metrics import AverageAtK, AverageAtKReport, report_to_json
from ipvrm_lightning.metrics.tables import print_report

#: prompt, data source, outcomes of its responses
HAND = [("a", "easy", [1, 1, 0, 0]), ("b", "easy", [0, 0, 0, 0]), ("c", "hard", [1, 0])]


def rows_of(prompts: list[tuple[str, str, list[int]]]) -> list[dict[str, Any]]:
    rows = []
    for key, source, outcomes in prompts:
        for index, outcome in enumerate(outcomes):
            rows.append(
                {"prompt": key, "source": source, "outcome": outcome, "ended": index > 0, "length": 10 * (index + 1)}
            )
    return rows


def many(prompts: int = 9, each: int = 5) -> list[dict[str, Any]]:
    draw = random.Random(0)
    sources = ("x\u2028y", "z")
    return rows_of(
        [(f"p{key}", sources[key % 2], [int(draw.random() < 0.4) for _ in range(each)]) for key in range(prompts)]
    )


def feed(metric: AverageAtK, rows: list[dict[str, Any]]) -> None:
    metric.update(
        torch.tensor([row["outcome"] for row in rows]),
        [row["prompt"] for row in rows],
        [row["source"] for row in rows],
        torch.tensor([row["ended"] for row in rows]),
        torch.tensor([row["length"] for row in rows]),
    )


def judge(rows: list[dict[str, Any]], **settings: Any) -> AverageAtKReport:
    metric = AverageAtK(**settings)
    feed(metric, rows)
    report = metric.compute()
    assert isinstance(report, AverageAtKReport)
    return report


@pytest.mark.parametrize("right", range(1, 16))
def test_one_try_is_the_average_to_the_last_digit(right: int) -> None:
    """A table that says 6.2 of one and 6.3 of the other says two things of one number."""
    micro = judge(rows_of([("a", "x", [1] * right + [0] * (16 - right))])).micro
    assert micro.pass_at[1].share == micro.average.share == right / 16


def test_numbers_by_hand() -> None:
    report = judge(rows_of(HAND))
    easy, hard, everything = report.sources["easy"], report.sources["hard"], report.micro
    assert (easy.prompts, easy.responses, easy.min_responses, easy.max_responses) == (2, 8, 4, 4)
    assert (everything.prompts, everything.responses) == (3, 10)
    assert (everything.min_responses, everything.max_responses) == (2, 4)
    assert (easy.average.share, hard.average.share) == (0.25, 0.5)
    assert everything.average.share == pytest.approx(1 / 3)
    assert report.macro.average.share == pytest.approx(0.375)
    # prompt a: of the 6 pairs of its responses, one has no right one; c's only pair has one
    assert easy.pass_at[2].share == pytest.approx(5 / 12)
    assert hard.pass_at[2].share == pytest.approx(1)
    assert everything.pass_at[2].share == pytest.approx((5 / 6 + 0 + 1) / 3)
    assert report.macro.pass_at[2].share == pytest.approx((5 / 12 + 1) / 2)
    assert list(everything.pass_at) == [1, 2, 4]
    # c has no four responses: left out and counted
    assert (everything.pass_at[4].share, everything.pass_at[4].prompts) == (pytest.approx(0.5), 2)
    assert (hard.pass_at[4].prompts, everything.pass_at[2].prompts) == (0, 3)
    assert math.isnan(hard.pass_at[4].share) and math.isnan(report.macro.pass_at[4].share)
    # the first response of each prompt was cut off; lengths are 10, 20, 30, 40
    assert easy.cut_off == pytest.approx(2 / 8) and everything.cut_off == pytest.approx(3 / 10)
    assert easy.mean_length == 25 and hard.mean_length == 15 and everything.mean_length == 23
    assert report.macro.sources == 2


def test_pass_at_k_is_the_mean_over_all_choices() -> None:
    rows = many()
    report = judge(rows)
    groups = [rows[start : start + 5] for start in range(0, len(rows), 5)]
    assert list(report.micro.pass_at) == [1, 2, 4]
    for k, result in report.micro.pass_at.items():
        each = [[any(row["outcome"] for row in some) for some in itertools.combinations(group, k)] for group in groups]
        assert result.share == pytest.approx(sum(sum(some) / len(some) for some in each) / len(groups))
    assert report.micro.pass_at[1].share == pytest.approx(report.micro.average.share)


def test_intervals_cover_the_mean_and_vanish_without_spread() -> None:
    report = judge(many(40))
    for result in (report.micro.average, report.macro.average, *report.micro.pass_at.values()):
        assert result.interval.low < result.share < result.interval.high
    same = judge(rows_of([(f"p{key}", "s", [1, 0]) for key in range(5)]))
    assert same.micro.average.interval == (0.5, 0.5)
    # 40 prompts of 5 responses, right with 0.4: standard error of the mean 0.035, so the width is near 4 * 0.035
    assert report.micro.average.interval.high - report.micro.average.interval.low == pytest.approx(0.137, abs=0.05)


def test_one_source_is_all_there_is() -> None:
    rows = [{**row, "source": "only"} for row in many()]
    report = judge(rows)
    assert report.sources["only"] == report.micro
    assert report.macro.average == report.micro.average and report.macro.pass_at == report.micro.pass_at


def test_order_and_splits_change_nothing() -> None:
    rows = many()
    shuffled = rows[:]
    random.Random(3).shuffle(shuffled)
    first, second = AverageAtK(), AverageAtK()
    feed(first, shuffled[:13])
    feed(second, shuffled[13:])
    feed(second, [])  # a process with fewer prompts than others
    first.merge_state(second)
    assert report_to_json(first.compute()) == report_to_json(judge(rows))


def test_what_is_not_known_is_not_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    metric = AverageAtK()
    metric.update(torch.tensor([1, 0]), ["p", "p"], ["s", "s"])
    report = metric.compute()
    assert math.isnan(report.micro.cut_off) and math.isnan(report.micro.mean_length)
    assert report.micro.average.share == 0.5
    print_report(report)
    assert re.search(r"\n *s +50.0 .* 1 +2 +- +- *\n", capsys.readouterr().out)


def test_equal_keys_of_two_sources_are_two_prompts() -> None:
    report = judge(rows_of([("p", "s", [1]), ("p", "t", [0])]))
    assert report.micro.prompts == 2 and report.sources["s"].average.share == 1


def test_table_shows_both_means_and_who_was_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(judge(rows_of(HAND)))
    shown = capsys.readouterr().out
    for text in ("(micro)", "(macro)", "33.3 [", "37.5 [", "61.1", "k = 4", "1 at k = 4"):
        assert text in shown
    # prompts, responses to each, percent cut off, mean length
    for row in (r"easy .* 2 +4 +25\.0 +25 *\n", r"hard .* 1 +2 +50\.0 +15 *\n", r"micro.* 3 +2 to 4 +30\.0 +23 *\n"):
        assert re.search(row, shown)


def test_names_of_sources_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("math [hard]", "set [/INST]")
    print_report(judge(rows_of([("a", names[0], [1, 0]), ("b", names[1], [0, 1])])))
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)


def test_bad_input_is_named() -> None:
    metric = AverageAtK()
    with pytest.raises(ValueError, match="outcomes must be 0 or 1, found 2"):
        metric.update(torch.tensor([2]), ["p"], ["s"])
    with pytest.raises(ValueError, match="lengths: expected one for each of 1 responses, found 2"):
        metric.update(torch.tensor([1]), ["p"], ["s"], lengths=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="no responses"):
        metric.compute()
