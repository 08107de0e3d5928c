# %% [markdown]
# # 5. One GPU: QLoRA on Qwen3, and FSDP on many
#
# **LoRA** freezes the weights and trains small adapters beside them. **QLoRA** keeps the frozen weights in 4 bits as
# well. The reference is then the same 4-bit weights with the adapters off, so there is no second model in memory.
#
# This tutorial has three parts:
#
# 1. a rehearsal of the whole run on this machine, at tiny size, by the very commands of the GPU run;
# 2. the memory of Qwen3 models from 0.6B to 32B, and what fits 8, 16 and 24 GB;
# 3. many GPUs: the commands, and what each of them holds.
#
#     python tutorials/5_one_gpu.py
#
# **The memory tables are computed**, from parameter counts and the formulas below, which are checked against the tiny
# model of part 1. Four points were measured on a GPU (`benchmarks/results/gpu.md`). They lie 7 to 11 % below what the
# formulas gave for the code of then. For Qwen3-8B that is 3.5 GiB more than now: its embedding and head were in float32
# (2.3 GiB), and the head was copied to bfloat16 for each chunk (1.2 GiB).
#
# | | tokens a pass | `chunk_size` | GiB, measured then | computed then |
# | --- | --- | --- | --- | --- |
# | Qwen3-8B with QLoRA | 5,120 | 256 | 13.1 | 14.7 |
# | Qwen3-0.6B, all weights, a frozen copy | 10,240 | 256 | 13.7 | 15.4 |
# | Qwen3-8B with QLoRA | 5,120 | 1,024 | 14.2 | 16.0 |
# | Qwen3-0.6B, all weights, a frozen copy | 10,240 | 1,024 | 15.5 | 16.7 |
#
# The tables below use the `chunk_size` of 1,024 that `configs/ipvrm_qwen.yaml` has. To measure on your GPU:
#
#     python benchmarks/gpu.py --variants 'Qwen3-0.6B full' 'Qwen3-8B QLoRA'

# %%
import csv
import json
import os
import random
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ipvrm_lightning.cli import main
from ipvrm_lightning.data.steps import join_steps
from ipvrm_lightning.models import LoRA, PretrainedLanguageModel, RandomLanguageModel
from ipvrm_lightning.worlds.arithmetic.checker import check
from ipvrm_lightning.worlds.arithmetic.formats import FORMATS, render_solution, split_steps
from ipvrm_lightning.worlds.arithmetic.problems import Difficulty, Noise, generate, solve

OUT = Path("outputs/tutorials/5_one_gpu")
OUT.mkdir(parents=True, exist_ok=True)
CONFIGS = Path(__file__).absolute().parent.parent / "configs"

# %% [markdown]
# ## Part 1: a rehearsal
#
# A run on a rented GPU should not fail after an hour because of a column name. So first run it small, on the CPU,
# with *your* data. Here a random model of the Qwen3 architecture and made-up rollouts take their place. The rehearsal
# shows that every part runs. The numbers it prints mean nothing, since the model knows nothing.
#
# The model: a folder with weights in bfloat16, a tokenizer of single bytes, and a chat template, all of Qwen's kind.

# %%
TINY = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 320,
    "tie_word_embeddings": True,
}
byte_level = Tokenizer(
    models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
)
byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
byte_level.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level, eos_token="<|im_end|>", pad_token="<|endoftext|>")
tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
tokenizer.chat_template = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
base = OUT / "tiny-qwen3"
tokenizer.save_pretrained(base)
RandomLanguageModel(config={"model_type": "qwen3", **TINY}, dtype="bfloat16").build_model().save_pretrained(base)

# %% [markdown]
# The data: worked solutions of small arithmetic problems, some with a wrong line. A program checks them. Two files,
# as in tutorial 2: rollouts with outcomes, and solutions with their first wrong step.

# %%
draw = random.Random(0)
noise = Noise({"add": 0.15, "gap": 0.15}, copy=0.0, answer=0.0)
problems = generate(Difficulty(min_steps=2, max_steps=3, weights=(("add", 1.0), ("gap", 1.0))), "tutorial 5")
rollouts, solutions = [], []
for number, problem in enumerate(islice(problems, 64)):
    prompt = FORMATS[0].render_prompt(problem).strip()
    answers = [render_solution(solve(problem, noise, draw), FORMATS[0]) for _ in range(3)]
    verdicts = [check(problem, answer, FORMATS[0]) for answer in answers]
    if number < 32:
        texts = [join_steps(split_steps(answer))[0] for answer in answers]  # "Step 1: ...", as in ProcessBench
        rollouts.append({"prompt": prompt, "responses": texts, "scores": [int(v.correct) for v in verdicts]})
    else:
        row = {"id": f"tiny-{number}", "problem": prompt, "steps": split_steps(answers[0])}
        solutions.append({**row, "label": verdicts[0].first_error, "final_answer_correct": verdicts[0].correct})
for name, rows in (("rollouts", rollouts), ("solutions", solutions)):
    (OUT / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

# %% [markdown]
# The commands. Two configs stack: the experiment, and `configs/strategy/qlora.yaml`, which replaces only what QLoRA
# changes (4-bit weights, adapters, an 8-bit paged optimiser, a learning rate for adapters). What follows them is
# yours.

# %%
EXPERIMENT = ["--config", "configs/ipvrm_qwen.yaml", "--config", "configs/strategy/qlora.yaml"]


def on_a_gpu(model, data):
    """What a run on a GPU adds to the configs."""
    return ["--model.language_model.init_args.name", model, "--data.train", data]


def rehearsed(arguments):
    """The same on a CPU: float32 in place of bfloat16, smaller steps, everything below this tutorial's folder."""
    small = {
        "--trainer.accelerator": "cpu",
        "--trainer.precision": "32-true",
        "--model.language_model.init_args.compute_dtype": "float32",
        "--trainer.default_root_dir": str(OUT / "runs"),
        "--model.reference.init_args.cache_dir": str(OUT / "reference_cache"),
        "--trainer.enable_progress_bar": "false",
        "--trainer.enable_model_summary": "false",
    }
    absolute = [str(CONFIGS.parent / word) if word.startswith("configs/") else word for word in arguments]
    return [*absolute, *(word for pair in small.items() for word in pair)]


def show(command, arguments):
    """A command as it is typed."""
    print(f"ipvrm {command} {' '.join(arguments)}\n")


print("On a GPU:\n")
show("fit", [*EXPERIMENT, *on_a_gpu("Qwen/Qwen3-8B-Base", "rollouts.jsonl")])
show("test", [*EXPERIMENT, "--model.language_model.init_args.name Qwen/Qwen3-8B-Base",
              "--config configs/data/processbench.yaml --ckpt_path last"])  # fmt: skip
show("export", ["outputs/ipvrm_qwen --out my-reward-model --results outputs/ipvrm_qwen/RUN/results.json"])

# %% [markdown]
# Now the rehearsal. Before the first step one pass over all data computes the reference log-probabilities and keeps
# them on disk (`CachedReference`), so that no step pays for them.

# %%
command = [*EXPERIMENT, *on_a_gpu(str(base), str(OUT / "rollouts.jsonl"))]
main(["fit", *rehearsed(command), "--data.batch_size", "16", "--data.validation_fraction", "0.2",
      "--trainer.max_epochs", "1", "--resume", "never"])  # fmt: skip
run = max((OUT / "runs").glob("*-fit"), key=os.path.getmtime)
(checkpoint,) = (run / "checkpoints").glob("last*.ckpt")
with (run / "metrics.csv").open() as file:
    losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]
print(f"{run}: {len(losses)} steps, first loss {losses[0]:.4f}")
print(f"the checkpoint holds the adapters alone: {checkpoint.stat().st_size / 2**20:.2f} MiB")
assert abs(losses[0] - 5.0067) < 1e-2  # softplus(margin): before the first update the model is its own reference

# %% [markdown]
# Judge it on the solutions. `configs/data/processbench.yaml` reads ProcessBench from the hub; here it is given a
# file. Then export: an ordinary Hugging Face folder with the adapter, a model card, and `ipvrm_config.json`. That file
# says how its log-probabilities read as values. By `--results` it also has the thresholds of the test run, without
# which no step is called wrong. (An adapter on 4-bit weights cannot be merged into them without loss; it is exported
# alone.)

# %%
evaluation = [
    *EXPERIMENT,
    "--config",
    "configs/data/processbench.yaml",
    "--model.language_model.init_args.name",
    str(base),
]
main(["test", *rehearsed(evaluation), "--data.path", str(OUT / "solutions.jsonl"), "--data.subsets", "null",
      "--ckpt_path", str(checkpoint)])  # fmt: skip
judged = max((OUT / "runs").glob("*-test"), key=os.path.getmtime)
main(["export", str(checkpoint), "--out", str(OUT / "my-reward-model"), "--results", str(judged), "--overwrite"])
print(sorted(path.name for path in (OUT / "my-reward-model").iterdir()))

# %% [markdown]
# ## Part 2: how much memory
#
# ### Parameters
#
# A Qwen3 model with hidden size H, h query heads and k key-value heads of d numbers each, feed-forward size I, L
# layers and V tokens in its vocabulary has
#
# - matrices of a layer: `2*H*h*d` (queries, output) `+ 2*H*k*d` (keys, values) `+ 3*H*I` (feed-forward);
# - embedding `V*H`, and an output head of the same size unless the two are tied;
# - norms: `2*H + 2*d` a layer, and `H` at the end.
#
# A LoRA adapter of rank r on a matrix from a to b numbers has `r*(a+b)` parameters.

# %%
QWEN3 = {  # H, L, h, k, d, I, tied
    "Qwen3-0.6B": (1024, 28, 16, 8, 128, 3072, True),
    "Qwen3-1.7B": (2048, 28, 16, 8, 128, 6144, True),
    "Qwen3-4B": (2560, 36, 32, 8, 128, 9728, True),
    "Qwen3-8B": (4096, 36, 32, 8, 128, 12288, False),
    "Qwen3-14B": (5120, 40, 40, 8, 128, 17408, False),
    "Qwen3-32B": (5120, 64, 64, 8, 128, 25600, False),
}
V, RANK = 151_936, 16


def count(hidden, layers, heads, keys, size, feed_forward, tied, *, vocabulary=V, rank=RANK):
    """Parameters: matrices of all layers, embedding and head, norms, adapters."""
    q, k = heads * size, keys * size
    return {
        "matrices": layers * (2 * hidden * q + 2 * hidden * k + 3 * hidden * feed_forward),
        "embedding": vocabulary * hidden * (1 if tied else 2),
        "norms": layers * (2 * hidden + 2 * size) + hidden,
        "adapters": layers * rank * (2 * (hidden + q) + 2 * (hidden + k) + 3 * (hidden + feed_forward)),
    }


# %% [markdown]
# Check the formula against the model that was just trained. In 4 bits (nf4, double quantisation) a parameter takes
# half a byte, plus one byte of scale for each 64, plus four bytes for each 256 of these scales: 0.516 bytes.
# Embedding and head stay in bfloat16, as they were published. Norms and adapters are float32.

# %%
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
order = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
order += ("intermediate_size", "tie_word_embeddings")
expected = count(*(TINY[name] for name in order), vocabulary=TINY["vocab_size"])
tiny = PretrainedLanguageModel(
    name=str(base), lora=LoRA(r=RANK), quantization="nf4", compute_dtype="float32"
).build_model()
sizes = {"matrices": 0, "adapters": 0, "rest": 0}
for name, parameter in tiny.named_parameters():
    kind = "adapters" if "lora_" in name else "matrices" if type(parameter).__name__ == "Params4bit" else "rest"
    sizes[kind] += parameter.numel() * parameter.element_size()
assert sizes["matrices"] == expected["matrices"] / 2  # two parameters a byte, the scales apart
assert sizes["adapters"] == 4 * expected["adapters"]
assert sizes["rest"] == 2 * expected["embedding"] + 4 * expected["norms"]
print(f"the formula gives the bytes of the tiny model: {sizes}")

# %% [markdown]
# ### QLoRA on one GPU
#
# | part | bytes |
# | --- | --- |
# | matrices, 4 bits | 0.516 each |
# | embedding and head, bfloat16 | 2 each |
# | norms, float32 | 4 each |
# | adapters: weight, gradient, two states of the 8-bit optimiser | 4 + 4 + 2 each |
# | kept for backward, with gradient checkpointing: the input of every layer | `L * tokens * H * 4` |
# | one layer while it is computed again | about `tokens * 4 * (6*H + 4*(h+2*k)*d + 4*I)` |
# | logits of one chunk, with softmax and gradient (`chunk_size` 1,024) | `1024 * V * 4 * 3` |
#
# `tokens` is what one forward pass holds: `data.max_tokens`. The longest response (2,560 tokens here) must fit in it.
# Not in the table: what CUDA itself takes (about 0.5 GiB) and what the allocator cannot use. Leave 1.5 GiB free.

# %%
GIB, CHUNK = 2**30, 1024


def activations(shape, tokens):
    """Bytes that depend on the tokens of a forward pass, and what a chunk of logits takes."""
    hidden, layers, heads, keys, size, feed_forward, _ = shape
    kept = layers * tokens * hidden * 4
    layer = tokens * 4 * (6 * hidden + 4 * (heads + 2 * keys) * size + 4 * feed_forward)
    return kept + layer + CHUNK * V * 4 * 3


def qlora(shape, tokens):
    """Bytes of a QLoRA run."""
    of = count(*shape)
    weights = NF4 * of["matrices"] + 2 * of["embedding"] + 4 * of["norms"]
    return weights + 10 * of["adapters"] + activations(shape, tokens)


TOKENS = (2560, 5120, 10240)
needs = {name: {tokens: qlora(shape, tokens) / GIB for tokens in TOKENS} for name, shape in QWEN3.items()}
print("QLoRA, GiB, computed; by tokens of one forward pass (data.max_tokens)\n")
print(f"{'':<12}{'parameters':>12}{'adapters':>12}" + "".join(f"{tokens:>9}" for tokens in TOKENS))
for name, shape in QWEN3.items():
    of = count(*shape)
    whole = sum(of.values()) - of["adapters"]
    cells = "".join(f"{needs[name][tokens]:9.1f}" for tokens in TOKENS)
    print(f"{name:<12}{whole / 1e9:10.2f} B{of['adapters'] / 1e6:10.1f} M{cells}")

print()
for card in (8, 16, 24):
    fitting = [(name, tokens) for name in QWEN3 for tokens in TOKENS if needs[name][tokens] <= card - 1.5]
    name = fitting[-1][0]
    tokens = max(tokens for model, tokens in fitting if model == name)
    print(f"{card} GB: up to {name} with --data.max_tokens {tokens}")

# %% [markdown]
# ### What to change for 8, 16 and 24 GB
#
# From top to bottom; stop when it fits. None of these changes what is learned, except the last two.
#
# | lever | how |
# | --- | --- |
# | tokens of one forward pass | `--data.max_tokens 2560`: the largest effect; a step takes more passes |
# | gradient checkpointing | on in `configs/ipvrm_qwen.yaml`; keep it on |
# | logits of a chunk | `--model.chunk_size 256`: 1.3 GiB less by the formula, and a somewhat slower step |
# | optimiser | the 8-bit paged one of the overlay moves its states to main memory when the GPU is full |
# | longest response | `--data.max_length 1536`: longer ones are dropped and counted |
# | a smaller model | `--model.language_model.init_args.name Qwen/Qwen3-1.7B-Base`, say |
#
# Memory to spare buys speed: `--config configs/strategy/fast.yaml` last (no padding, compiled blocks), a larger
# `data.max_tokens`, and gradient checkpointing off.
#
# ## Part 3: many GPUs
#
# **The model fits one GPU**: DDP. A copy on each, the batch is shared. Works with QLoRA.
#
#     ipvrm fit --config configs/ipvrm_qwen.yaml --config configs/strategy/qlora.yaml --config configs/strategy/ddp.yaml
#
# **It does not**: FSDP2. Weights, gradients and optimiser states are divided over all GPUs; a layer is gathered while
# it is needed. Works with `lora.yaml`, or with all weights trained; not with 4-bit weights (`ipvrm` refuses the pair in
# one line).
#
#     ipvrm fit --config configs/ipvrm_qwen.yaml --config configs/strategy/fsdp2.yaml
#     torchrun --nproc-per-node 8 -m ipvrm_lightning fit --config configs/ipvrm_qwen.yaml \
#       --config configs/strategy/fsdp2.yaml
#
# `data.batch_size` is that of all GPUs together, so the result should not depend on their number: two processes on a
# CPU agree with one, several GPUs have not been tried. Several machines: `docs/multi_node.md`. Two processes on a CPU,
# to rehearse: `--trainer.accelerator cpu --trainer.devices 2`.
#
# With all weights trained, each of N GPUs holds:
#
# | part | bytes |
# | --- | --- |
# | weights, gradients and two Adam states in float32, divided | `16 * P / N` |
# | what is gathered at one time: embedding and head, and two layers | 4 each; nothing on one GPU |
# | copies in bfloat16 that mixed precision may keep until the step ends, not divided in the worst case | `2 * P` |
# | activations | as above |
#
# The reference needs nothing during training (`CachedReference`).


# %%
def fsdp(shape, gpus, tokens=2560):
    """Bytes on each GPU, all weights trained; on one GPU nothing is gathered."""
    of = count(*shape)
    held = (16 / gpus + 2) * (of["matrices"] + of["embedding"] + of["norms"])
    gathered = 0 if gpus == 1 else 4 * (of["embedding"] + 2 * of["matrices"] / shape[1])
    return held + gathered + activations(shape, tokens)


GPUS = (1, 2, 4, 8, 16)
print("All weights trained, GiB on each GPU, computed; data.max_tokens 2560; by number of GPUs\n")
print(f"{'':<12}" + "".join(f"{gpus:>9}" for gpus in GPUS))
for name, shape in QWEN3.items():
    print(f"{name:<12}" + "".join(f"{fsdp(shape, gpus) / GIB:9.1f}" for gpus in GPUS))

# %% [markdown]
# ## Where you may stumble
#
# - `quantization needs lora: weights in 4 bits cannot be trained themselves`: stack `qlora.yaml`, not the key alone.
# - `weights in 4 bits cannot be divided over processes`: 4 bits and FSDP exclude each other. DDP, or `lora.yaml`.
# - `OutOfMemoryError` in the first steps: lower `data.max_tokens`. After hours: the longest rows came late; the same,
#   and the run goes on from its last checkpoint.
# - The first loss is not 5.0067 (with `IPVRM` and margin 5): the reference is not the model with its adapters off.
#   Did you give a `FrozenCopy`, or values cached for other weights?
# - A model already has an adapter: merge it first (`model.merge_and_unload()`), or its base would be the reference.
