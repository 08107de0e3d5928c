"""What log-probabilities of response tokens cost at the output head, against chunks under torch's checkpoint.

    python benchmarks/head.py                                            # a GPU
    python benchmarks/head.py --positions 64 --vocabulary 1000           # anywhere, to try it

Positions with random states, a random head of 151,936 tokens, products in bfloat16: milliseconds without gradient, and
with it, forward and backward, the last of four goes. "Checkpointed" is what one writes first without all logits in
memory: linear, widen, gather and logsumexp in chunks that are made again in backward.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from gpu import matmul_ceiling
from measuring import RESULTS, keep, table

#: Hidden size, and whether the head is trained.
HEADS = ((1024, True), (4096, False))
CHUNKS = (256, 1024, 4096)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--out", default=str(RESULTS))
    arguments = parser.parse_args()
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    ceiling = matmul_ceiling(device)
    rows = []
    for hidden, trained in HEADS:
        product = 2e3 * arguments.positions * hidden * arguments.vocabulary / ceiling
        for chunk in CHUNKS:
            cells = [
                "{:.1f} + {:.1f}".format(*milliseconds(log_probs, arguments, hidden, trained, chunk, device))
                for log_probs in (checkpointed, ours)
            ]
            floor = f"{product:.1f} + {product * (3 if trained else 2):.1f}"
            rows.append([f"{hidden:,}, {'trained' if trained else 'frozen'}", f"{chunk:,}", *cells, floor])
    lines = [
        f"{torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}; {arguments.positions:,} positions,"
        f" {arguments.vocabulary:,} tokens; milliseconds without gradient, and with it.",
        "",
        *table(["hidden size, head", "chunk", "checkpointed", "token_log_probs", "its products at the ceiling"], rows),
    ]
    keep("head", lines, arguments)


def milliseconds(
    log_probs: Callable[..., Any], arguments: argparse.Namespace, hidden: int, trained: bool, chunk: int, device: str
) -> tuple[float, float]:
    """Of the last of four goes: without gradient; forward and backward."""
    import torch

    from ipvrm_lightning.models.output_head import OutputHead

    states = torch.randn(arguments.positions, hidden, device=device, requires_grad=True)
    weight = torch.nn.Parameter(torch.randn(arguments.vocabulary, hidden, device=device) * 0.02, requires_grad=trained)
    targets = torch.randint(0, arguments.vocabulary, (arguments.positions,), device=device)
    head = OutputHead(weight, None, 1.0, None)
    for _ in range(4):
        began = now(device)
        with torch.autocast(device, torch.bfloat16):
            with torch.no_grad():
                log_probs(states, head, targets, chunk)
            between = now(device)
            values = log_probs(states, head, targets, chunk)
        values.sum().backward()
        ended = now(device)
        states.grad = weight.grad = None
    return 1e3 * (between - began), 1e3 * (ended - between)


def now(device: str) -> float:
    """Seconds, when the device has done what it was given."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def ours(states: Any, head: Any, targets: Any, chunk: int) -> Any:
    """The package's own, without `linear_cross_entropy`."""
    from ipvrm_lightning.models.output_head import token_log_probs

    return token_log_probs(states, head, targets, chunk_size=chunk, fused=False)


def checkpointed(states: Any, head: Any, targets: Any, chunk: int) -> Any:
    """Chunks of logits, made again in backward."""
    import torch
    from torch.utils.checkpoint import checkpoint

    def part(h: Any, y: Any) -> Any:
        logits = torch.nn.functional.linear(h.to(head.weight.dtype), head.weight).float()
        return logits.gather(-1, y[:, None])[:, 0] - logits.logsumexp(-1)

    chunks = zip(states.split(chunk), targets.split(chunk), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(part, h, y, use_reentrant=False) for h, y in chunks])
    return torch.cat([part(h, y) for h, y in chunks])


if __name__ == "__main__":
    main()
