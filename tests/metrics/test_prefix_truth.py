from __future__ import annotations

import math

import pytest
import torch

from ipvrm_lightning.metrics import PrefixTruth, PrefixTruthReport, report_to_json
from ipvrm_lightning.metrics.tables import print_report

NAN = float("nan")


def test_a_case_worked_by_hand() -> None:
    truths = torch.tensor([[0.25, NAN, 0.5, 0.75], [0.75, 0.5, 0.25, NAN]], dtype=torch.float64)
    said = torch.tensor([[0.25, 0.1, 0.5, 0.75], [0.25, 0.5, 0.75, 0.9]], dtype=torch.float64)
    metric = PrefixTruth()
    metric.update(said.logit(), truths, solution_ids=torch.tensor([4, 9]), group_ids=torch.tensor([3, 3]))
    report = metric.compute()
    # the first solution follows the truth, the second mirrors it: together they cancel
    assert report.prefixes == 6
    assert report.pearson == pytest.approx(0.0, abs=1e-12)
    assert report.spearman == pytest.approx(0.0, abs=1e-12)
    assert (report.within_solution, report.solutions) == (pytest.approx(0.0, abs=1e-12), 2)
    assert (report.within_problem, report.problems) == (pytest.approx(0.0, abs=1e-12), 1)
    # two of six are off by 1/2
    assert report.brier == pytest.approx(2 / 6 / 4)
    assert report.constant_brier == pytest.approx(4 / 6 / 16)


def test_the_truth_itself_is_perfect() -> None:
    truths = torch.rand(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    metric = PrefixTruth()
    metric.update(truths.logit(), truths, solution_ids=torch.arange(5))
    report = metric.compute()
    assert report.pearson == pytest.approx(1.0)
    assert report.spearman == pytest.approx(1.0)
    assert report.within_solution == pytest.approx(1.0)
    assert report.brier == pytest.approx(0.0, abs=1e-20)
    assert report.problems == 0 and math.isnan(report.within_problem)


def test_solutions_that_have_no_correlation_are_left_out() -> None:
    truths = torch.tensor([[0.2, 0.4, 0.9], [0.1, 0.9, NAN], [0.5, 0.5, 0.5], [0.3, 0.2, 0.1]], dtype=torch.float64)
    metric = PrefixTruth()
    # two prefixes always lie on a line, a constant on none
    said = torch.where(truths.isnan(), 0.5, truths)
    said[1], said[3] = said[1].flip(0), said[3].flip(0)
    metric.update(said.logit(), truths, solution_ids=torch.arange(4))
    report = metric.compute()
    assert report.solutions == 2
    assert report.within_solution == pytest.approx(0.0, abs=1e-12)  # the first follows the truth, the last mirrors it


def test_the_table_shows_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    report = PrefixTruthReport(77, 0.11111, 0.22222, 0.33333, 0.44444, 0.55555, 3, 0.66666, 2)
    print_report(report)
    rows = [line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines() if "0." in line]
    assert [(name.strip(), value) for name, value in rows] == [
        ("Pearson correlation", "0.1111"),
        ("Spearman correlation", "0.2222"),
        ("correlation within a solution (mean of 3)", "0.5555"),  # as Python rounds 0.55555
        ("correlation within a problem (mean of 2)", "0.6667"),
        ("Brier score", "0.3333"),
        ("best constant's Brier score (floor)", "0.4444"),
    ]


def judged(metric: PrefixTruth) -> str:
    report = metric.compute()
    assert isinstance(report, PrefixTruthReport)
    return report_to_json(report)


def test_order_and_splits_change_nothing_at_all() -> None:
    generator = torch.Generator().manual_seed(1)
    truths = torch.rand(30, 9, generator=generator)
    truths[torch.rand(30, 9, generator=generator) < 0.4] = NAN
    values = torch.randn(30, 9, generator=generator)
    ids = torch.arange(30)
    whole = PrefixTruth()
    whole.update(values, truths, solution_ids=ids, group_ids=ids // 3)
    shuffled = torch.randperm(30, generator=generator)
    first, second = PrefixTruth(), PrefixTruth()
    for metric, rows in ((first, shuffled[:11]), (second, shuffled[11:])):
        metric.update(values[rows], truths[rows], solution_ids=ids[rows], group_ids=ids[rows] // 3)
    first.merge_state(second)
    assert judged(first) == judged(whole)


def test_bad_input_is_named() -> None:
    metric = PrefixTruth()
    with pytest.raises(ValueError, match=r"expected probabilities, found 1\.5"):
        metric.update(torch.zeros(1, 2), torch.tensor([[0.5, 1.5]]))
    for shape in ((1, 2), (1,)):
        with pytest.raises(ValueError, match=r"expected values and true_values \[B, T\], found"):
            metric.update(torch.zeros(shape), torch.full((1,), 0.5))
    with pytest.raises(ValueError, match="expected finite numbers, found inf"):
        metric.update(torch.tensor([[float("inf")]]), torch.tensor([[0.5]]))
    with pytest.raises(ValueError, match="no prefix with a known true value"):
        metric.compute()
