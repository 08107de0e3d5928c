from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ipvrm_lightning.functional import auroc, brier_score, expected_calibration_error
from ipvrm_lightning.metrics import PrefixCalibration, report_to_json
from ipvrm_lightning.metrics.tables import print_report


def responses(count: int, longest: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    outcomes = (torch.rand(count, generator=generator) < 0.5).double()
    lengths = torch.randint(1, longest + 1, (count,), generator=generator)
    mask = torch.arange(longest) < lengths[:, None]
    values = torch.randn(count, longest, generator=generator, dtype=torch.float64) + outcomes[:, None]
    return values, mask, outcomes


def test_overall_and_final_numbers_are_those_of_the_functions() -> None:
    values, mask, outcomes = responses(50, 17)
    metric = PrefixCalibration()
    metric.update(values, mask, outcomes)
    report = metric.compute()
    probability, outcome = values.sigmoid()[mask], outcomes[:, None].expand(mask.shape)[mask]
    assert report.overall.tokens == int(mask.sum())
    assert report.overall.ece == pytest.approx(expected_calibration_error(probability, outcome))
    assert report.overall.brier == pytest.approx(brier_score(probability, outcome))
    final = values[torch.arange(50), mask.sum(1) - 1]
    assert report.final_auroc == report.overall.auroc == report.positions[-1].auroc == auroc(final, outcomes)
    assert report.final_brier == pytest.approx(brier_score(final.sigmoid(), outcomes))
    assert report.final_ece == pytest.approx(expected_calibration_error(final.sigmoid(), outcomes))
    assert (report.responses, report.right) == (50, int(outcomes.sum()))
    assert (report.overall.start, report.overall.stop) == (0, 1)


def test_float32_values_are_judged_in_float64() -> None:
    values, mask, outcomes = responses(50, 17)
    reports = []
    for given in (values.float(), values.float().double()):
        metric = PrefixCalibration(bins=1)
        metric.update(given, mask, outcomes.to(given.dtype))
        reports.append(report_to_json(metric.compute()))
    assert reports[0] == reports[1]


def test_certain_values_lie_in_the_first_and_the_last_bin() -> None:
    metric = PrefixCalibration(positions=2, bins=3)
    metric.update(torch.tensor([[100.0, -800.0]]), torch.ones(1, 2, dtype=torch.bool), torch.ones(1))
    assert [[cell.tokens for cell in part.bins] for part in metric.compute().positions] == [[0, 0, 1], [1, 0, 0]]


def test_stretches_by_hand() -> None:
    # four tokens in two stretches: the first two say 1/2, the last two say sigmoid(2)
    values = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, -2.0, -2.0]])
    metric = PrefixCalibration(positions=2)
    metric.update(values, torch.ones(2, 4, dtype=torch.bool), torch.tensor([1.0, 0.0]))
    first, second = metric.compute().positions
    p = torch.tensor(2.0, dtype=torch.float64).sigmoid().item()
    assert (first.tokens, first.brier, first.ece, first.auroc) == (4, 0.25, pytest.approx(0.0), 0.5)
    assert (second.tokens, second.auroc) == (4, 1.0)
    assert second.brier == pytest.approx((1 - p) ** 2)
    assert second.ece == pytest.approx(1 - p)
    assert [cell.tokens for cell in second.bins] == [0, 2, 0, 0, 0, 0, 0, 0, 2, 0]


def test_padding_and_splits_change_nothing() -> None:
    values, mask, outcomes = responses(40, 11)
    whole = PrefixCalibration()
    whole.update(values, mask, outcomes)
    padded_values = torch.nn.functional.pad(values[:15], (0, 6), value=float("nan"))
    padded_mask = torch.nn.functional.pad(mask[:15], (0, 6))
    first, second = PrefixCalibration(), PrefixCalibration()
    first.update(padded_values, padded_mask, outcomes[:15])
    second.update(values[15:], mask[15:], outcomes[15:])
    first.merge_state(second)
    one, other = first.compute(), whole.compute()
    assert one.final_auroc == other.final_auroc
    assert one.overall.tokens == other.overall.tokens
    for mine, theirs in zip(one.positions, other.positions, strict=True):
        assert (mine.tokens, mine.auroc) == (theirs.tokens, theirs.auroc)
        assert (mine.ece, mine.brier) == pytest.approx((theirs.ece, theirs.brier), abs=1e-12)


def test_a_value_that_tells_the_probability_is_calibrated() -> None:
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(20000, 1, generator=generator, dtype=torch.float64)
    outcomes = (torch.rand(20000, generator=generator, dtype=torch.float64) < probability[:, 0]).double()
    metric = PrefixCalibration(positions=1)
    metric.update(probability.logit(), torch.ones(20000, 1, dtype=torch.bool), outcomes)
    report = metric.compute()
    # the Brier score of p itself is the mean of p(1 - p) over the unit interval, 1/6; AUROC is 5/6
    assert report.overall.ece < 0.02
    assert report.overall.brier == pytest.approx(1 / 6, abs=0.005)
    assert report.final_auroc == pytest.approx(5 / 6, abs=0.01)


def test_tables_show_the_final_value_and_every_bin(capsys: pytest.CaptureFixture[str]) -> None:
    metric = PrefixCalibration(positions=1, bins=2)
    values = torch.tensor([[0.7, 0.2], [0.3, 0.9]]).logit()
    metric.update(values, torch.ones(2, 2, dtype=torch.bool), torch.tensor([1.0, 0.0]))
    print_report(metric.compute())
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    # the first response ends with 0.2 and is right, the second with 0.9 and is wrong
    assert ["final", "value", "2", "0.85", "0.725", "0.0"] in rows
    # two prefixes say 0.2 and 0.3, one of them right; two say 0.7 and 0.9, one of them right
    assert ["all", "prefixes", "4", "0.275", "0.4075", "-"] in rows
    assert ["0", "to", "50", "%", "2", "25.0", "50.0"] in rows and ["50", "to", "100", "%", "2", "80.0", "50.0"] in rows


def test_bad_input_is_named() -> None:
    metric = PrefixCalibration()
    one = torch.ones(1)
    with pytest.raises(ValueError, match="row 0 has no response token"):
        metric.update(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool), one)
    with pytest.raises(ValueError, match="one run of tokens from the left"):
        metric.update(torch.zeros(2, 2), torch.tensor([[True, True], [False, True]]), torch.ones(2))
    with pytest.raises(ValueError, match="found nan"):
        metric.update(torch.tensor([[0.0, float("nan")]]), torch.tensor([[True, True]]), one)
    for values, mask, count in ((1, 1, 1), ((1, 2), (1, 3), 1), ((1, 2), (1, 2), 2)):
        with pytest.raises(ValueError, match=r"expected values and mask \[B, T\] and outcomes \[B\], found"):
            metric.update(torch.zeros(values), torch.ones(mask, dtype=torch.bool), torch.ones(count))
    for settings in ({"positions": 0}, {"bins": 0}):
        with pytest.raises(ValueError, match="expected at least one position and one bin, found"):
            PrefixCalibration(**settings)
    with pytest.raises(ValueError, match=r"found 0\.5"):
        metric.update(torch.zeros(1, 1), torch.tensor([[True]]), one / 2)
    with pytest.raises(ValueError, match="no responses"):
        metric.compute()
