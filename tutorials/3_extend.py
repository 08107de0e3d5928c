# %% [markdown]
# # 3. Your own objective, metric and data module
#
# You do not fork the package to change it. A config names classes by `class_path`, and any class that Python can
# import will do. `extension.py`, beside this file, holds three:
#
# - `BrierValues`, an objective: the squared difference of value and outcome in place of IPVRM's margin;
# - `PairAccuracy`, a torchmetrics metric, and `ValidationMetric`, a callback that feeds and logs it;
# - `CSVRollouts`, a data module that reads a spreadsheet.
#
# Open it beside this file; it is short. Here we check each by hand, then train with all of them by one config:
#
#     python tutorials/3_extend.py

# %%
import csv
import json
import math
import os
import sys
from pathlib import Path

import torch
import yaml
from extension import BrierValues, CSVRollouts, PairAccuracy
from tiny_world import tiny_world

from ipvrm_lightning.cli import main
from ipvrm_lightning.data import DataError
from ipvrm_lightning.types import TrajectoryBatch

OUT = Path("outputs/tutorials/3_extend")
OUT.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## The objective
#
# An objective says five things (`ipvrm_lightning.objectives.Objective`):
#
# | | |
# | --- | --- |
# | `score_source` | what it reads per token: `log_ratio`, `value_head`, or `endogenous` (the model's own logits) |
# | `unit` | what its loss is a mean over: `sequences`, `tokens` or `pairs`. Micro-batches are weighted by it |
# | `beta` | scale of its scores: values, TD advantages and step scores are beta times them |
# | `forward` | the loss of a batch, from scores [B, T] and mask [B, T] |
# | `prefix_logits` | how scores read as the logit of "this prefix ends right" |
#
# Check it on numbers that you can work out, before you train anything. With log-ratios of zero every probability is
# one half, and the loss is 0.25. And padding must change nothing: the second row has two tokens, and what stands
# behind them is nonsense on purpose.

# %%
objective = BrierValues(beta=10.0)
mask = torch.tensor([[True, True, True], [True, True, False]])


def batch_of(outcomes):
    """A batch in which nothing but lengths and outcomes matters: prompts of one token, responses of three and two."""
    return TrajectoryBatch(
        input_ids=torch.zeros(2, 4, dtype=torch.long),
        lengths=torch.tensor([4, 3]),
        response_starts=torch.tensor([1, 1]),
        index=torch.arange(2),
        outcomes=torch.tensor(outcomes),
    )


zeros = objective(torch.zeros(2, 3), mask, batch_of([1.0, 0.0]))
assert math.isclose(zeros.item(), 0.25)

# row 0: V/t = 1, 1, 1 and outcome 1; row 1: V/t = -2, -2 and outcome 0
scores = torch.tensor([[0.1, 0.1, 0.1], [-0.2, -0.2, 99.0]])
by_hand = ((1 - 1 / (1 + math.exp(-1))) ** 2 + (1 / (1 + math.exp(2))) ** 2) / 2
assert math.isclose(objective(scores, mask, batch_of([1.0, 0.0])).item(), by_hand, rel_tol=1e-5)

# %% [markdown]
# ## The metric
#
# `PairAccuracy` compares responses to the same prompt. Prompt 0 has values 0.9 (right), 0.2 (wrong) and 0.9 (wrong):
# one pair won, one tied, 1.5 of 2. Prompt 1 has 0.1 (right) and 0.3 (wrong): lost. Together 1.5 / 3 = 0.5.
#
# A metric must not depend on how responses are cut into batches. So this one keeps what it was given, and counts at
# the end.

# %%
metric = PairAccuracy()
metric.update(torch.tensor([0.9, 0.2]), torch.tensor([1.0, 0.0]), torch.tensor([0, 0]))
metric.update(torch.tensor([0.9, 0.1, 0.3]), torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0, 1, 1]))
assert math.isclose(metric.compute().item(), 0.5)

# %% [markdown]
# ## The data
#
# A spreadsheet with the columns `question`, `response` and `correct`. (Made from the tiny world of tutorial 2.)

# %%
world = tiny_world()
table = OUT / "rollouts.csv"
with table.open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(["question", "response", "correct"])
    for line in (world.folder / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        for response, score in zip(row["responses"], row["scores"], strict=True):
            writer.writerow([row["prompt"], response, "yes" if score else "no"])

policy = str(world.folder / "policy")
data = CSVRollouts(path=str(table), tokenizer=policy, validation_prompts=30)
data.setup()
print(f"{len(data.train_set)} responses to train on, {len(data.val_set)} to validate")
shared = set(data.train_set.groups) & set(data.val_set.groups)
assert not shared, "a prompt is on both sides"

# %% [markdown]
# A data module of your own should refuse bad rows as clearly as the package's do. `DataError` carries file, row and
# column into one line. Where your module joins steps in its own way, a class attribute `layout` tells `ipvrm export`
# how.

# %%
broken = OUT / "broken.csv"
broken.write_text("question,response,correct\nfind a,answer a1,perhaps\n")
try:
    CSVRollouts(path=str(broken), tokenizer=policy).setup()
except DataError as error:
    print(f"refused: {error}")
else:
    raise AssertionError("a broken file was accepted")

# %% [markdown]
# ## One config
#
# Each `class_path` is `file.Class`, each key under `init_args` an argument of its constructor. Nested classes (the
# metric in the callback) work the same way.

# %%
config = {
    "seed_everything": 0,
    "model": {
        "class_path": "ipvrm_lightning.modules.IPVRMModule",
        "init_args": {
            "language_model": {
                "class_path": "ipvrm_lightning.models.PretrainedLanguageModel",
                "init_args": {"name": policy},
            },
            "objective": {"class_path": "extension.BrierValues", "init_args": {"beta": 10.0}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "weight_decay": 0.0}},
        },
    },
    "data": {
        "class_path": "extension.CSVRollouts",
        "init_args": {"path": str(table), "validation_prompts": 30, "batch_size": 32},
    },
    "trainer": {
        "default_root_dir": str(OUT / "runs"),
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [
            {
                "class_path": "extension.ValidationMetric",
                "init_args": {"metric": {"class_path": "extension.PairAccuracy"}, "name": "val/pair_accuracy"},
            }
        ],
    },
}
path = OUT / "extension.yaml"
path.write_text(yaml.safe_dump(config, sort_keys=False))
print(path.read_text())

# %% [markdown]
# On the command line:
#
#     PYTHONPATH=tutorials ipvrm fit --config outputs/tutorials/3_extend/extension.yaml --resume never
#
# Here the same command is called from Python. (`sys.path` plays the part of PYTHONPATH. `--resume never` starts anew;
# without it, a run that was killed would go on.)

# %%
if (here := str(Path(__file__).parent.absolute())) not in sys.path:
    sys.path.insert(0, here)
main(["fit", "--config", str(path), "--resume", "never"])

# %% [markdown]
# The run has its own folder, with the whole config, the log and the checkpoint. Your metric is a column of the log.

# %%
run = max((OUT / "runs").glob("*-fit"), key=os.path.getmtime)
rows = list(csv.DictReader((run / "metrics.csv").open()))
columns = ("train/loss", "val/auroc", "val/pair_accuracy")
log = {name: [float(row[name]) for row in rows if row.get(name)] for name in columns}
first = log["train/loss"][0]
assert math.isclose(first, 0.25, rel_tol=1e-3)  # all values are 0 before the first update
last = log["train/loss"][-5:]
print(f"{run}: training loss {first:.3f} at first, {sum(last) / len(last):.3f} in the last five steps")
print(f"val/auroc {log['val/auroc'][-1]:.3f}, val/pair_accuracy {log['val/pair_accuracy'][-1]:.3f}")

# %% [markdown]
# Both are 0.5 for a model that guesses. If the AUROC is much higher than the pair accuracy, the model knows which
# *prompts* are easy rather than which *responses* are right. For choosing among responses only the latter helps.
#
# ## When a name is wrong
#
# The mistake is told in one line, before anything is loaded. `--debug` shows the traceback.

# %%
try:
    main(["fit", "--config", str(path), "--model.objective", "extension.NoSuchObjective"])
except SystemExit as stop:
    assert stop.code != 0
else:
    raise AssertionError("a class that does not exist was accepted")

# %% [markdown]
# ## Where you may stumble
#
# - `No module named 'extension'`: the file's folder is not on the path. Set PYTHONPATH, or install your package.
# - `the checkpoint does not fit this config: objective...`: you changed an argument of the objective and load an
#   older checkpoint. Its values would mean something else, so it is refused.
# - `BrierValues: keep the argument beta as self.beta`: checkpoints keep the constructor's arguments and read them by
#   their names. They may be numbers, text, lists, and other objectives.
# - A loss that depends on the size of the micro-batches: `forward` must return a *mean* over what `unit` says.
# - A metric with plain attributes in place of `add_state`: on several processes each reports its own part.
#
# Other things to replace by class path: `LanguageModelFactory` (how a model is loaded), `Reference` (where reference
# log-probabilities come from; tutorial 6 has one), `Verifier` (what counts as right) and `LightningModule` itself.
