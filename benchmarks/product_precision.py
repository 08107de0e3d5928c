"""What it saves to hold frozen weights, and those of a policy that samples, in bfloat16 under autocast.

    python benchmarks/product_precision.py               # five minutes on one core of a CPU, 4 GB; no download
    python benchmarks/product_precision.py --layers 1 --rounds 1 --tokens 32 --new-tokens 4      # to try it

Some blocks of Qwen3-0.6B's shape with its vocabulary, random weights as they are published, products in bfloat16. Rows:
a pass with adapters, forward and backward; a frozen copy's pass; and tokens sampled from a model that is trained
whole. "Wide" is what runs did before, float32 that is cast in every pass; the two in turns, and the same numbers out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from measuring import RESULTS, keep, table
from shapes import WordModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256, help="of each of two sequences")
    parser.add_argument("--new-tokens", type=int, default=32, help="of each of eight responses")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default=str(RESULTS))
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    cases = {
        f"adapters, 2 x {arguments.tokens} tokens": training_pass(arguments, adapters=True),
        f"frozen copy, 2 x {arguments.tokens} tokens": training_pass(arguments, adapters=False),
        f"8 x {arguments.new_tokens} tokens sampled": sampling(arguments),
    }
    rows = []
    for name, (wide, short, mebibytes) in cases.items():
        seconds: dict[Any, list[float]] = {wide: [], short: []}
        results = {}
        for _ in range(arguments.rounds + 1):
            for run in (wide, short):
                started = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):  # as Lightning's bf16-mixed
                    results[run] = run()
                seconds[run].append(time.perf_counter() - started)
        assert results[wide] == results[short]
        medians = [statistics.median(seconds[run][1:]) for run in (wide, short)]
        ratios = sorted(s / w for w, s in zip(seconds[wide][1:], seconds[short][1:], strict=True))
        cells = [f"{medians[0]:.2f}", f"{medians[1]:.2f}", f"{medians[1] / medians[0]:.2f}"]
        rows.append([name, *cells, f"{ratios[0]:.2f} to {ratios[-1]:.2f}", *mebibytes])
    header = ["", "wide, s", "short, s", "ratio", "over rounds", "weights, MiB: wide", "short"]
    lines = [f"{arguments.layers} blocks, one thread; medians of {arguments.rounds} rounds.", "", *table(header, rows)]
    keep("product_precision", lines, arguments)


def build(arguments: argparse.Namespace, **options: Any) -> Any:
    """A model of the shape with fewer blocks."""
    return WordModel("qwen3-0.6b", {"num_hidden_layers": arguments.layers}, **options).build_model()


def size(model: Any) -> str:
    """Of its weights, MiB."""
    return f"{sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20:,.0f}"


def training_pass(
    arguments: argparse.Namespace, *, adapters: bool
) -> tuple[Callable[[], Any], Callable[[], Any], tuple[str, str]]:
    """Log-probabilities of responses, with the gradient of adapters where there are any; wide, short, and sizes."""
    import torch

    from ipvrm_lightning.models import LoRA
    from ipvrm_lightning.models.logprobs import response_scores
    from ipvrm_lightning.models.product_precision import shorten_frozen
    from ipvrm_lightning.types import TrajectoryBatch

    count = arguments.tokens
    ids = torch.randint(3, 151_936, (2, count), generator=torch.Generator().manual_seed(0))
    batch = TrajectoryBatch(ids, torch.tensor([count, count]), torch.tensor([8, 8]), torch.arange(2))

    def runner(short: bool) -> tuple[Callable[[], Any], str]:
        torch.manual_seed(0)
        model = build(arguments, lora=LoRA() if adapters else None)
        if not adapters:
            model.requires_grad_(False).eval()
        if short:
            shorten_frozen(model)

        def run() -> Any:
            model.zero_grad()
            found = response_scores(model, batch).log_probs
            if adapters:
                found.sum().backward()
            gradients = [p.grad.double().sum().item() for p in model.parameters() if p.grad is not None]
            return found.tolist(), gradients

        return run, size(model)

    (wide, large), (short, small) = runner(False), runner(True)
    return wide, short, (large, small)


def sampling(arguments: argparse.Namespace) -> tuple[Callable[[], Any], Callable[[], Any], tuple[str, str]]:
    """Tokens of responses; wide, short, and sizes, for which copies add to what is trained."""
    from ipvrm_lightning.rollouts import cache, sampler

    model = build(arguments)
    as_it_is = cache.multiplies_shorter, sampler.shortened

    def sample(short: bool) -> Any:
        wide = (lambda device: False), (lambda model: nullcontext())
        cache.multiplies_shorter, sampler.shortened = as_it_is if short else wide
        responses = sampler.sample_responses(
            model, [[3, 4, 5, 6]], num_return_sequences=8, max_new_tokens=arguments.new_tokens, eos_token_id=1,
            pad_token_id=0,
        )  # fmt: skip
        return [response.input_ids for response in responses[0]]

    import torch

    linear = sum(m.weight.numel() for m in model.modules() if type(m) is torch.nn.Linear) * 2
    both = f"{float(size(model).replace(',', '')) + linear / 2**20:,.0f} while it samples"
    return (lambda: sample(False)), (lambda: sample(True)), (size(model), both)


if __name__ == "__main__":
    main()
