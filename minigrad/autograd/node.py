"""L1: a node of the autograd graph: where the gradients of an op go, and in which order nodes are visited."""

import itertools
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from minigrad.backend import Array
from minigrad.backend.dtypes import FLOAT32

Edge = tuple["Node", tuple[int, ...], np.dtype]
"""Where a gradient goes on to: the node that made the input, and the input's shape and dtype."""


next_age = itertools.count(1).__next__
lock = Lock()


class Node:
    """What the engine (`tape.py`) keeps for each op of the graph, for each leaf, and for each of several outputs.

    `edges` join nodes, not Tensors: an activation lives only as long as some op has saved it. `age` counts upwards, so
    a node is younger than those that its inputs came from, and falling age is a topological order.
    """

    edges: Sequence[Edge | None] | None = None  # for each input, where its gradient goes, if anywhere; None: freed
    age: int = 0
    hooks: tuple[Callable[[Array], Array | None], ...] = ()
    cast_back: np.dtype | None = None  # the 16-bit dtype of the output of an op that computed in float32
    where: str = ""  # the module path, noted while `detect_anomaly` is on

    def backward(self, grad_output: Any) -> Any:
        """The gradient of each input, from the gradient of the output."""
        raise NotImplementedError(f"{type(self).__name__} has no backward")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy, or a node from another process, is as young as the ops recorded here: its inputs were made first."""
        self.__dict__.update(state)
        if self.age:
            self.age = next_age()

    @property
    def op_name(self) -> str:
        """The name of the op, whichever implementation runs."""
        return type(self).__name__

    def __repr__(self) -> str:
        return f"<{self.op_name}>"


class Leaf(Node):
    """The end of a path: gradients that arrive here are kept, summed, for the user.

    The leaf holds the gradient and not the Tensor (the Tensor holds the leaf), so there is no reference cycle. Two
    threads may run backward into the same parameters: the sum is taken under a lock. Its age stays 0: older than every
    op, a leaf comes last, whichever process it was made in. While `requires_grad` is off, gradients that arrive from a
    graph recorded before are dropped.
    """

    requires_grad: bool = True

    def __init__(self) -> None:
        self.grad: Array | None = None
        self.edges = []

    def accumulate(self, grad: Array, owned: bool) -> None:
        """Add a gradient, in place; `owned`: nothing else holds this array, so it need not be copied."""
        if not self.requires_grad:
            return
        with lock:
            if self.grad is None:
                self.grad = grad if owned else grad.copy()
            else:
                self.grad += grad


class Output(Node):
    """One of several outputs of an op. Its gradient goes on to the op, whose `backward` takes a list: the gradient of
    each output, or None for one that the loss does not depend on."""

    def __init__(self, op: Node, place: int, count: int) -> None:
        self.place, self.count, self.age = place, count, next_age()
        self.edges = [(op, (), FLOAT32)]

    def backward(self, grad_output: Array) -> "OutputGrad":
        return OutputGrad(grad_output, self.place, self.count)


class OutputGrad(NamedTuple):
    """The gradient of one of several outputs."""

    grad: Array
    place: int
    outputs: int  # how many the op has
