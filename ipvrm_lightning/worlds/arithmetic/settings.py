"""What a world is made of: its settings by size, their fingerprint, and where it lies."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from ipvrm_lightning.worlds.arithmetic.problems import Difficulty, Noise

Size = Literal["small", "full"]

#: Raised whenever the same settings would give another world, so that no stale one is read.
SOURCE_VERSION = 2


@dataclass(frozen=True)
class WorldSettings:
    """Everything that determines a world.

    The training mixture holds a share of each surface format, so that the reference knows all three; rollouts, and so
    reward training, are in format 0 only. The other two are then a shift for the reward model, not for its reference.

    Args:
        size: name of the size these settings started from.
        seed: of problems, weights, order of training and sampling.
        difficulty: of the problems that are judged.
        hidden_size: width of the policy.
        layers: its depth.
        heads: its attention heads.
        intermediate_size: width of its feed-forward layers.
        initializer_range: spread of its first weights.
        rope_theta: base of its rotary positions.
        sft_problems: problems it is fine-tuned on; traces of fewer lines than judged problems among them.
        sft_tokens: tokens it is fine-tuned on, prompts included; with `sft_target`, at most so many.
        sft_target: fine-tune until right traces of new problems have this mean probability, then let the learning rate
            fall over `decay_tokens`; None for a cosine over `sft_tokens`. Seeds learn to add at very different times:
            a fixed length leaves some policies half-trained.
        decay_tokens: see `sft_target`.
        window_tokens: tokens of one optimiser step.
        learning_rate: of matrices (Muon), highest of the cosine schedule; a fifth of it for the rest (Adam).
        ramp: share of the fine-tuning during which the longest problems grow from one line to the full length.
        format_shares: of the three formats in fine-tuning.
        noise_rates: operation to share of its lines that are wrong in fine-tuning.
        copy_noise: share of lines that use the value of another name.
        answer_noise: share of answers that state the value of another name.
        train_prompts: prompts of reward training.
        train_rollouts: responses to each.
        validation_prompts: prompts of reward validation, `train_rollouts` responses each.
        test_prompts: problems whose solutions are judged step by step, one solution each, in each format.
        best_of_prompts: of the test problems, how many have 8 rollouts to choose from.
        truth_solutions: of the test solutions, how many have their prefixes' true values sampled.
        truth_continuations: continuations sampled per prefix.
    """

    size: str
    seed: int
    difficulty: Difficulty = field(default_factory=Difficulty)
    hidden_size: int = 96
    layers: int = 4
    heads: int = 4
    intermediate_size: int = 288
    initializer_range: float = 0.08
    rope_theta: float = 1000.0
    sft_problems: int = 30000
    sft_tokens: int = 2_600_000
    sft_target: float | None = 0.06
    decay_tokens: int = 200_000
    window_tokens: int = 1000
    learning_rate: float = 2e-2
    ramp: float = 0.3
    format_shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
    noise_rates: dict[str, float] = field(
        default_factory=lambda: {"add": 0.01, "gap": 0.015, "mul": 0.03, "min": 0.01, "max": 0.01, "mod": 0.03}
    )
    copy_noise: float = 0.003
    answer_noise: float = 0.005
    train_prompts: int = 800
    train_rollouts: int = 6
    validation_prompts: int = 80
    test_prompts: int = 300
    best_of_prompts: int = 100
    truth_solutions: int = 40
    truth_continuations: int = 16

    @property
    def noise(self) -> Noise:
        """How often lines of fine-tuning traces are wrong."""
        return Noise(self.noise_rates, self.copy_noise, self.answer_noise)

    @property
    def max_new_tokens(self) -> int:
        """Longest response that is sampled: every line of the longest problem with numbers of four digits."""
        return 20 * (self.difficulty.max_steps + 1)

    @property
    def fingerprint(self) -> str:
        """Hash of all settings and of the version of the code that uses them, 12 hexadecimal digits."""
        text = json.dumps([SOURCE_VERSION, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


SIZES: dict[str, dict[str, Any]] = {
    "small": {},
    "full": {
        "train_prompts": 1600,
        "test_prompts": 500,
        "best_of_prompts": 150,
        "truth_solutions": 60,
    },
}


def make_settings(size: str, seed: int, overrides: dict[str, Any] | None = None) -> WorldSettings:
    """Settings of a size, with some of them replaced.

    Args:
        size: "small" or "full".
        seed: of the world.
        overrides: fields of `WorldSettings`, and of its `difficulty` under that key.

    Raises:
        ValueError: an unknown size or field.
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, not {size!r}")
    settings = WorldSettings(size=size, seed=seed)
    chosen = dict(overrides or {})
    difficulty = chosen.pop("difficulty", {})
    known = {item.name for item in fields(WorldSettings)} - {"size", "seed"}
    for name in (*SIZES[size], *chosen):
        if name not in known:
            raise ValueError(f"overrides: the world has no setting {name!r}; there are {', '.join(sorted(known))}")
    chosen = {name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()}
    try:
        chosen["difficulty"] = replace(settings.difficulty, **difficulty)
    except TypeError as error:
        raise ValueError(f"overrides.difficulty: {error}") from None
    return replace(settings, **{**SIZES[size], **chosen})


@dataclass(frozen=True)
class ArithmeticWorld:
    """Names a world: which one, and where it lies once it is built.

    Args:
        size: "small", or "full" for more prompts; the published comparisons use "small".
        seed: of everything in it.
        root: folder of worlds; None for the environment variable IPVRM_WORLDS, else outputs/worlds.
        overrides: settings to replace, see `WorldSettings`.
    """

    size: Size = "small"
    seed: int = 0
    root: str | None = None
    overrides: dict[str, Any] | None = None

    @property
    def settings(self) -> WorldSettings:
        """All settings.

        Raises:
            ValueError: an unknown size or setting.
        """
        return make_settings(self.size, self.seed, self.overrides)

    @property
    def folder(self) -> Path:
        """Where the world lies, whether it is built or not."""
        root = Path(self.root or os.environ.get("IPVRM_WORLDS") or "outputs/worlds")
        settings = self.settings
        return root / f"{settings.size}-seed{settings.seed}-{settings.fingerprint}"

    @property
    def is_built(self) -> bool:
        """Whether it can be read: folders appear whole or not at all."""
        return (self.folder / "world.json").is_file()
