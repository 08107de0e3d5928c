"""Build a world: `python -m ipvrm_lightning.worlds.arithmetic --size small --seed 0`."""

from __future__ import annotations

import argparse
import json
import logging
import warnings

from ipvrm_lightning.tokenizer_threads import one_thread
from ipvrm_lightning.worlds.arithmetic.settings import SIZES, ArithmeticWorld


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(prog="python -m ipvrm_lightning.worlds.arithmetic", description=__doc__)
    parser.add_argument("--size", choices=list(SIZES), default="small", help="how large (default: small)")
    parser.add_argument("--seed", type=int, default=0, help="of everything in it (default: 0)")
    parser.add_argument("--root", help="folder of worlds (default: $IPVRM_WORLDS, else outputs/worlds)")
    parser.add_argument("--overrides", type=json.loads, default={}, help="settings to replace, a JSON object")
    arguments = parser.parse_args()
    one_thread()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    import torch

    from ipvrm_lightning.worlds.arithmetic.build import build

    # else the number of cores would choose the world: sums depend on how they are divided, and a policy on each bit
    torch.set_num_threads(1)
    world = ArithmeticWorld(arguments.size, arguments.seed, arguments.root, arguments.overrides or None)
    print(build(world))


if __name__ == "__main__":
    main()
