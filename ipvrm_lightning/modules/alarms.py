"""Alarms of a reinforcement-learning run: what goes wrong there goes wrong quietly."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Alarms:
    """Bounds beyond which a run says so.

    Lengths and numbers of steps are compared with their mean over the first `baseline` steps of the run.

    Args:
        length_factor: response length may grow or shrink by this factor.
        step_factor: the number of solution steps in a response may grow or shrink by this factor.
        max_kl: largest mean KL of the policy that sampled from the updated one, in nats per token.
        min_reward_accuracy: share of responses whose value tells their outcome, averaged over `patience` steps, at or
            below which the alarm sounds; 0.5 is chance where both outcomes are equally many.
        patience: steps over which the accuracy is averaged.
        baseline: steps that the first means are taken over.
    """

    length_factor: float = 2.0
    step_factor: float = 2.0
    max_kl: float = 0.1
    min_reward_accuracy: float = 0.5
    patience: int = 5
    baseline: int = 3
    state: dict[str, list[float]] = field(default_factory=dict, init=False, repr=False)

    def check(self, metrics: dict[str, float]) -> dict[str, str | None]:
        """What is wrong, by the name of the alarm; None where nothing is.

        Args:
            metrics: of one step; names as in the log, without `train/`.
        """
        found = {
            "length": self._drift("response_tokens", metrics["response_tokens"], self.length_factor),
            "steps": self._drift("response_steps", metrics["response_steps"], self.step_factor),
            "kl": None,
        }
        if (kl := metrics.get("approx_kl", 0.0)) > self.max_kl:
            found["kl"] = f"KL of the policy that sampled from the updated one is {kl:.3g}, beyond {self.max_kl:g}"
        if "reward/accuracy" in metrics:
            recent = self.state.setdefault("reward_accuracy", [])
            recent.append(metrics["reward/accuracy"])
            del recent[: -self.patience]
            mean = sum(recent) / len(recent)
            low = len(recent) == self.patience and mean <= self.min_reward_accuracy
            text = f"the reward model tells {mean:.1%} of outcomes over {self.patience} steps"
            found["reward_accuracy"] = text if low else None
        return found

    def _drift(self, name: str, value: float, factor: float) -> str | None:
        first = self.state.setdefault(name, [])
        if len(first) < self.baseline:
            first.append(value)
            return None
        start = sum(first) / len(first)
        if start > 0 and not start / factor <= value <= start * factor:
            return f"{name} is {value:.4g}, at the start of the run it was {start:.4g}"
        return None
