"""Is the dense credit real? TD advantages of unsampled tokens against the truth, on the built-in world.

    python benchmarks/credit.py --seeds 0 1 2 3 4

The candidate branch says, at a position, that one token is better than another. In this world that can be checked:
continuations are sampled from the prefix with either token, and the share of right answers is the truth. For positions
of held-out responses where the policy holds a second token likelier than P_min, the table gives how the reward model's
TD difference (candidate minus sampled token) goes with the true difference: correlation over positions, and how often
the sign agrees where the true difference is at least 0.25. The likelihood row takes the policy's own log-probability in
place of a reward model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

from measuring import versions
from objectives import spread
from policy import OBJECTIVES, WORLD, reward_model


class Position(NamedTuple):
    """A position with an alternative: the true difference, and each scorer's."""

    truth: float
    scores: dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--positions", type=int, default=100, help="per seed")
    parser.add_argument("--continuations", type=int, default=32, help="per token")
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES))
    parser.add_argument("--min-probability", type=float, default=0.1)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"))
    arguments = parser.parse_args()
    per_seed = [summarise(positions(arguments, seed)) for seed in arguments.seeds]
    names = list(per_seed[0])
    lines = [
        f"World of `benchmarks/policy.py`, seeds {arguments.seeds}, {arguments.positions} positions each, "
        f"{arguments.continuations} continuations per token, P_min {arguments.min_probability}; mean ± spread.",
        "",
        "| scorer | correlation | of ranks | sign agrees where the true difference is 0.25 or more | such positions |",
        "| --- " * 5 + "|",
    ]
    for name in names:
        cells = [spread([seed[name][i] for seed in per_seed]) for i in range(4)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    sizes = [branches(seed) for seed in arguments.seeds]
    lines += [
        "",
        "Gradients of the two branches at the first step (IPVRM, 16 prompts x 8 responses, no clipping of the norm):",
        "",
        "| | mean ± spread over seeds |",
        "| --- | --- |",
        *(f"| {name} | {spread([size[name] for size in sizes])} |" for name in sizes[0]),
    ]
    command = " ".join(["python benchmarks/credit.py", *sys.argv[1:]])
    text = "\n".join([*lines, "", f"`{command}`; {versions()}"]) + "\n"
    Path(arguments.out).mkdir(parents=True, exist_ok=True)
    (Path(arguments.out) / "credit.md").write_text(text, encoding="utf-8")
    (Path(arguments.out) / "credit.json").write_text(json.dumps(per_seed) + "\n", encoding="utf-8")
    print(text)


def positions(arguments: argparse.Namespace, seed: int) -> list[Position]:
    """Positions of one world's held-out responses, with the truth sampled."""
    import torch

    from ipvrm_lightning.data.dataset import collate
    from ipvrm_lightning.models.candidates import behavior_scores, candidate_log_probs
    from ipvrm_lightning.modules.experience import to_dataset
    from ipvrm_lightning.rollouts import Sampling
    from ipvrm_lightning.rollouts.groups import answer_prompts
    from ipvrm_lightning.worlds.arithmetic import ArithmeticPolicy, ArithmeticPromptData, ArithmeticVerifier

    factory = ArithmeticPolicy(**WORLD, seed=seed)
    policy, tokenizer = factory.build_model().eval(), factory.build_tokenizer()
    data = ArithmeticPromptData(**WORLD, seed=seed)
    data.with_tokenizer(tokenizer).setup()
    options: Any = {"end_token_ids": [tokenizer.eos_token_id], "batch_size": 256}
    sampling = Sampling(group_size=2, max_new_tokens=320)
    groups = answer_prompts(policy, tokenizer, ArithmeticVerifier(), data.test_prompts, sampling, seed=seed, **options)
    dataset = to_dataset(groups)
    batch = collate(dataset, range(len(dataset)))
    behavior = behavior_scores(policy, batch, top_k=5, min_probability=arguments.min_probability)
    scorers = {"policy's own likelihood": behavior.log_probs}
    for objective in arguments.objectives:
        model = factory.build_model().eval()
        weights = torch.load(reward_model(objective, seed), weights_only=True)["state_dict"]
        model.load_state_dict({name.removeprefix("model."): weight for name, weight in weights.items()}, strict=False)
        with torch.no_grad():
            own, _ = candidate_log_probs(model, batch, behavior.candidates)
        scorers[objective] = own - behavior.log_probs
    others = behavior.candidates.mask.clone()
    others[..., 0] = False
    found = others.nonzero()
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))[: arguments.positions]
    chosen = found[order].tolist()
    prompts, tokens = [], []
    for row, position, candidate in chosen:
        start = int(batch.response_starts[row])
        prefix = batch.input_ids[row, : start + position].tolist()
        prompts += [prefix, prefix]
        tokens += [behavior.candidates.ids[row, position, k].item() for k in (0, candidate)]
    truths = true_values(policy, tokenizer, data, dataset, batch, chosen, prompts, tokens, arguments)
    return [
        Position(
            truths[2 * i + 1] - truths[2 * i],
            {name: float(s[row, position, k] - s[row, position, 0]) for name, s in scorers.items()},
        )
        for i, (row, position, k) in enumerate(chosen)
    ]


def true_values(policy: Any, tokenizer: Any, data: Any, dataset: Any, batch: Any, chosen: Any, prompts: Any,
                tokens: Any, arguments: argparse.Namespace) -> list[float]:  # fmt: skip
    """Share of right answers among continuations of each prefix with each token."""
    from ipvrm_lightning.rollouts.sampler import sample_responses
    from ipvrm_lightning.rollouts.verifiers import Submission
    from ipvrm_lightning.worlds.arithmetic import ArithmeticVerifier

    rollouts = sample_responses(
        policy, [[*prefix, token] for prefix, token in zip(prompts, tokens, strict=True)],
        num_return_sequences=arguments.continuations, max_new_tokens=320, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, seed=1,
    )  # fmt: skip
    values = []
    for number, group in enumerate(rollouts):
        row, position, _ = chosen[number // 2]
        start = int(batch.response_starts[row])
        truth = data.test_prompts[int(dataset.groups[dataset.group_ids[row]])].ground_truth
        said = [*batch.input_ids[row, start : start + position].tolist(), tokens[number]]
        ended = tokens[number] == tokenizer.eos_token_id
        texts = [tokenizer.decode(said[:-1] if ended else [*said, *r.input_ids[:-1]]) for r in group]
        verdicts = ArithmeticVerifier().verify([Submission("", text, truth) for text in texts])
        right = [v.correct and (r.finished or ended) for v, r in zip(verdicts, group, strict=True)]
        values.append(statistics.fmean(right))
    return values


def branches(seed: int) -> dict[str, float]:
    """Norms of the token and the candidate branch's gradients on one step's responses, and the cosine between them."""
    import torch

    from ipvrm_lightning.data.dataset import collate
    from ipvrm_lightning.models.candidates import behavior_scores
    from ipvrm_lightning.models.initial_reward import find_initial_reward
    from ipvrm_lightning.models.logprobs import response_mask
    from ipvrm_lightning.models.reference import base_fingerprint
    from ipvrm_lightning.models.roles import build_roles
    from ipvrm_lightning.modules.distrl_settings import AdvantageSettings, PolicyUpdate, RewardModel
    from ipvrm_lightning.modules.experience import ScoredBatch, set_advantages, to_dataset, totals
    from ipvrm_lightning.modules.online_reward import OnlineReward
    from ipvrm_lightning.modules.policy_loss import policy_loss
    from ipvrm_lightning.modules.processes import Processes
    from ipvrm_lightning.objectives import IPVRM
    from ipvrm_lightning.rollouts import Sampling
    from ipvrm_lightning.rollouts.groups import answer_prompts
    from ipvrm_lightning.worlds.arithmetic import ArithmeticPolicy, ArithmeticPromptData, ArithmeticVerifier

    factory = ArithmeticPolicy(**WORLD, seed=seed)
    roles, tokenizer = build_roles(factory), factory.build_tokenizer()
    roles.add_reward()
    settings = RewardModel(objective=IPVRM())
    with roles.use("policy") as policy:
        find_initial_reward(str(reward_model("IPVRM", seed))).load(roles, base_fingerprint(policy))
    data = ArithmeticPromptData(**WORLD, seed=seed)
    data.with_tokenizer(tokenizer).setup()
    with roles.use("policy") as policy:
        options: Any = {"end_token_ids": [tokenizer.eos_token_id], "batch_size": 256, "seed": seed}
        sampling = Sampling(group_size=8, max_new_tokens=320)
        groups = answer_prompts(policy, tokenizer, ArithmeticVerifier(), data.train_prompts[:24], sampling, **options)
        dataset = to_dataset([group for group in groups if group.mixed][:16])
        batch = collate(dataset, range(len(dataset)))
        behavior = behavior_scores(policy, batch, top_k=5, min_probability=0.1)
    part = ScoredBatch(batch, response_mask(batch), behavior)
    OnlineReward(roles, settings, temperature=1.0, chunk_size=256, max_tokens=10**6).score(part)
    one = Processes(0, 1, torch.device("cpu"))
    gradients = {}
    for name, coefficient in (("token", 0.0), ("both", 1.0)):
        set_advantages([part], one, AdvantageSettings().compute)
        with roles.use("policy") as policy:
            policy.zero_grad()
            update = PolicyUpdate(distribution_coef=coefficient)
            loss, _ = policy_loss(policy, part, totals([part], one), update, temperature=1.0, chunk_size=256)
            loss.backward()
            gradients[name] = torch.cat([p.grad.flatten() for p in policy.parameters()])
    token, candidate = gradients["token"], gradients["both"] - gradients["token"]
    others = behavior.candidates.mask[..., 1:].sum() / part.mask.sum()
    return {
        "norm of the token branch": token.norm().item(),
        "norm of the candidate branch before alpha": candidate.norm().item(),
        "alpha 0.1 times their ratio": 0.1 * (candidate.norm() / token.norm()).item(),
        "cosine between them": torch.cosine_similarity(token, candidate, dim=0).item(),
        "candidates besides the sampled token, per position": others.item(),
    }


def summarise(found: list[Position]) -> dict[str, list[float]]:
    """Per scorer: correlation, rank correlation, sign agreement where it matters, and at how many positions."""
    import torch

    from ipvrm_lightning.functional import pearson_correlation, spearman_correlation

    truth = torch.tensor([position.truth for position in found])
    large = truth.abs() >= 0.25
    result = {}
    for name in found[0].scores:
        scores = torch.tensor([position.scores[name] for position in found])
        agrees = ((scores > 0) == (truth > 0))[large].float().mean().item()
        result[name] = [
            float(pearson_correlation(scores, truth)),
            float(spearman_correlation(scores, truth)),
            agrees,
            float(large.sum()),
        ]
    return result


if __name__ == "__main__":
    main()
