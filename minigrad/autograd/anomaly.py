"""L1: observers, called for every op of a thread, and `detect_anomaly`, which finds the origin of NaN and Inf."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from minigrad.autograd.function import Function, Partial
from minigrad.autograd.grad_mode import mode_set
from minigrad.autograd.node import Node
from minigrad.backend import Array, array_module
from minigrad.backend.dtypes import is_floating, upcast


class Observer:
    """A base class: the methods are called for every op within `observing(observer)`.

    `path`: the running modules, outermost first.
    """

    def __init__(self) -> None:
        self.path: list[Any] = []  # updated by `nn.Module.__call__`

    def forward(self, node: Function, arrays: list[Any], output: Array) -> None:
        """Called after `node.forward(*arrays)`, with the output, or the last of several outputs."""

    def backward(self, node: Node, grad_output: Array, results: tuple[Any, ...]) -> None:
        """Called after `node.backward(grad_output)`, with the gradients of the inputs (`results`)."""

    def module_path(self) -> str:
        """The name of the running module within the outermost running module: `blocks.3.attn.qkv`."""
        if not self.path:
            return ""
        names = {id(module): name for name, module in self.path[0].named_modules()}
        return names.get(id(self.path[-1]), type(self.path[-1]).__name__) or type(self.path[0]).__name__


@contextmanager
def observing(observer: Observer) -> Iterator[Observer]:
    """Within the block, call `observer` for every op of this thread. In nested blocks only the innermost is called."""
    with mode_set(observer=observer):
        yield observer


class NonFiniteError(FloatingPointError):
    """An op computed a NaN or an infinity under `detect_anomaly`."""


class NonFiniteGuard(Observer):
    """Checks every output and every gradient of an op for NaN and infinity."""

    def forward(self, node: Function, arrays: list[Any], output: Array) -> None:
        node.where = self.module_path()
        if _finite(output):
            return
        non_finite = [i for i, x in enumerate(arrays) if not _finite(x)]
        origin = f"input {non_finite[0]} was already not finite" if non_finite else "all inputs were finite"
        raise NonFiniteError(
            f"{_name(node)} computed {_count(output)} in its output of shape {output.shape}; {origin}. "
            f"Inputs: {describe(arrays)}"
        )

    def backward(self, node: Node, grad_output: Array, results: tuple[Any, ...]) -> None:
        for i, result in enumerate(results):
            values = result.values if type(result) is Partial else result
            if not _finite(values):
                origin = "finite" if _finite(grad_output) else "already not finite"
                raise NonFiniteError(
                    f"{_name(node)}.backward computed {_count(values)} in the gradient of input {i}, shape "
                    f"{values.shape}; grad_output, shape {grad_output.shape}, was {origin}"
                )


def detect_anomaly() -> AbstractContextManager[Observer]:
    """Within the block, the first op that computes a NaN or an infinity raises an error, which names the op, its shapes
    and its module.

    Every array is read once more, so a training step is two to three times slower. Intended infinities, as in
    `masked_fill(mask, -inf)`, raise an error too: use a large finite value instead.
    """
    return observing(NonFiniteGuard())


def describe(arrays: list[Any]) -> str:
    """The shapes and dtypes of arrays, for error messages: `(2, 3) float32, (3,) float32, None`."""
    return ", ".join(f"{x.shape} {x.dtype}" if hasattr(x, "dtype") else repr(x) for x in arrays)


def _name(node: Node) -> str:
    return node.op_name + (f" (in {node.where})" if node.where else "")


def _finite(x: Any) -> bool:
    if x is None or not hasattr(x, "dtype") or not is_floating(x.dtype):
        return True
    (x,) = upcast([x])
    return bool(array_module(x).isfinite(x).all())


def _count(x: Array) -> str:
    xp, (x,) = array_module(x), upcast([x])
    return f"{int(xp.isnan(x).sum())} NaN and {int(xp.isinf(x).sum())} Inf"
