# %% [markdown]
# # 4. DistRL: from a supervised model to a better policy, and whether the dense credit is real
#
# The policy here is the tiny world's model: it answers problems right about half of the time. We train a reward model
# on its labelled answers, then the policy with DistRL, and compare with GRPO on equal samples. Then comes the part
# that most reports leave out: three measurements of whether the token-level credit means anything.
#
#     python tutorials/4_distrl.py
#
# With so few steps the gain, if there is one, is smaller than its interval. You learn here where to look.

# %%
import csv
import math
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draw to files; leave this line out in a notebook
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from matplotlib import pyplot
from tiny_world import ROOT, SETTINGS, tiny_world

from ipvrm_lightning.data import TrajectoryDataModule, collate
from ipvrm_lightning.functional import pearson_correlation, td_advantages
from ipvrm_lightning.models import PretrainedLanguageModel
from ipvrm_lightning.models.candidates import behavior_scores, candidate_log_probs
from ipvrm_lightning.models.logprobs import response_mask
from ipvrm_lightning.modules import DistRLModule, IPVRMModule
from ipvrm_lightning.modules.distrl_settings import AdvantageSettings, PolicyUpdate, RewardModel
from ipvrm_lightning.modules.experience import ScoredBatch, set_advantages, to_dataset, totals
from ipvrm_lightning.modules.policy_loss import policy_loss
from ipvrm_lightning.modules.processes import Processes
from ipvrm_lightning.modules.schedule import Schedule
from ipvrm_lightning.objectives import IPVRM
from ipvrm_lightning.rollouts import Sampling, Submission
from ipvrm_lightning.rollouts.groups import answer_prompts
from ipvrm_lightning.rollouts.sampler import sample_responses
from ipvrm_lightning.worlds.arithmetic import ArithmeticPromptData, ArithmeticVerifier

OUT = Path("outputs/tutorials/4_distrl")
OUT.mkdir(parents=True, exist_ok=True)
seed_everything(0)
world = tiny_world()
supervised = PretrainedLanguageModel(name=str(world.folder / "policy"))
LONGEST = world.settings.max_new_tokens


def trainer_of(name, **options):
    """A trainer that logs to its own folder."""
    return Trainer(
        accelerator="cpu", devices=1, use_distributed_sampler=False, logger=CSVLogger(OUT, name="", version=name),
        log_every_n_steps=1, default_root_dir=OUT, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, num_sanity_val_steps=0, **options,
    )  # fmt: skip


# %% [markdown]
# ## The reward model
#
# As in tutorial 2: the policy's own labelled answers, the IPVRM objective, the supervised model as reference.

# %%
reward_module = IPVRMModule(
    language_model=supervised,
    objective=IPVRM(beta=10.0, margin=5.0),
    optimizer=partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.0),
    scheduler=Schedule(name="cosine", warmup=0.1),
)
rollouts = TrajectoryDataModule(
    train=str(world.folder / "train.jsonl"), batch_size=32, max_tokens=4096, validation_fraction=0.2
)
reward_trainer = trainer_of("reward_model", max_epochs=1)
reward_trainer.fit(reward_module, datamodule=rollouts)
checkpoint = OUT / "reward_model.ckpt"
reward_trainer.save_checkpoint(checkpoint)
print(f"reward model: val/auroc {float(reward_trainer.callback_metrics['val/auroc']):.3f} (0.5 is guessing)")

# %% [markdown]
# ## The policy
#
# One step of `DistRLModule`:
#
# 1. sample groups of answers to prompts and verify them; keep prompts with both outcomes;
# 2. update the reward model on them;
# 3. update the policy on the *sampled tokens* (their advantage: the outcome against its group, plus 0.05 times the
#    reward model's generalised TD advantage), and
# 4. on the *candidates*: other tokens that the policy holds likelier than 0.1 at the same position, whose TD
#    advantage the reward model gives from the same forward pass. Weight: `distribution_coef`, the paper's alpha.
#
# Without `reward` and with `distribution_coef=0` the same module is GRPO. Everything else is equal: the same seed
# draws the same prompts and, in the first step, the same answers.

# %%
STEPS = 16
sampling = Sampling(group_size=8, max_new_tokens=LONGEST, seed=0)
evaluation = Sampling(group_size=4, max_new_tokens=LONGEST, seed=1)


def make_policy(reward, distribution_coef):
    """The supervised policy, to be trained."""
    return DistRLModule(
        language_model=supervised,
        verifier=ArithmeticVerifier(),
        sampling=sampling,
        reward=reward,
        advantages=AdvantageSettings(outcome_coef=1.0, gae_coef=0.05),
        update=PolicyUpdate(distribution_coef=distribution_coef, top_k=5, min_probability=0.1),
        optimizer=partial(torch.optim.AdamW, lr=5e-4, weight_decay=0.0),
        evaluation=evaluation,
        step_separator="\n",
    )


def pass_rate(trainer, module):
    """Share of right answers to held-out problems, with its interval."""
    trainer.test(module, datamodule=ArithmeticPromptData(root=ROOT, overrides=SETTINGS), verbose=False)
    return module.test_report["average_at_k"].micro.average


reward = RewardModel(
    objective=IPVRM(beta=10.0, margin=5.0),
    checkpoint=str(checkpoint),
    reference="behavior",
    update="before",
    optimizer=partial(torch.optim.AdamW, lr=1e-4, weight_decay=0.0),
)
results = {}
for name, policy in {"GRPO": make_policy(None, 0.0), "DistRL": make_policy(reward, 0.1)}.items():
    seed_everything(0)
    trainer = trainer_of(name.lower(), max_epochs=1, limit_train_batches=STEPS, limit_val_batches=0)
    if not results:
        results["supervised"] = pass_rate(trainer, policy)
    trainer.fit(policy, datamodule=ArithmeticPromptData(root=ROOT, overrides=SETTINGS, batch_size=8))
    results[name] = pass_rate(trainer, policy)

# %% [markdown]
# ## Is it better?
#
# Pass rate on held-out problems, four answers each, with a 95 % interval over problems. Two runs that start from the
# same policy and see the same problems differ by less than the intervals suggest, but one seed is one seed. Claims
# about methods need several (`benchmarks/policy.py` runs five).

# %%
for name, rate in results.items():
    interval = f"[{100 * rate.interval.low:.1f}, {100 * rate.interval.high:.1f}]"
    print(f"{name:>10}: {100 * rate.share:.1f} % {interval}{'' if name == 'supervised' else f' after {STEPS} steps'}")

# %% [markdown]
# ## Is the credit real? 1: what the log says
#
# | logged under `train/` | what to ask of it |
# | --- | --- |
# | `candidates` | unsampled tokens that count, per position. Near 0 there is nothing for the candidate branch to do |
# | `candidate_mass` | probability that sampled token and candidates cover together |
# | `reward/correlation` | of the final value and the outcome, over the step's answers. Near 0 the values say nothing |
# | `loss/candidate` | before alpha |
# | `entropy` | of the policy, in nats. Where it falls to 0 there are no candidates, and nothing new is tried |
# | `approx_kl` | how far the step's updates moved the policy, in nats per token, on some of its answers |
# | `clipped/token` | tokens whose ratio has left the clip within a step. 0 here: there is one update a step |

# %%
logged = list(csv.DictReader((OUT / "distrl" / "metrics.csv").open()))
curves = {}
for name in ("outcome", "candidates", "candidate_mass", "reward/correlation", "loss/candidate", "entropy"):
    curves[name] = [float(row[f"train/{name}"]) for row in logged if row.get(f"train/{name}")]
    mean = sum(curves[name]) / len(curves[name])
    print(f"{name:>20}: {curves[name][0]:8.4f} in the first step, {mean:8.4f} on average")

figure, panels = pyplot.subplots(1, 3, figsize=(11, 3), layout="constrained")
for axes, name in zip(panels, ("outcome", "candidates", "reward/correlation"), strict=True):
    axes.plot(range(1, len(curves[name]) + 1), curves[name], marker="o", color="#1f4e79")
    axes.set(xlabel="step", title=f"train/{name}")
figure.savefig(OUT / "curves.png", dpi=120)
pyplot.close(figure)

# %% [markdown]
# ## Is the credit real? 2: against the truth
#
# At a position, the candidate branch claims: "this other token is better than the one that was sampled, by so much".
# In a world with a verifier the claim can be tested. Take the prefix with either token, sample continuations, and
# count how many end right. The difference of the two shares is the truth.
#
# First, answers of the supervised policy to held-out problems, its candidates, and the reward model's TD advantages
# of them.

# %%
policy, tokenizer = supervised.build_model().eval(), supervised.build_tokenizer()
scorer = reward_module.model.to("cpu").eval()
prompts = ArithmeticPromptData(root=ROOT, overrides=SETTINGS).with_tokenizer(tokenizer)
prompts.setup()
options = {"end_token_ids": [tokenizer.eos_token_id], "batch_size": 256, "seed": 2}
two = Sampling(group_size=2, max_new_tokens=LONGEST)
groups = answer_prompts(policy, tokenizer, ArithmeticVerifier(), prompts.test_prompts, two, **options)
answers = to_dataset(groups)
batch = collate(answers, range(len(answers)))
behavior = behavior_scores(policy, batch, top_k=5, min_probability=0.1)
with torch.no_grad():
    log_probs, _ = candidate_log_probs(scorer, batch, behavior.candidates)
advantages = td_advantages(log_probs - behavior.log_probs, response_mask(batch), beta=10.0)  # [B, T, K]

# %% [markdown]
# Now some positions that have a candidate besides the sampled token (number 0), and the truth of both tokens.

# %%
POSITIONS, CONTINUATIONS = 40, 16
others = behavior.candidates.mask.clone()
others[..., 0] = False
found = others.nonzero()
order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))[:POSITIONS]
places = [(row, position, k) for row, position, other in found[order].tolist() for k in (0, other)]


def prefix_of(row, position, k):
    """Prompt, and the response up to a position with the k-th candidate there."""
    start = int(batch.response_starts[row])
    written = batch.input_ids[row, start : start + position].tolist()
    return batch.input_ids[row, :start].tolist(), [*written, int(behavior.candidates.ids[row, position, k])]


prefixes = [prefix_of(*place) for place in places]
continuations = sample_responses(
    policy, [[*prompt, *written] for prompt, written in prefixes], num_return_sequences=CONTINUATIONS,
    max_new_tokens=LONGEST, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, seed=3,
)  # fmt: skip
truths = []
for (row, _, _), (_, written), continued in zip(places, prefixes, continuations, strict=True):
    right_answer = groups[int(answers.groups[answers.group_ids[row]])].prompt.ground_truth
    if written[-1] == tokenizer.eos_token_id:  # the response ends here; there is nothing to continue
        texts = [tokenizer.decode(written[:-1])]
    else:  # one that did not end by itself counts as wrong
        texts = [tokenizer.decode([*written, *r.input_ids[:-1]]) if r.finished else "" for r in continued]
    verdicts = ArithmeticVerifier().verify([Submission("", text, right_answer) for text in texts])
    truths.append(sum(verdict.correct for verdict in verdicts) / len(verdicts))
truth = torch.tensor(truths).view(-1, 2)
claimed = torch.tensor([float(advantages[place]) for place in places]).view(-1, 2)
true_difference, claimed_difference = truth[:, 1] - truth[:, 0], claimed[:, 1] - claimed[:, 0]

# %% [markdown]
# If the credit is real, claimed and true differences go together. With n positions a correlation r is uncertain by
# `tanh(atanh(r) +- 1.96 / sqrt(n - 3))`. A scorer that costs nothing belongs beside it: the policy's own preference
# between the two tokens. And the share of true differences that are 0 matters too: there, credit of any size is
# noise.

# %%
likelihood = torch.tensor([float(behavior.log_probs[place]) for place in places]).view(-1, 2)
n = len(true_difference)
for name, scores in {
    "reward model": claimed_difference,
    "policy's own likelihood": likelihood[:, 1] - likelihood[:, 0],
}.items():
    r = float(pearson_correlation(scores, true_difference))
    half = 1.96 / math.sqrt(n - 3)
    low, high = (math.tanh(math.atanh(r) + side * half) for side in (-1, 1))
    print(f"{name:>24}: correlation with the truth {r:5.2f}, 95 % interval [{low:.2f}, {high:.2f}], {n} positions")
print(f"no true difference at {int((true_difference == 0).sum())} of {n} positions")

figure, axes = pyplot.subplots(figsize=(5.5, 4.5), layout="constrained")
axes.scatter(claimed_difference, true_difference, color="#1f4e79", alpha=0.7)
axes.axhline(0, color="black", linewidth=0.6)
axes.axvline(0, color="black", linewidth=0.6)
axes.set(xlabel="TD advantage, candidate minus sampled token", ylabel="share of right ends, candidate minus sampled")
figure.savefig(OUT / "credit.png", dpi=120)
pyplot.close(figure)

# %% [markdown]
# An interval that contains 0 means: at these positions the claim is not shown to be better than noise. Then the
# candidate branch moves the policy in directions that nothing speaks for, and a larger alpha makes that worse, not
# better.
#
# ## Is the credit real? 3: how much it weighs
#
# Good credit that has no weight changes nothing. We sample answers as a step does, and take the gradient of the loss
# with the candidate branch off and on. Their difference is the branch's own. alpha times the ratio of the two norms
# says how much of a step it makes up.

# %%
step = answer_prompts(policy, tokenizer, ArithmeticVerifier(), prompts.train_prompts[:16], sampling, **options)
dataset = to_dataset([group for group in step if group.mixed])
batch = collate(dataset, range(len(dataset)))
part = ScoredBatch(batch, response_mask(batch), behavior_scores(policy, batch, top_k=5, min_probability=0.1))
with torch.no_grad():
    log_probs, _ = candidate_log_probs(scorer, batch, part.behavior.candidates)
part.td_advantages = td_advantages(log_probs - part.behavior.log_probs, part.mask, beta=10.0)
alone = Processes(0, 1, torch.device("cpu"))
set_advantages([part], alone, AdvantageSettings().compute)
gradients = {}
for name, coefficient in (("token", 0.0), ("both", 1.0)):
    policy.zero_grad()
    update = PolicyUpdate(distribution_coef=coefficient)
    loss, _ = policy_loss(policy, part, totals([part], alone), update, temperature=1.0, chunk_size=256)
    loss.backward()
    gradients[name] = torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])
token, candidate = gradients["token"], gradients["both"] - gradients["token"]
print(f"gradient of sampled tokens: norm {token.norm():.4f}")
print(f"gradient of candidates, before alpha: norm {candidate.norm():.4f}")
print(f"alpha 0.1 times their ratio: {0.1 * candidate.norm() / token.norm():.3f}")
print(f"cosine between them: {torch.cosine_similarity(token, candidate, dim=0):.2f}")
for path in sorted(OUT.glob("*.png")):
    print(path)

# %% [markdown]
# ## By command
#
#     ipvrm fit  --config configs/ipvrm_arithmetic.yaml --config configs/world/comparisons.yaml   # the reward model
#     ipvrm fit  --config configs/distrl_arithmetic.yaml
#     ipvrm test --config configs/distrl_arithmetic.yaml --ckpt_path last
#
# `configs/distrl_qwen.yaml` is the same for Qwen3-0.6B and math. `benchmarks/credit.py` measures the credit on five
# larger worlds; what it found is in `benchmarks/results/credit.md`.
#
# ## Where you may stumble
#
# - `step 3: 0 of 8 prompts had both right and wrong responses; nothing was learned`: problems too easy or too hard, or
#   groups too small. Raise `sampling.group_size` or `collecting.oversampling`.
# - `reward.checkpoint ... was trained by ... with beta 10.0, reward.objective is ... with beta 5.0`: give the
#   objective that trained it. Another beta would scale every advantage.
# - `train/cut_off` is high: answers reach `max_new_tokens` and count as wrong. The policy then learns to be short.
# - `step 6: the reward model tells 46.5% of outcomes over 5 steps` is an alarm (`alarms` sets its bounds): the signs
#   of its values are no better than a coin on the current answers.
# - `train/reward/accuracy` near 0.5 says less than it seems: it asks for the *sign* of the value. Look at the
#   correlation.
