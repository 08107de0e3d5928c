"""What a GPU does: peak memory, tokens per second, and the share of its own matmul speed, in real shapes.

    python benchmarks/gpu.py                                  # a GPU with 24 GB or more; no download
    python benchmarks/gpu.py --variants "tiny full" "tiny QLoRA" --longest 128 --sequences 4     # anywhere, to try it

Random weights, responses of up to 2,560 tokens with their prompts, steps of IPVRM through the data module, the module
and the trainer that everyone uses. Operations are counted as the training needs them, whatever is computed twice: per
token 2 for each weight in a forward pass, 2 more for the gradient of activations, and 2 more for that of weights where
they are trained; attention likewise; the output head at response positions alone. The ceiling is a product of large
matrices in bfloat16 (float32 on a CPU), measured in the same process. QLoRA's base is written to disk once, 16 GB.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

from measuring import Clock, Found, Peak, compare, memory_of, seconds_of, table

#: Case to shape, whether weights are in 4 bits with adapters, gradient checkpointing, and attention.
VARIANTS: dict[str, tuple[str, bool, bool, str]] = {
    "Qwen3-0.6B full": ("qwen3-0.6b", False, True, "sdpa"),
    "Qwen3-0.6B full, no checkpointing": ("qwen3-0.6b", False, False, "sdpa"),
    "Qwen3-0.6B full, plain attention": ("qwen3-0.6b", False, True, "eager"),
    "Qwen3-8B QLoRA": ("qwen3-8b", True, True, "sdpa"),
    "tiny full": ("qwen3-tiny", False, True, "sdpa"),
    "tiny QLoRA": ("qwen3-tiny", True, True, "sdpa"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longest", type=int, default=2560, help="tokens of prompt and response, at most")
    parser.add_argument("--sequences", type=int, default=16, help="in a step")
    parser.add_argument("--max-tokens", type=int, help="of one forward pass; default: two of the longest")
    parser.add_argument("--steps", type=int, default=3)
    compare(parser, "gpu", list(VARIANTS), measure, make_table, rounds=1)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds of each step but the first, peak memory, tokens and operations of a step, and the ceiling."""
    import torch
    from shapes import WordModel, write_pairs
    from trainers import bare_trainer

    from ipvrm_lightning.data import TrajectoryDataModule
    from ipvrm_lightning.modules import IPVRMModule
    from ipvrm_lightning.objectives import IPVRM

    on_gpu = torch.cuda.is_available()
    ceiling = matmul_ceiling("cuda" if on_gpu else "cpu")
    shape, quantized, checkpointing, attention = VARIANTS[arguments.variant]
    words = WordModel(shape, gradient_checkpointing=checkpointing, attn_implementation=attention)
    rows = write_pairs(
        folder / "pairs.jsonl", pairs=arguments.sequences // 2, longest=arguments.longest, vocabulary=words.words
    )
    factory: Any = quantized_model(words, folder / "base", checkpointing, attention) if quantized else words
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    peak, clock = Peak(), Clock()

    precision = "bf16-mixed" if on_gpu else "32-true"
    trainer = bare_trainer(clock, max_epochs=arguments.steps + 1, precision=precision)
    optimizer: Any = torch.optim.AdamW
    if quantized:
        from bitsandbytes.optim import PagedAdamW8bit as optimizer
    module = IPVRMModule(language_model=factory, objective=IPVRM(), optimizer=partial(optimizer, lr=1e-5))
    trainer.fit(
        module,
        datamodule=TrajectoryDataModule(
            train=str(folder / "pairs.jsonl"), validation_fraction=0.0, prompt_format="plain",
            batch_size=arguments.sequences, max_tokens=arguments.max_tokens or 2 * arguments.longest,
            max_length=arguments.longest,
        ),
    )  # fmt: skip
    tokens, operations = count(words.config, rows, quantized=quantized)
    return {
        "seconds": clock.seconds, "memory": peak.mebibytes, "tokens": tokens, "operations": operations,
        "ceiling": ceiling, "device": torch.cuda.get_device_name() if on_gpu else "CPU",
    }  # fmt: skip


def quantized_model(words: Any, folder: Path, checkpointing: bool, attention: str) -> Any:
    """The same weights in 4 bits with adapters: written down first, because only stored weights are quantised."""
    import torch
    from transformers import AutoModelForCausalLM

    from ipvrm_lightning.models import LoRA, PretrainedLanguageModel

    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(words._model_config(), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    words.build_tokenizer().save_pretrained(folder)
    return PretrainedLanguageModel(
        name=str(folder), dtype="bfloat16", quantization="nf4", lora=LoRA(), gradient_checkpointing=checkpointing,
        attn_implementation=attention,
        compute_dtype="bfloat16" if torch.cuda.is_available() else "float32",
    )  # fmt: skip


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
            f"{run['operations'] / seconds / 1e12:.3g}", f"{100 * share:.0f} %",
        ])  # fmt: skip
    run = next(iter(found.values()))[0]
    return [
        f"{run['device']}, matmul {run['ceiling'] / 1e12:.3g} TFLOP/s; {arguments.sequences} sequences of up to"
        f" {arguments.longest} tokens a step, {arguments.steps} steps.",
        "",
        *table(["", "peak GiB", "tokens/s", "TFLOP/s", "share of matmul"], rows),
    ]


if __name__ == "__main__":
    main()
