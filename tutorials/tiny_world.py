"""The world that tutorials 2, 3, 4 and 6 share: built once, in less than a minute, then read from disk.

Problems are chains of minima and maxima of numbers of one digit (`b = a min 4`). A small language model is trained from
random weights on worked solutions of which some lines are wrong. It then answers new problems, right about half of the
time. A program checks every line, so the first wrong step of each solution is known exactly.
`configs/ipvrm_arithmetic.yaml` uses a larger world of the same kind.
"""

from ipvrm_lightning.worlds.arithmetic import ArithmeticWorld
from ipvrm_lightning.worlds.arithmetic.build import build

#: What is smaller here than in the world of `make demo`, see `ipvrm_lightning.worlds.arithmetic.settings`.
SETTINGS = {
    "difficulty": {
        **{"min_steps": 2, "max_steps": 5, "min_value": 1, "max_value": 9, "side_share": 0.0},
        "weights": [["max", 1.0], ["min", 1.0]],
    },
    "noise_rates": {"min": 0.1, "max": 0.2},
    "hidden_size": 64,
    "intermediate_size": 128,
    "layers": 2,
    "format_shares": [1.0, 0.0, 0.0],
    "sft_problems": 6000,
    "sft_target": None,
    "sft_tokens": 150_000,
    "ramp": 0.5,
    "window_tokens": 350,
    "train_prompts": 150,
    "train_rollouts": 6,
    "validation_prompts": 40,
    "test_prompts": 150,
    "best_of_prompts": 10,
    "truth_solutions": 2,
    "truth_continuations": 4,
}
ROOT = "outputs/tutorials/worlds"


def tiny_world() -> ArithmeticWorld:
    """The world, built if it is not there."""
    world = ArithmeticWorld("small", 0, ROOT, SETTINGS)
    build(world)
    return world
