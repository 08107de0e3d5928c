"""What a block with weights in 4 bits keeps for backward under autocast, and how many bytes go in and out of its parts.

    python benchmarks/four_bits.py     # a minute on a CPU, 3 GB; no download

One decoder block of Qwen3-8B's shape with adapters, random weights, one sequence, products in bfloat16. "As
bitsandbytes gives them" leaves products in the precision of what goes in, which is float32 after a norm. Tensors are
counted, not timed: those kept for backward, weights aside, and what every operation other than a product of matrices or
a dequantisation reads and writes, forward and backward. A CPU's operations stand for those of a GPU.
"""

from __future__ import annotations

import argparse
from typing import Any

from measuring import RESULTS, keep, table
from shapes import SHAPES, QuantizedWordModel

#: Counted apart: their cost is of operations, or of weights whatever the number of tokens.
PRODUCTS = ("aten::mm", "bitsandbytes::")
#: Views of what is there.
VIEWS = ("view", "t", "transpose", "expand", "slice", "detach", "unsqueeze", "unsafe_view", "permute", "alias", "split")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--out", default=str(RESULTS))
    arguments = parser.parse_args()
    SHAPES["one block"] = {**SHAPES["qwen3-8b"], "num_hidden_layers": 1, "vocab_size": 1000}
    rows = []
    for name, given in (("as bitsandbytes gives them", True), ("in half precision", False)):
        kept, moved = count(arguments.tokens, as_given=given)
        rows.append([name, f"{kept / 1024 / arguments.tokens:.0f}", f"{moved / 1024 / arguments.tokens:,.0f}"])
    lines = table(["products with 4-bit weights", "KiB a token kept", "KiB a token moved"], rows)
    keep("four_bits", lines, arguments)


def count(tokens: int, *, as_given: bool) -> tuple[int, int]:
    """Bytes kept for backward, and bytes read and written by other operations than products.

    Args:
        tokens: of the sequence.
        as_given: products keep the precision of what goes in.
    """
    import torch
    from bitsandbytes.nn import Linear4bit
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    torch.manual_seed(0)
    model: Any = QuantizedWordModel("one block").build_model()
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype, module.compute_type_is_set = torch.bfloat16, True  # as on a GPU
            if as_given:
                module._forward_pre_hooks.clear()
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    moved = 0

    def pack(tensor: Any) -> Any:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal moved
            result = operation(*args, **(kwargs or {}))
            name = operation.name()
            if not name.startswith(PRODUCTS) and name.split("::")[1].split(".")[0].lstrip("_") not in VIEWS:
                tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
                moved += sum(t.numel() * t.element_size() for t in tensors if t.numel() > 10_000)
            return result

    ids = torch.randint(3, model.config.vocab_size, (1, tokens))
    with torch.autocast("cpu", torch.bfloat16), Count():
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            states = model.get_base_model().model(input_ids=ids)[0]
        states.float().square().sum().backward()
    return sum(kept.values()), moved


if __name__ == "__main__":
    main()
