"""What a GPU does: peak memory, tokens per second, and the share of its own matmul speed, in real shapes.

    python benchmarks/gpu.py                                                 # a GPU with 50 GB or more; no download
    python benchmarks/gpu.py --variants "Qwen3-0.6B full" "Qwen3-8B QLoRA"   # one with 24 GB
    python benchmarks/gpu.py --variants "tiny full" "tiny QLoRA" --longest 128 --sequences 4     # anywhere, to try it

Random weights, prompts and responses of up to 2,560 tokens together, steps of IPVRM through the data module, the module
and the trainer that everyone uses; the reference is computed in the step. Operations are counted as the training needs
them, whatever is computed twice: per token 2 for each weight in a forward pass, 2 more for the gradient of activations,
and 2 more for that of weights where they are trained; attention likewise; the output head at response positions alone.
The ceiling is a product of large matrices in bfloat16 (float32 on a CPU), measured in the same process. Cases that are
meant for a card of 24 GB get no more memory than such a card has.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from measuring import Clock, Found, Peak, compare, memory_of, seconds_of, table


class Variant(NamedTuple):
    """What is trained, and how.

    Args:
        shape: a key of `shapes.SHAPES`.
        quantized: adapters on weights in 4 bits, else all weights in float32 with products in bfloat16.
        checkpointing: recompute activations in backward.
        attention: implementation that transformers is asked for; `varlen` packs sequences without padding.
        compiled: decoder blocks and what is done to logits are compiled.
        chunk_size: response tokens whose logits exist at one time.
        max_tokens: of one forward pass, as a multiple of the longest sequence.
        gibibytes: of GPU memory that may be used, None for all there is.
    """

    shape: str
    quantized: bool = False
    checkpointing: bool = True
    attention: str = "sdpa"
    compiled: bool = False
    chunk_size: int = 256
    max_tokens: int = 4
    gibibytes: float | None = None


#: A card of 24 GB has 23.99 GiB, of which CUDA takes about one.
CARD = 23.0
SMALL, LARGE = Variant("qwen3-0.6b"), Variant("qwen3-8b", quantized=True, max_tokens=2, gibibytes=CARD)
FAST = {"attention": "varlen", "compiled": True, "chunk_size": 1024}
VARIANTS = {
    "Qwen3-0.6B full": SMALL._replace(gibibytes=CARD),
    "Qwen3-0.6B full, fast": SMALL._replace(**FAST, gibibytes=CARD),
    "Qwen3-0.6B full, no checkpointing": SMALL._replace(checkpointing=False),
    "Qwen3-0.6B full, no checkpointing, compiled": SMALL._replace(checkpointing=False, compiled=True),
    "Qwen3-0.6B full, no checkpointing, fast": SMALL._replace(checkpointing=False, max_tokens=16, **FAST),
    "Qwen3-0.6B full, plain attention": SMALL._replace(attention="eager"),
    "Qwen3-0.6B full, one sequence a pass": SMALL._replace(max_tokens=1),
    "Qwen3-0.6B full, chunks of 1,024": SMALL._replace(chunk_size=1024),
    "Qwen3-8B QLoRA": LARGE,
    "Qwen3-8B QLoRA, fast": LARGE._replace(max_tokens=4, **FAST),
    "Qwen3-8B QLoRA, fast, one pass": LARGE._replace(max_tokens=16, **FAST),
    "Qwen3-8B QLoRA, no checkpointing, fast": LARGE._replace(checkpointing=False, gibibytes=None, **FAST),
    "tiny full": Variant("qwen3-tiny"),
    "tiny full, fast": Variant("qwen3-tiny", **FAST),
    "tiny QLoRA": Variant("qwen3-tiny", quantized=True),
    "tiny QLoRA, fast": Variant("qwen3-tiny", quantized=True, **FAST),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longest", type=int, default=2560, help="tokens of prompt and response, at most")
    parser.add_argument("--sequences", type=int, default=16, help="in a step")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="one step more: its kernels, and their seconds")
    compare(parser, "gpu", list(VARIANTS), measure, make_table, rounds=1)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds of each step but the first, peak memory, tokens and operations of a step, and the ceiling."""
    import torch
    from shapes import QuantizedWordModel, WordModel, write_pairs
    from trainers import bare_trainer

    from ipvrm_lightning.data import TrajectoryDataModule
    from ipvrm_lightning.modules import IPVRMModule
    from ipvrm_lightning.objectives import IPVRM

    on_gpu = torch.cuda.is_available()
    ceiling = matmul_ceiling("cuda" if on_gpu else "cpu")
    variant = VARIANTS[arguments.variant]
    options = {"attn_implementation": variant.attention, "compile": variant.compiled}
    model = QuantizedWordModel if variant.quantized else WordModel
    words = model(variant.shape, gradient_checkpointing=variant.checkpointing, **options)
    rows = write_pairs(
        folder / "pairs.jsonl", pairs=arguments.sequences // 2, longest=arguments.longest, vocabulary=words.words
    )
    if on_gpu and variant.gibibytes is not None:
        share = variant.gibibytes * 2**30 / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(share)
    peak, clock, noise = Peak(), Clock(), start()

    precision = "bf16-mixed" if on_gpu else "32-true"
    profile = profile_of(arguments.steps + 1)
    trainer = bare_trainer(
        clock, max_epochs=arguments.steps + 1 + arguments.profile, precision=precision, callbacks=[noise, profile]
    )
    optimizer: Any = partial(torch.optim.AdamW, lr=1e-5, fused=True)
    if variant.quantized:
        from bitsandbytes.optim import PagedAdamW8bit

        optimizer = partial(PagedAdamW8bit, lr=1e-5)
    module = IPVRMModule(language_model=words, objective=IPVRM(), optimizer=optimizer, chunk_size=variant.chunk_size)
    data = TrajectoryDataModule(
        train=str(folder / "pairs.jsonl"), validation_fraction=0.0, prompt_format="plain",
        batch_size=arguments.sequences, max_tokens=variant.max_tokens * arguments.longest, max_length=arguments.longest,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    tokens, operations = count(words.config, rows, quantized=variant.quantized)
    return {
        "seconds": clock.seconds[: arguments.steps], "memory": peak.mebibytes, "tokens": tokens,
        "operations": operations, **profile.found,
        "padding": padding(data), "noise": noise.noise, "ceiling": ceiling,
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
    }  # fmt: skip


def start() -> Any:
    """A callback that takes the values before the first step, which are 0 but for rounding."""
    import torch
    from lightning.pytorch import Callback

    class Start(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()  # weights were made in more bits than they are kept
            (window, *_) = trainer.train_dataloader
            batch = pl_module.transfer_batch_to_device(window.micro_batches[0], pl_module.device, 0)
            with trainer.precision_plugin.forward_context():
                scores, mask = pl_module.token_scores(batch)
            values = pl_module.objective.prefix_logits(scores.detach(), mask)[mask]
            self.noise = float(values.square().mean().sqrt())

    return Start()


def profile_of(number: int) -> Any:
    """A callback that counts the kernels of a step, and the seconds they take; nothing where there is no such step."""
    import torch
    from lightning.pytorch import Callback
    from torch.profiler import ProfilerActivity, profile

    class Profile(Callback):
        def __init__(self) -> None:
            self.found: dict[str, Any] = {}

        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.current_epoch == number:
                on_gpu = torch.cuda.is_available()
                self.profile = profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU])
                self.profile.start()

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.current_epoch == number:
                self.profile.stop()
                seconds: Counter[str] = Counter()
                kernels = 0
                # as they come: torch's own summary takes minutes for a hundred thousand kernels
                for event in self.profile.profiler.kineto_results.events():
                    if event.device_type() == torch.autograd.DeviceType.CUDA:
                        seconds[event.name()[:100]] += event.duration_ns() / 1e9
                        kernels += 1
                busiest = [[name, round(spent, 4)] for name, spent in seconds.most_common(20)]
                self.found = {"kernels": kernels, "kernel_seconds": seconds.total(), "busiest": busiest}

    return Profile()


def padding(data: Any) -> float:
    """Share of the positions of a step that hold no token."""
    (window, *_) = data.train_dataloader()
    positions = sum(batch.input_ids.numel() for batch in window.micro_batches)
    return 1 - sum(int(batch.lengths.sum()) for batch in window.micro_batches) / positions


def count(config: Any, rows: list[dict[str, str]], *, quantized: bool) -> tuple[int, float]:
    """Tokens of a step, and operations that its training and its reference need."""
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    heads = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    block = width * (2 * heads + 2 * keys) + 3 * width * config["intermediate_size"]
    # forward and backward of the model in training, forward of its reference
    passes = 2 + 2 + (0 if quantized else 2) + 2
    tokens, operations = 0, 0.0
    for row in rows:
        for side in ("chosen", "rejected"):
            response = len(row[side].split()) + 1
            length = len(row["prompt"].split()) + response
            tokens += length
            operations += passes * layers * block * length
            operations += passes * width * config["vocab_size"] * response
            # scores and weighted sums over all earlier positions; attention has no weights
            operations += (2 + 4 + 2) * layers * heads * length**2
    return tokens, operations


def matmul_ceiling(device: str) -> float:
    """Operations per second of a product of large matrices."""
    import torch

    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(12):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return float(2 * size**3 / sorted(times)[len(times) // 2])


def make_table(found: Found, arguments: argparse.Namespace) -> list[str]:
    """Peak memory, tokens per second, share of the ceiling."""
    rows = []
    for name, runs in found.items():
        seconds, run = seconds_of(found, name), runs[0]
        share = run["operations"] / seconds / run["ceiling"]
        rows.append([
            name, f"{memory_of(found, name) / 1024:.2f}", f"{run['tokens'] / seconds:,.0f}",
            f"{run['operations'] / seconds / 1e12:.3g}", f"{100 * share:.0f} %", f"{100 * run['padding']:.0f} %",
            f"{run['noise']:.2g}",
        ])  # fmt: skip
    run = next(iter(found.values()))[0]
    profiles = [
        f"{name}: {runs[0]['kernels']:,} kernels a step, {runs[0]['kernel_seconds']:.2f} s of them."
        for name, runs in found.items()
        if "kernels" in runs[0]
    ]
    return [
        f"{run['device']}, matmul {run['ceiling'] / 1e12:.3g} TFLOP/s; {arguments.sequences} sequences of up to"
        f" {arguments.longest} tokens a step, {arguments.steps} steps.",
        "",
        *table(["", "peak GiB", "tokens/s", "TFLOP/s", "share of matmul", "padding", "values at the start"], rows),
        *(["", *profiles] if profiles else []),
    ]


if __name__ == "__main__":
    main()
