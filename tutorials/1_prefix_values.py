# %% [markdown]
# # 1. Prefix values by hand
#
# A reward model of this package is a language model. It has no extra head. What it says about a solution is read from
# how likely it finds each token, compared with a *reference* model. This tutorial goes the whole way with numbers
# small enough for a pocket calculator:
#
#     log-probabilities -> log-ratios -> value of every prefix -> score of every step -> first wrong step
#
# Every number is derived in the text and checked with an `assert` against `ipvrm_lightning.functional`. Run it from
# the repository's root:
#
#     python tutorials/1_prefix_values.py
#
# It loads no model. The pictures go to `outputs/tutorials/1_prefix_values/`.

# %%
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draw to files; leave this line out in a notebook
import torch
from matplotlib import pyplot
from torch import tensor
from torch.testing import assert_close

from ipvrm_lightning.functional import (
    best_threshold,
    first_error,
    implicit_prm_loss,
    ipvrm_loss,
    normalized_values,
    prefix_values,
    step_f1_at,
    step_scores,
    td_advantages,
)

OUT = Path("outputs/tutorials/1_prefix_values")
OUT.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## One solution, eleven tokens
#
# The problem: `a = 3 + 4 ; b = a * 2 ; find b`. The solution has three steps, one per line:
#
#     a = 3 + 4 = 7
#     b = 7 * 2 = 15      <- wrong: 7 * 2 is 14
#     answer 15           <- follows from the line above
#
# Two models read it. `reference` is the model that wrote it. `reward` is the same model after training. For each
# token both give the logarithm of its probability. (These numbers are made up so that the sums come out even.
# Tutorial 2 has real ones.)

# %%
tokens = ["a", "= 3 + 4", "= 7", "\\n", "b", "= 7 * 2", "= 15", "\\n", "answer", "15", "<eos>"]
reference = tensor([-0.60, -0.40, -0.30, -0.02, -0.30, -0.20, -0.90, -0.02, -0.05, -0.10, -0.05])
reward = tensor([-0.58, -0.37, -0.25, -0.02, -0.30, -0.19, -1.11, -0.02, -0.05, -0.11, -0.06])

# %% [markdown]
# ## Log-ratios
#
# The log-ratio of a token is `log(p_reward / p_reference)`, a difference of two logarithms. Positive means: training
# has made this token likelier. For `= 7` it is -0.25 - (-0.30) = 0.05. For `= 15` it is -1.11 - (-0.90) = -0.21.
#
# All functions take batches: one row per solution, and a mask that is True where there is a token. Here is one row,
# and every token counts.

# %%
log_ratios = (reward - reference)[None]  # [B, T] = [1, 11]
mask = torch.ones_like(log_ratios, dtype=torch.bool)
by_hand = [0.02, 0.03, 0.05, 0.00, 0.00, 0.01, -0.21, 0.00, 0.00, -0.01, -0.01]
assert_close(log_ratios[0], tensor(by_hand), atol=1e-6, rtol=0)

# %% [markdown]
# ## The value of a prefix
#
# The value of the first t tokens is `V_t = beta * (sum of their log-ratios)`. With beta = 10 we add up and multiply:
#
#     t        1    2    3    4    5    6     7     8     9    10    11
#     V_t    0.2  0.5  1.0  1.0  1.0  1.1  -1.0  -1.0  -1.0  -1.1  -1.2
#
# What IPVRM trains is `z_t = V_t / t`, the value per token. It does not grow with the length of the prefix, and it is
# a logit: `sigmoid(z_t)` reads as "the probability that a solution which begins like this ends right". Zero means one
# half.

# %%
BETA = 10.0
values = prefix_values(log_ratios, mask, beta=BETA)[0]
assert_close(values, tensor([0.2, 0.5, 1.0, 1.0, 1.0, 1.1, -1.0, -1.0, -1.0, -1.1, -1.2]), atol=1e-5, rtol=0)

z = normalized_values(log_ratios, mask, beta=BETA)[0]
assert_close(z, values / torch.arange(1, 12), atol=1e-6, rtol=0)
probability = z.sigmoid()
for token, v, normalized, p in zip(tokens, values, z, probability, strict=True):
    print(f"{token:>8}   V = {v:5.2f}   V/t = {normalized:6.3f}   P(ends right) = {p:.3f}")

# %% [markdown]
# The value falls at `= 15`, where the mistake is made. It stays low afterwards: the lines that follow are not new
# mistakes, but the solution does not recover.
#
# Note how close to one half the probabilities are. No probability exceeds 1, so the log-ratio of a token is at most
# `-log p_reference`. A token that the reference holds certain can therefore hardly raise the value, however right it
# is. Here is the largest `z` that any reward model with this beta could give to the whole solution:

# %%
largest = BETA * -reference.mean().item()
print(f"V/t of the whole solution: {z[-1]:.3f}; no reward model can go above {largest:.3f} with this reference")
assert z[-1] <= largest

# %% [markdown]
# ## What one token adds: the TD advantage
#
# `A_t = V_t - V_(t-1)`, which is beta times the log-ratio of token t and nothing else. The advantages of a solution
# add up to its last value, -1.2.

# %%
advantages = td_advantages(log_ratios, mask, beta=BETA)[0]
assert_close(advantages, BETA * tensor(by_hand), atol=1e-5, rtol=0)
assert_close(advantages.sum(), values[-1], atol=1e-5, rtol=0)

# %% [markdown]
# The same holds for tokens that were *not* written. At the place of `= 15` the models also have a probability for
# `= 14`. Say the reference gives it log-probability -0.60 and the reward model -0.45. Then `= 14` is worth
# 10 * 0.15 = 1.5 and `= 15` is worth -2.1. No second solution had to be sampled to learn this. DistRL (tutorial 4)
# builds on it.

# %%
candidates = tensor([[[-1.11 - -0.90, -0.45 - -0.60]]])  # [B, T, K]: one position, the written token and one other
worth = td_advantages(candidates, torch.ones(1, 1, dtype=torch.bool), beta=BETA)[0, 0]
assert_close(worth, tensor([-2.1, 1.5]), atol=1e-5, rtol=0)

# %%
steps = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, -1]  # the step of each token; <eos> is in none
figure, (top, bottom) = pyplot.subplots(2, 1, figsize=(9, 6), sharex=True, layout="constrained")
top.bar(range(11), advantages, color=["#1f7a4d" if a >= 0 else "#c0392b" for a in advantages])
top.axhline(0, color="black", linewidth=0.8)
top.set_ylabel("TD advantage of the token")
bottom.plot(range(11), probability, marker="o", color="#1f4e79")
bottom.axhline(0.5, color="black", linewidth=0.8, linestyle=":")
bottom.set(ylabel="P(ends right) after the token", ylim=(0.4, 0.65))
bottom.set_xticks(range(11), tokens, rotation=35, ha="right")
for axes in (top, bottom):
    axes.axvspan(3.5, 7.5, color="#c0392b", alpha=0.12, label="the wrong step")
bottom.legend()
figure.savefig(OUT / "values.png", dpi=120)
pyplot.close(figure)

# %% [markdown]
# ## From tokens to steps: four protocols
#
# To find a wrong *step* there has to be one number per step. There are four usual ways to get it. A line break
# belongs to the step before it; `<eos>` belongs to none (its step is -1).
#
# | protocol | how | step 0 | step 1 | step 2 |
# | --- | --- | --- | --- | --- |
# | `step_sum` | 10 * sum over the step | 10 * 0.10 = 1.0 | 10 * -0.20 = -2.0 | 10 * -0.01 = -0.1 |
# | `step_mean` | that, per token of the step | 1.0 / 4 = 0.25 | -2.0 / 4 = -0.5 | -0.1 / 2 = -0.05 |
# | `prefix_sum` | V at the step's last token | 1.0 | -1.0 | -1.1 |
# | `prefix_mean` | that, per token so far | 1.0 / 4 = 0.25 | -1.0 / 8 = -0.125 | -1.1 / 10 = -0.11 |

# %%
expected = {
    "step_sum": [1.0, -2.0, -0.1],
    "step_mean": [0.25, -0.5, -0.05],
    "prefix_sum": [1.0, -1.0, -1.1],
    "prefix_mean": [0.25, -0.125, -0.11],
}
scores = {}
for protocol, numbers in expected.items():
    scores[protocol] = step_scores(log_ratios[0], tensor(steps), protocol=protocol, beta=BETA)
    assert_close(scores[protocol], tensor(numbers), atol=1e-5, rtol=0)

# %% [markdown]
# ## The first wrong step
#
# It is the first step whose score lies below a threshold; -1 if there is none. With the threshold 0 all four
# protocols point at step 1, which is right. But 0 is not special. With -0.3, `prefix_mean` finds nothing. A threshold
# has to be chosen on data, and each protocol needs its own.

# %%
assert [first_error(scores[protocol], 0.0) for protocol in expected] == [1, 1, 1, 1]
assert first_error(scores["prefix_mean"], -0.3) == -1

# %% [markdown]
# ## Judging: step F1 and the threshold
#
# Six solutions with their `step_sum` scores. `label` is the number of the first wrong step, -1 where all are right.
#
# |   | scores | label | found at -0.5 | found at 0 |
# | --- | --- | --- | --- | --- |
# | A | 1.0, -2.0, -0.1 | 1 | 1 | 1 |
# | B | 0.5, 0.8, 0.3 | -1 | -1 | -1 |
# | C | 0.2, -0.4 | -1 | -1 | 1 (false alarm) |
# | D | -1.0, 0.6, 0.1 | 0 | 0 | 0 |
# | E | 0.4, -0.3, -1.5 | 2 | 2 | 1 (too early) |
# | F | 0.9, 0.7, -0.2 | 2 | -1 (missed) | 2 |
#
# Two accuracies: on the four solutions with an error the step must be found exactly, on the two correct ones nothing
# must be reported. At -0.5 they are 3/4 and 2/2. **Step F1** is their harmonic mean: 2 * 0.75 * 1 / 1.75 = 6/7. At 0
# they are 3/4 and 1/2, so 2 * 0.75 * 0.5 / 1.25 = 0.6.

# %%
solutions = [[1.0, -2.0, -0.1], [0.5, 0.8, 0.3], [0.2, -0.4], [-1.0, 0.6, 0.1], [0.4, -0.3, -1.5], [0.9, 0.7, -0.2]]
labels = [1, -1, -1, 0, 2, 2]
low, zero = step_f1_at(solutions, labels, -0.5), step_f1_at(solutions, labels, 0.0)
assert (low.error_accuracy, low.correct_accuracy) == (0.75, 1.0) and math.isclose(low.f1, 6 / 7)
assert (zero.error_accuracy, zero.correct_accuracy) == (0.75, 0.5) and math.isclose(zero.f1, 0.6)

# %% [markdown]
# The best threshold lies anywhere above -1.0 (below it D is lost) and up to -0.4 (above it C is a false alarm).
# `best_threshold` finds it exactly and returns the middle, -0.7. A threshold chosen on the same solutions that it is
# judged on is called **oracle**. It flatters: here six solutions chose a number for six solutions. The tables of this
# package print a **cross-fitted** one beside it, chosen on other problems. Tutorial 2 shows both.

# %%
best = best_threshold(solutions, labels)
assert math.isclose(best.threshold, -0.7) and math.isclose(best.f1, 6 / 7)

grid = [number / 100 for number in range(-250, 120)]
curve = [step_f1_at(solutions, labels, threshold).f1 for threshold in grid]
assert max(curve) <= best.f1  # no threshold is better
figure, axes = pyplot.subplots(figsize=(8, 3.5), layout="constrained")
axes.plot(grid, curve, color="#1f4e79")
axes.axvline(best.threshold, color="#c0392b", linestyle="--", label=f"best: {best.threshold:.2f}")
axes.set(xlabel="threshold", ylabel="step F1 of the six solutions", ylim=(0, 1))
axes.legend()
figure.savefig(OUT / "threshold.png", dpi=120)
pyplot.close(figure)

# %% [markdown]
# ## What training does
#
# Nobody labels steps for training. A verifier says of each whole solution whether its final answer is right: outcome
# 1 or 0. IPVRM asks *every* prefix to tell the outcome, with a margin m = 5:
#
# - outcome 1: loss of a prefix = softplus(m - z), small once z is above m;
# - outcome 0: loss of a prefix = softplus(m + z), small once z is below -m;
#
# where softplus(x) = log(1 + e^x). The loss of a solution is the mean over its prefixes.
#
# Before the first step of training the reward model *is* the reference. All log-ratios are 0, all values are 0, and
# the loss is softplus(5) = 5.0067 whatever the outcomes. If your first logged loss is another number, your reference
# is not the model that you started from.

# %%
MARGIN = 5.0
wrong = tensor([0.0])
start = ipvrm_loss(torch.zeros(1, 11), wrong, mask, beta=BETA, margin=MARGIN).item()
assert math.isclose(start, math.log1p(math.exp(5)), rel_tol=1e-6)

now = ipvrm_loss(log_ratios, wrong, mask, beta=BETA, margin=MARGIN).item()
mean_by_hand = sum(math.log1p(math.exp(MARGIN + value)) for value in z.tolist()) / 11
assert math.isclose(now, mean_by_hand, rel_tol=1e-6)
print(f"loss of the solution (outcome 0): {start:.4f} before training, {now:.4f} with the log-ratios above")

# %% [markdown]
# The early prefixes of our solution are counted as wrong too, although step 0 is right: they *began* a solution that
# ended wrong. That is not a defect. Other solutions of the same problem begin alike and end right. What is left on
# average is how often such a beginning ends right.
#
# Compare Implicit PRM: binary cross-entropy on `0.05 * (sum of all log-ratios)`. It sees the sum alone. Reverse the
# order of the log-ratios, and its loss stays the same while IPVRM's changes.

# %%
turned = log_ratios.flip(-1)
same = [implicit_prm_loss(ratios, wrong, mask, beta=0.05).item() for ratios in (log_ratios, turned)]
other = [ipvrm_loss(ratios, wrong, mask, beta=BETA, margin=MARGIN).item() for ratios in (log_ratios, turned)]
assert math.isclose(same[0], same[1], rel_tol=1e-6) and not math.isclose(other[0], other[1], rel_tol=1e-3)

figure, axes = pyplot.subplots(figsize=(8, 3.5), layout="constrained")
line = torch.linspace(-10, 10, 200)
axes.plot(line, torch.nn.functional.softplus(MARGIN - line), color="#1f7a4d", label="outcome 1 (right)")
axes.plot(line, torch.nn.functional.softplus(MARGIN + line), color="#c0392b", label="outcome 0 (wrong)")
axes.scatter(z, torch.nn.functional.softplus(MARGIN + z), color="black", zorder=3, s=14, label="our eleven prefixes")
axes.set(xlabel="z = V / t", ylabel="loss of a prefix")
axes.legend()
figure.savefig(OUT / "loss.png", dpi=120)
pyplot.close(figure)

# %% [markdown]
# ## Where you may stumble
#
# - `mask must be boolean, found torch.float32`: masks are `torch.bool`; make one from lengths (`torch.arange(T) <
#   lengths[:, None]`), not from `ids != pad_token_id`: for many models that is also the token that ends a response.
# - `outcomes must be 0 or 1`: scores such as 0.5 are no outcomes. Decide first what counts as right.
# - A log-ratio needs both models to have read *the same tokens*: same tokenizer, same prompt, same chat template.
#
# Next: `2_your_trajectories.py` does all this with a model and data of your own.

# %%
print(f"pictures: {', '.join(str(path) for path in sorted(OUT.glob('*.png')))}")
