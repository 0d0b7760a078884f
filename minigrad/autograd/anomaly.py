"""L1: observers of the ops of a thread, and the one that finds where a NaN or an infinity begins."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from minigrad.autograd.function import Function, Partial
from minigrad.autograd.grad_mode import mode_set
from minigrad.autograd.node import Node
from minigrad.backend import Array, array_module
from minigrad.backend.dtypes import is_floating, upcast


class Observer:
    """Sees every op of a thread, within `observing(...)`. `path` holds the modules now running, outermost first."""

    def __init__(self) -> None:
        self.path: list[Any] = []  # kept by `nn.Module`

    def forward(self, node: Function, arrays: list[Any], output: Array) -> None:
        """`node.forward` took these arrays, and made `output`: of several outputs, the last."""

    def backward(self, node: Node, grad_output: Array, results: tuple[Any, ...]) -> None:
        """`node.backward` took `grad_output`, and made a gradient for each input."""

    def module_path(self) -> str:
        """The dotted name of the running module, seen from the outermost one: `blocks.3.attn.qkv`."""
        if not self.path:
            return ""
        names = {id(module): name for name, module in self.path[0].named_modules()}
        return names.get(id(self.path[-1]), type(self.path[-1]).__name__) or type(self.path[0]).__name__


@contextmanager
def observing(observer: Observer) -> Iterator[Observer]:
    """Within the block, show `observer` what this thread does; of nested blocks, the inner one's observer sees it."""
    with mode_set(observer=observer):
        yield observer


class NonFiniteError(FloatingPointError):
    """A NaN or an infinity appeared while `detect_anomaly` was on."""


class NonFiniteGuard(Observer):
    """Looks for NaN and infinity in every array an op makes."""

    def forward(self, node: Function, arrays: list[Any], output: Array) -> None:
        node.where = self.module_path()
        if _finite(output):
            return
        culprit = [i for i, x in enumerate(arrays) if not _finite(x)]
        origin = f"input {culprit[0]} already had some" if culprit else "all its inputs were finite: it starts here"
        raise NonFiniteError(
            f"{_name(node)} made {_count(output)} in its output of shape {output.shape}; {origin}. "
            f"Inputs: {describe(arrays)}"
        )

    def backward(self, node: Node, grad_output: Array, results: tuple[Any, ...]) -> None:
        for i, result in enumerate(results):
            values = result.values if type(result) is Partial else result
            if not _finite(values):
                origin = "finite: it starts here" if _finite(grad_output) else "already not finite"
                raise NonFiniteError(
                    f"{_name(node)}.backward made {_count(values)} in the gradient of input {i}, shape {values.shape}; "
                    f"grad_output, shape {grad_output.shape}, was {origin}"
                )


def detect_anomaly() -> AbstractContextManager[Observer]:
    """Within the block, the first op that makes a NaN or an infinity raises an error that names it, its shapes, and
    the module it runs in.

    Every array is read once more, so a step takes two to three times as long. An infinity that is meant, as in
    `masked_fill(mask, -inf)`, is reported too: use a large number there.
    """
    return observing(NonFiniteGuard())


def describe(arrays: list[Any]) -> str:
    """Shapes and dtypes for a message: `(2, 3) float32, (3,) float32, None`."""
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
