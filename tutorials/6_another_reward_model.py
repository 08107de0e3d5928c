# %% [markdown]
# # 6. Score another reward model under the same protocol
#
# Implicit reward models are published as ordinary language models: one folder for the reward model, one for its
# reference. Anything of that form can be judged here, on the same solutions, with the same thresholds, intervals and
# floors as your own. Only then do two numbers compare.
#
#     python tutorials/6_another_reward_model.py
#     python tutorials/6_another_reward_model.py --model OWNER/PRM --reference OWNER/SFT --solutions solutions.jsonl
#
# The first form needs no download: it makes a small pair on the spot, an Implicit PRM trained for a minute on the
# tiny world. The second takes names on the hub or folders. Both models must have the same tokenizer. (In a notebook,
# write `parse_args([])` below.)

# %%
import argparse
import json
from functools import partial
from pathlib import Path

import torch
from extension import AnotherModel
from lightning.pytorch import Trainer, seed_everything
from tiny_world import tiny_world

from ipvrm_lightning.data import ProcessBenchDataModule, TrajectoryDataModule
from ipvrm_lightning.functional import PROTOCOLS
from ipvrm_lightning.metrics import print_report, write_scores
from ipvrm_lightning.models import PretrainedLanguageModel
from ipvrm_lightning.modules import IPVRMModule
from ipvrm_lightning.objectives import EndoRM, ImplicitPRM

OUT = Path("outputs/tutorials/6_another_reward_model")
OUT.mkdir(parents=True, exist_ok=True)
seed_everything(0)

parser = argparse.ArgumentParser()
parser.add_argument("--model", help="reward model: a folder, or a name on the hub")
parser.add_argument("--reference", help="its reference")
parser.add_argument("--solutions", help="ProcessBench's form: a file, a folder, or Qwen/ProcessBench")
parser.add_argument("--step-template", default="Step {number}: {step}", help="how a step is written")
parser.add_argument("--beta", type=float, default=0.05, help="scale of its log-ratios")
parser.add_argument("--max-tokens", type=int, default=8192, help="of one forward pass")
arguments = parser.parse_args()
if (arguments.model is None) != (arguments.reference is None):
    parser.error("give --model and --reference together")

trainer = Trainer(
    accelerator="gpu" if torch.cuda.is_available() else "cpu", devices=1, max_epochs=1, use_distributed_sampler=False,
    logger=False, default_root_dir=OUT, enable_progress_bar=False, enable_model_summary=False,
    enable_checkpointing=False,
)  # fmt: skip

# %% [markdown]
# ## A pair of folders
#
# Without arguments: the tiny world's policy is the reference, and an Implicit PRM (cross-entropy of the outcome on
# the summed log-ratios, beta 0.05) is trained from it. Both are then written to disk as they would lie on the hub.


# %%
def make_pair():
    """Train an Implicit PRM for one epoch, write it as a Hugging Face folder; that and its reference."""
    world = tiny_world()
    reference = str(world.folder / "policy")
    factory = PretrainedLanguageModel(name=reference)
    module = IPVRMModule(
        language_model=factory,
        objective=ImplicitPRM(beta=0.05),
        optimizer=partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.0),
    )
    rollouts = str(world.folder / "train.jsonl")
    data = TrajectoryDataModule(train=rollouts, batch_size=32, max_tokens=4096, validation_fraction=0.2)
    trainer.fit(module, datamodule=data)
    folder = OUT / "implicit_prm"
    module.model.save_pretrained(folder)
    factory.build_tokenizer().save_pretrained(folder)
    return str(folder), reference


if arguments.model is None:
    model, reference = make_pair()
else:
    model, reference = arguments.model, arguments.reference

# %% [markdown]
# ## The solutions
#
# How steps become text must fit the model: published PRMs are usually judged with the steps of ProcessBench parted by
# blank lines. Steps are numbered by default ("Step 1: ..."); `--step-template "{step}"` leaves them as they are. Say
# which you used when you quote a number. The tiny world writes one step a line.

# %%
if arguments.solutions is None:
    path = str(tiny_world().folder / "test_format0.jsonl")
    form = {"step_template": "{step}", "separator": "\n"}
else:
    path, form = arguments.solutions, {"step_template": arguments.step_template}


def solutions():
    """A fresh data module: each remembers the tokenizer that it was first used with."""
    return ProcessBenchDataModule(path=path, max_tokens=arguments.max_tokens, **form)


# %% [markdown]
# ## A reference that is another folder
#
# `IPVRMModule` takes its reference from the model in training: adapters off, or a copy of where it started. A
# published pair was trained elsewhere, so its reference is another folder. `AnotherModel` in `extension.py` is a
# `Reference` for that, in a few lines. It refuses a pair with different tokenizers, because token ids would then
# mean different things.
#
# Check a reference before you believe it. A model with *itself* as the reference must give log-ratios of zero:

# %%
itself = IPVRMModule(
    language_model=PretrainedLanguageModel(name=reference),
    reference=AnotherModel(name=reference),
    objective=ImplicitPRM(beta=arguments.beta),
)
records = [record for batch in trainer.predict(itself, datamodule=solutions()) for record in batch]
largest = max(abs(advantage) for record in records for advantage in record["td_advantages"])
print(f"largest TD advantage of the reference against itself: {largest:.1e}")
assert largest < 1e-5

# %% [markdown]
# ## Judge
#
# No training: `test` alone. `beta` scales all scores and with them the thresholds, so it changes no step F1.
#
# Beside the pair stands a scorer that costs nothing, EndoRM: rewards read from the logits of the reference itself,
# without any training. If a trained reward model does not beat it, the training has not been shown to help.

# %%
scorers = {
    "reward model": IPVRMModule(
        language_model=PretrainedLanguageModel(name=model),
        reference=AnotherModel(name=reference),
        objective=ImplicitPRM(beta=arguments.beta),
    ),
    "EndoRM": IPVRMModule(language_model=PretrainedLanguageModel(name=reference), objective=EndoRM()),
}
reports = {}
for name, module in scorers.items():
    trainer.test(module, datamodule=solutions(), verbose=False)
    reports[name] = module.test_report["step_f1"]
    write_scores(OUT / f"scores_{name.replace(' ', '_')}.jsonl", module.scored_solutions)
print_report(reports["reward model"])

# %% [markdown]
# ## Compare
#
# One line per scorer and protocol: oracle threshold (best on the same solutions, as papers report), cross-fitted
# threshold (chosen on other problems, what a user gets) with its interval, and the two floors last. The floors belong
# to the solutions, not to the scorer; all scorers here have the same.

# %%
floors = reports["EndoRM"].average
assert floors.longest_step["oracle"].f1 == reports["reward model"].average.longest_step["oracle"].f1
print(f"{'step F1 in percent':<28}{'oracle':>8}{'cross-fitted':>14}   interval")
for name, report in reports.items():
    for protocol in PROTOCOLS:
        found = report.average.protocols[protocol]
        oracle, honest = found["oracle"], found["cross_fitted"]
        interval = f"[{100 * honest.f1_interval.low:.1f}, {100 * honest.f1_interval.high:.1f}]"
        print(f"{name + ', ' + protocol:<28}{100 * oracle.f1:8.1f}{100 * honest.f1:14.1f}   {interval}")
print(
    f"{'random scores (floor)':<28}{100 * floors.random.oracle_mean:8.1f}{100 * floors.random.cross_fitted_mean:14.1f}"
)
longest = floors.longest_step
print(f"{'longest step (floor)':<28}{100 * longest['oracle'].f1:8.1f}{100 * longest['cross_fitted'].f1:14.1f}")

# %% [markdown]
# How to read it:
#
# - Compare scorers in **one** protocol that was fixed beforehand, at the cross-fitted threshold.
# - Overlapping intervals: no difference has been shown. On the same solutions a paired comparison is sharper: count
#   those that one scorer gets right and the other wrong. The raw scores are in `scores_*.jsonl`. For runs of `ipvrm
#   test`, `ipvrm compare RUN RUN --against RUN` gives the difference with a paired interval.
# - Below the longest-step floor: the scorer has not been shown to know more than how long a step is. With
#   ProcessBench that floor is 36.2 / 28.1 / 30.1 (gsm8k / math / olympiadbench, oracle).
# - Published numbers use the oracle threshold. Put them beside the first column, never beside the second.
#
# Here is such a paired count, for `step_sum` at each scorer's own oracle threshold (so it flatters both):

# %%
protocol = "step_sum"
right = {}
for name in reports:
    file = OUT / f"scores_{name.replace(' ', '_')}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    right[name] = {}
    for row in rows:
        threshold = reports[name].subsets[row["subset"]].protocols[protocol]["oracle"].threshold
        below = [step for step, score in enumerate(row["step_scores"][protocol]) if score < threshold]
        right[name][row["subset"], row["id"]] = (below[0] if below else -1) == row["label"]
pairs = [(right["reward model"][key], right["EndoRM"][key]) for key in right["EndoRM"]]
print(f"of {len(pairs)} solutions, {protocol}: {pairs.count((True, True))} right by both,")
print(f"{pairs.count((True, False))} by the reward model alone, {pairs.count((False, True))} by EndoRM alone")

# %% [markdown]
# ## Where you may stumble
#
# - `... holds an adapter, not a model`: merge it into its base, and give the base as the reference.
# - `the tokenizer of ... is another one than that of ...`: not a pair. Two models with different vocabularies have no
#   log-ratio.
# - Scores that are all equal: model and reference are the same folder.
# - The published model has a value head or a classifier in place of a language model's head: then it is no implicit
#   PRM, and needs a module of its own.
# - `field 'steps[3]': empty step`: a blank step in your file; `on_bad_rows="skip"` leaves such rows out and counts
#   them.
