"""How high a log-ratio value can rise: at most beta times the mean negative log-likelihood under the reference.

    python benchmarks/value_bound.py

No probability exceeds 1, so log pi - log pi_ref <= -log pi_ref per token, and the normalised value of a response is at
most beta * NLL / T whatever the reward model has learnt. Printed for the 8 rollouts per prompt of the built-in world
(small, seed 0): the bound as a probability, for right and wrong responses, and best-of-8 by plain likelihood.
"""

from __future__ import annotations

import argparse

import torch

from ipvrm_lightning.functional.best_of_n import best_of_n, pass_at_1
from ipvrm_lightning.models.logprobs import response_scores
from ipvrm_lightning.worlds.arithmetic import ArithmeticDataModule, ArithmeticPolicy

BETA = 10.0


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    policy = ArithmeticPolicy(size="small", seed=0)
    data = ArithmeticDataModule(size="small", seed=0, max_tokens=8192)
    data.with_tokenizer(policy.build_tokenizer())
    data.prepare_data()
    data.setup()
    model = policy.build_model().eval()
    dataset = data.test_sets[data.test_names.index("best_of_8")]
    surprise, outcomes, groups = [], [], []
    with torch.no_grad():
        for batch in data.evaluation_loader(dataset):
            surprise.append(-response_scores(model, batch).log_probs.sum(1) / batch.response_lengths)
            outcomes.append(batch.outcomes)
            groups.append(batch.group_ids)
    nll, right, group = torch.cat(surprise), torch.cat(outcomes), torch.cat(groups)
    for name, value in (("right", 1), ("wrong", 0)):
        bound = torch.sigmoid(BETA * nll[right == value])
        low = 100 * (bound < 0.6).float().mean()
        print(f"{name}: {len(bound)} responses, mean NLL {nll[right == value].mean():.3f} nats per token;")
        print(f"  bound on P(ends right): median {bound.median():.2f}, below 0.6 for {low:.0f} %")
    print(f"best of 8 by likelihood under the policy: {100 * best_of_n(-nll, right, group):.1f} %")
    print(f"pass@1: {100 * pass_at_1(right, group):.1f} %")


if __name__ == "__main__":
    main()
