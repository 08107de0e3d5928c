from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing

from ipvrm_lightning.metrics import AverageAtK, BestOfN, PrefixCalibration, PrefixTruth, StepF1, report_to_json

from .conftest import random_solutions

COUNT = 24


def _reports(rows: torch.Tensor) -> list[str]:
    """Reports of all metrics fed with these of the 24 made-up responses."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(COUNT, 6, generator=generator)
    # quarters: sums of histograms are then exact in any order
    truths = torch.randint(0, 5, (COUNT, 6), generator=generator) / 4
    outcomes = torch.arange(COUNT) % 2
    # the logits are 0 and so every probability 1/2 for the same reason
    level, truth, best = PrefixCalibration(), PrefixTruth(), BestOfN(sizes=(2, 4))
    policy, steps = AverageAtK(resamples=50), StepF1()
    if len(rows):
        level.update(torch.zeros(len(rows), 6), torch.ones(len(rows), 6, dtype=torch.bool), outcomes[rows])
        truth.update(values[rows], truths[rows], solution_ids=rows, group_ids=rows // 4)
        best.update({"final_value": values[rows, -1]}, outcomes[rows], rows // 4, [f"a{row % 3}" for row in rows])
        prompts, sources = [f"p{row // 4}" for row in rows.tolist()], [f"s{row // 12}" for row in rows.tolist()]
        policy.update(outcomes[rows], prompts, sources, finished=rows % 5 > 0, lengths=rows)
        solutions = random_solutions(COUNT)
        steps.update([solutions[row] for row in rows.tolist()])
    return [report_to_json(metric.compute()) for metric in (level, truth, best, policy, steps)]


def _judge_a_share(rank: int, folder: str, shares: list[list[int]]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for round_number, start in enumerate((shares[rank], [] if rank == 0 else list(range(COUNT)))):
        reports = _reports(torch.tensor(start, dtype=torch.long))
        Path(folder, f"{rank}-{round_number}.txt").write_text("".join(reports))
    torch.distributed.destroy_process_group()


def test_two_processes_report_what_one_does_even_if_one_saw_nothing(tmp_path: Path) -> None:
    shares = [list(range(1, COUNT, 3)), [row for row in range(COUNT) if row % 3 != 1]]
    torch.multiprocessing.spawn(_judge_a_share, (str(tmp_path), shares), nprocs=2)
    alone = "".join(_reports(torch.arange(COUNT)))
    for name in ("0-0", "0-1", "1-0", "1-1"):
        assert (tmp_path / f"{name}.txt").read_text() == alone
