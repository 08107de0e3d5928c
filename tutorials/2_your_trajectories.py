# %% [markdown]
# # 2. Train IPVRM on your own trajectories
#
# You need three things:
#
# - **a model**: the one that wrote the solutions, or the one you want to start from. A name on the Hugging Face hub
#   or a folder;
# - **trajectories**: prompts, solutions, and for each solution whether its final answer is right. A JSONL file;
# - to judge the result, **solutions whose first wrong step is known**. ProcessBench is such a set; a file of your own
#   works as well.
#
# To need no download, this tutorial makes all three with a tiny world (`tiny_world.py`). Everything after the first
# section is what you would type with your own files. Run it from the repository's root:
#
#     python tutorials/2_your_trajectories.py

# %%
import csv
import json
import math
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draw to files; leave this line out in a notebook
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from matplotlib import pyplot
from tiny_world import tiny_world

from ipvrm_lightning.data import DataError, ProcessBenchDataModule, TrajectoryDataModule
from ipvrm_lightning.metrics import print_report, write_scores
from ipvrm_lightning.models import PretrainedLanguageModel
from ipvrm_lightning.modules import IPVRMModule
from ipvrm_lightning.modules.schedule import Schedule
from ipvrm_lightning.objectives import IPVRM

OUT = Path("outputs/tutorials/2_your_trajectories")
OUT.mkdir(parents=True, exist_ok=True)
seed_everything(0)

# %% [markdown]
# ## The files
#
# The world answers problems with a small model and checks the answers. We write what it found as a user would have
# it.

# %%
world = tiny_world()


def rows_of(name):
    """Records of one of the world's files."""
    return [json.loads(line) for line in (world.folder / f"{name}.jsonl").read_text().splitlines()]


def write_jsonl(path, rows):
    """One JSON object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


rollouts = [{name: row[name] for name in ("prompt", "responses", "scores")} for row in rows_of("train")]
solutions = [
    {name: row[name] for name in ("id", "problem", "steps", "label", "final_answer_correct")}
    for row in rows_of("test_format0")
]
write_jsonl(OUT / "rollouts.jsonl", rollouts)
write_jsonl(OUT / "solutions.jsonl", solutions)
model_folder = str(world.folder / "policy")  # yours: "Qwen/Qwen3-0.6B-Base", or a folder

# %% [markdown]
# One row of `rollouts.jsonl` is a prompt with several responses and their outcomes (1 right, 0 wrong). Other forms
# are recognised by their columns (`prompt` + `completion` + `label`, `conversation` + `label`, `chosen` + `rejected`,
# ...); `docs/data.md` lists them. A prompt is text or a list of chat messages.

# %%
first = rollouts[0]
print(first["prompt"])
for response, score in list(zip(first["responses"], first["scores"], strict=True))[:2]:
    print(f"--- outcome {score}\n{response}")

# %% [markdown]
# One row of `solutions.jsonl` is a problem, the steps of one solution, and the number of the first wrong step,
# counted from 0, or -1 where every step is right. This is the form of ProcessBench.

# %%
print(json.dumps(solutions[0], indent=2))

# %% [markdown]
# ## Look before you train
#
# A reward model learns from the difference between right and wrong. Count what is there. If nearly all outcomes are
# equal, sample other problems first. Prompts with both outcomes tell most.

# %%
outcomes = [score for row in rollouts for score in row["scores"]]
mixed = sum(0 < sum(row["scores"]) < len(row["scores"]) for row in rollouts)
share = 100 * sum(outcomes) / len(outcomes)
print(f"{len(outcomes)} responses, {share:.0f} % right; {mixed} of {len(rollouts)} prompts have both outcomes")

# %% [markdown]
# ## Read it
#
# `TrajectoryDataModule` reads, checks, splits by prompt (no prompt is on both sides) and tokenises. A model with a
# chat template gets its prompts through the template. Ours has none, so prompt and response just follow each other.
#
# - `batch_size`: responses per optimiser step.
# - `max_tokens`: size of one forward pass, rows times the longest row. It changes memory and speed, not the result.
#
# A file with a mistake is refused in one line, before any model is loaded. Try it: an outcome of 2.

# %%
broken = OUT / "broken.jsonl"
write_jsonl(broken, [*rollouts[:3], {"prompt": "find a", "responses": ["answer a1"], "scores": [2]}])
options = {"batch_size": 32, "max_tokens": 4096, "validation_fraction": 0.2}
try:
    TrajectoryDataModule(train=str(broken), tokenizer=model_folder, **options).setup()
except DataError as error:
    print(f"refused: {error}")
else:
    raise AssertionError("a broken file was accepted")

data = TrajectoryDataModule(train=str(OUT / "rollouts.jsonl"), **options)

# %% [markdown]
# ## The module
#
# `IPVRMModule` holds the model in training, the frozen reference and the objective. Nothing is loaded yet.
#
# - `beta` and `margin` are the paper's.
# - The learning rate is for a tiny model. For Qwen3-0.6B with all its weights, `configs/ipvrm_qwen.yaml` has 5e-7;
#   with LoRA, 1e-4 is a common start.
# - No `reference` is given, so it is a frozen copy of the starting weights. With `lora=LoRA(...)` it is the same
#   weights with the adapters off, which needs no second model in memory.

# %%
EPOCHS = 2
module = IPVRMModule(
    language_model=PretrainedLanguageModel(name=model_folder),
    objective=IPVRM(beta=10.0, margin=5.0),
    optimizer=partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.0),
    scheduler=Schedule(name="cosine", warmup=0.1),
)
trainer = Trainer(
    accelerator="cpu",
    devices=1,
    max_epochs=EPOCHS,
    use_distributed_sampler=False,  # the data module divides the data itself
    logger=CSVLogger(OUT, name="", version="logs"),
    log_every_n_steps=1,
    default_root_dir=OUT,
    enable_progress_bar=False,
    enable_model_summary=False,
    enable_checkpointing=False,
)
trainer.fit(module, datamodule=data)
trainer.save_checkpoint(OUT / "reward_model.ckpt")

# %% [markdown]
# ## Did it train?
#
# Three things to look at, in this order.
#
# 1. **The first loss.** Before the first update the model is its reference: all values are 0, and the loss is
#    softplus(5) = 5.0067. Another number means that the reference is not what you think it is.
# 2. **The trend of the loss.** Single steps swing, so compare means over several. Do not expect it to come near 0:
#    the margin of 5 is large, and a response that the reference finds certain cannot get a high value (tutorial 1).
#    Training loss alone says little about new problems.
# 3. **Validation.** `val/auroc` is the chance that a right response has a higher final value than a wrong one, on
#    prompts that were not trained on; 0.5 is guessing. `val/prefix_accuracy` is the share of *prefixes* whose value
#    has the right sign. `val/ece` says how far values, read as probabilities, are from the truth; 0 is perfect.

# %%
logged = list(csv.DictReader((OUT / "logs" / "metrics.csv").open()))
losses = [float(row["train/loss"]) for row in logged if row["train/loss"]]
assert math.isclose(losses[0], math.log1p(math.exp(5)), rel_tol=1e-3), losses[0]
early, late = sum(losses[:10]) / len(losses[:10]), sum(losses[-10:]) / len(losses[-10:])
print(f"training loss in the first of {len(losses)} steps: {losses[0]:.4f}")
print(f"mean of the first ten {early:.3f}, of the last ten {late:.3f}")
for name in ("val/auroc", "val/prefix_accuracy", "val/ece"):
    print(f"{name}: {float(trainer.callback_metrics[name]):.3f}")

# %% [markdown]
# ## Judge it on first wrong steps
#
# `step_template` and `separator` say how steps become text. They must give what the model saw in training: here one
# step per line, without numbers. For ProcessBench leave both out; the defaults are the paper's ("Step 1: ...", parted
# by blank lines). A mismatch raises no error. It only makes every score worse.

# %%
judged = ProcessBenchDataModule(path=str(OUT / "solutions.jsonl"), step_template="{step}", separator="\n")
trainer.test(module, datamodule=judged, verbose=False)
report = module.test_report["step_f1"]
print_report(report)
scores_file = write_scores(OUT / "scores.jsonl", module.scored_solutions)

# %% [markdown]
# ## Read the table honestly
#
# Every row is one way to make a score per step out of the same log-ratios (tutorial 1).
#
# - **correct**: share of right solutions in which nothing was reported. **error**: share of wrong ones whose first
#   wrong step was found exactly. **F1**: their harmonic mean.
# - **oracle**: the threshold was chosen on these very solutions. Papers report it. It is too good.
# - **cross-fitted**: the threshold for a solution was chosen on *other problems*. This is what you get in use. Quote
#   it.
# - **interval**: how far F1 may move with another draw of problems. With a hundred solutions it is wide. A difference
#   smaller than that is no finding.
# - **two floors**. Random scores reach more than zero, because a threshold is fitted to them too. And "the longest
#   step is the wrong one" knows nothing but length. A model has shown something where it beats **both**.
#
# Decide *before* you look which protocol counts. The paper's is `step_sum`. Taking the best of four rows is one more
# way to choose on the test data.

# %%
(subset,) = report.subsets.values()
oracle, honest = (subset.protocols["step_sum"][origin] for origin in ("oracle", "cross_fitted"))
floors = {
    "random scores": subset.random.cross_fitted_mean,
    "the longest step": subset.longest_step["cross_fitted"].f1,
}
print(f"step_sum: {100 * oracle.f1:.1f} oracle, {100 * honest.f1:.1f} cross-fitted")
print(f"95 % interval of the latter: {100 * honest.f1_interval.low:.1f} to {100 * honest.f1_interval.high:.1f}")
for name, floor in floors.items():
    where = (
        "above" if honest.f1_interval.low > floor else "below" if honest.f1_interval.high < floor else "not clearly off"
    )
    print(f"floor of {name}: {100 * floor:.1f}; the model's interval is {where} it")

# %% [markdown]
# The raw scores are in `scores.jsonl`. `ipvrm judge outputs/tutorials/2_your_trajectories/scores.jsonl` makes the
# table again without a model, also at a threshold of your own (`--threshold step_sum=-1.5`).
#
# ## Look at solutions
#
# A table hides what a model gets wrong. `predict` gives the value after every token. We draw the first solution with
# an error in its second step or later. Where the model is good, the curve falls within the shaded step. Where it
# falls elsewhere, you see a miss; look at several solutions before you believe a picture.

# %%
records = [record for batch in trainer.predict(module, datamodule=judged) for record in batch]
chosen = next((record for record in records if record["step_label"] >= 1), records[0])
row = judged.test_sets[0].metadata(chosen["index"])
texts = next(solution["steps"] for solution in solutions if solution["id"] == row["id"])
probability = torch.tensor(chosen["values"]).sigmoid()
ends = [max(i for i, step in enumerate(chosen["step_ids"]) if step == number) for number in range(len(texts))]
figure, axes = pyplot.subplots(figsize=(9, 4), layout="constrained")
axes.plot(probability, color="#1f4e79")
start = -1
for number, end in enumerate(ends):
    if number == chosen["step_label"]:
        axes.axvspan(start + 0.5, end + 0.5, color="#c0392b", alpha=0.15, label="labelled first wrong step")
    axes.axvline(end + 0.5, color="#bbbbbb", linewidth=0.6)
    start = end
centres = [(low + high) / 2 + 0.5 for low, high in zip([-1, *ends[:-1]], ends, strict=True)]
axes.set_xticks(centres, texts, rotation=20, ha="right", fontsize=8)
axes.set(ylim=(0, 1), ylabel="P(ends right) after the token")
axes.legend()
figure.savefig(OUT / "solution.png", dpi=120)
pyplot.close(figure)

figure, axes = pyplot.subplots(figsize=(7, 3), layout="constrained")
axes.plot(range(1, len(losses) + 1), losses, color="#1f4e79")
axes.axhline(losses[0], color="black", linestyle=":", linewidth=0.8, label="values of zero: softplus(5)")
axes.set(xlabel="optimiser step", ylabel="training loss")
axes.legend()
figure.savefig(OUT / "loss.png", dpi=120)
pyplot.close(figure)
print(f"written: {scores_file}, {OUT / 'solution.png'}, {OUT / 'loss.png'}, {OUT / 'reward_model.ckpt'}")

# %% [markdown]
# ## With your own files
#
# The same by command, which also gives each run a folder, writes checkpoints, and goes on after a kill:
#
#     ipvrm fit  --config configs/ipvrm_qwen.yaml --data.train rollouts.jsonl
#     ipvrm test --config configs/ipvrm_qwen.yaml --config configs/data/processbench.yaml --ckpt_path last
#
# ## Where you may stumble
#
# - `no known form has the columns ...`: rename your columns to one of the forms that the message lists.
# - `no usable training example ...; left out: {'dropped: longer than 2560 tokens': ...}`: raise `max_length`, or see
#   whether your prompts hold more than you thought.
# - `the chat template rewrites the prompt once an answer follows it`: some templates remove thinking from earlier
#   turns. Give another template with `PretrainedLanguageModel(chat_template=...)`.
# - ``DPORM needs `pairwise: true` in the data module``: pairwise objectives learn from a right and a wrong response
#   to one prompt: `TrajectoryDataModule(pairwise=True, ...)`.
# - `val/auroc` stays at 0.5: too few responses, a learning rate too small, or outcomes that the text does not tell.
