"""L6: the cost of any module, submodule by submodule: `print(summary(module, (1, 3, 32, 32)))`."""

from collections import Counter
from collections.abc import Sequence

from minigrad import nn
from models.model import prefixes
from models.summary.cost import Shape, parameters, trace
from models.terminal import table


def summary(module: nn.Module, input_shape: Sequence[int], depth: int | None = None) -> str:
    """A table of a module for one input: each submodule with its class, output, parameters and multiply-accumulates
    (MACs), its own submodules included. The forward runs on shapes alone, in evaluation mode: a module without an op,
    such as Dropout, has no output of its own.

    Args:
        module: a module whose `forward` takes one float32 Tensor.
        input_shape: the shape of the Tensor, such as (1, 3, 32, 32).
        depth: levels of submodules; None: all.
    """
    outputs: dict[str, Shape] = {}
    products = Counter[str]()
    for call in trace(module, input_shape):
        for name in _around(call.module):
            outputs[name] = call.output
            products[name] += call.macs
    lines = [["module", "class", "output", "parameters", "MACs"]]
    total, *modules = module.named_modules()
    for name, inner in [*modules, total]:
        level = name.count(".")
        if depth is None or level < depth:
            output = " x ".join(map(str, outputs.get(name, ())))
            cells = [type(inner).__name__, output, f"{parameters(inner):,}", f"{products[name]:,}"]
            lines.append(["  " * level + name.rpartition(".")[2] if name else "total", *cells])
    return table(lines, left=(0, 1, 2))


def _around(name: str) -> list[str]:
    """A module and the modules around it, down to the outermost, whose name is empty."""
    return [*prefixes(name), ""] if name else [""]
