"""L1: the nodes of the autograd graph: ops, leaves, and the outputs of ops with several outputs."""

import itertools
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, ClassVar, NamedTuple

import numpy as np

from minigrad.autograd.hooks import RemovableHandle
from minigrad.backend import Array
from minigrad.backend.dtypes import FLOAT32

Edge = tuple["Node", tuple[int, ...], np.dtype]
"""The destination of an input's gradient: the node that computed the input, and the input's shape and dtype."""


next_age = itertools.count(1).__next__
lock = Lock()


class Node:
    """A node of the graph that `backward` in `tape.py` traverses.

    `edges` connect nodes, not Tensors, so that an activation is freed unless an op saved it. `age` numbers nodes in
    order of creation: the nodes of inputs have smaller numbers, so the reverse order is a topological order.
    """

    edges: Sequence[Edge | None] | None = None  # for each input an Edge, or None: no gradient; None: graph freed
    age: int = 0
    hooks: tuple[Callable[[Array], Array | None], ...] = ()
    cast_back: np.dtype | None = None  # the op computed in float32, and a float32 output was cast to this dtype
    backward_accumulate: Callable[[Any, Array], Any] | None = None  # see `Function`
    where: str = ""  # the name of the module that ran the op; only set under `detect_anomaly`

    def backward(self, grad_output: Any) -> Any:
        """Compute the gradients of the inputs from the gradient of the output."""
        raise NotImplementedError(f"{type(self).__name__} has no backward")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Give an unpickled or copied node a new `age`. Its inputs are unpickled first, so their ages are smaller."""
        self.__dict__.update(state)
        if self.age:
            self.age = next_age()

    @property
    def op_name(self) -> str:
        """The name of the op, also if a fast path runs."""
        return type(self).__name__

    def __repr__(self) -> str:
        return f"<{self.op_name}>"


class Leaf(Node):
    """The node of a leaf Tensor, which accumulates its gradient in `grad` (PyTorch: AccumulateGrad).

    A Tensor refers to its Leaf, and not the Leaf to its Tensor: a cycle would delay freeing. Threads may run backward
    into the same parameters, so a lock guards the accumulation. `age` is 0, smaller than every op's `age`, so backward
    visits leaves last, except leaves with `post_hooks`. While `requires_grad` is False, gradients from graphs recorded
    before are dropped.
    """

    requires_grad: bool = True
    post_hooks: tuple[Callable[[], None], ...] = ()  # called after accumulation, once for each outermost backward
    any_post_hooks: ClassVar[bool] = False  # True once any leaf has had a post-accumulate hook

    def __init__(self) -> None:
        self.grad: Array | None = None
        self.edges = []

    def accumulate(self, grad: Array, owned: bool) -> None:
        """Add a gradient in place. `owned`: nothing else refers to `grad`, so no copy is needed."""
        if not self.requires_grad:
            return
        with lock:
            if self.grad is None:
                self.grad = grad if owned else grad.copy()
            else:
                self.grad += grad

    def add_post_hook(self, hook: Callable[[], None]) -> RemovableHandle:
        """Call `hook()` in each outermost backward, when the gradient from this backward has been accumulated."""
        Leaf.any_post_hooks = True
        with lock:
            self.post_hooks += (hook,)

        def remove() -> None:
            with lock:
                self.post_hooks = tuple(h for h in self.post_hooks if h is not hook)

        return RemovableHandle(remove)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle: without the post-accumulate hooks, which belong to the process."""
        return {name: value for name, value in vars(self).items() if name != "post_hooks"}


class Output(Node):
    """The node of one output of an op with several outputs. The op's `backward` gets a list of the gradients of all
    outputs, with None for an output that the loss does not depend on."""

    def __init__(self, op: Node, index: int, count: int) -> None:
        self.index, self.count, self.age = index, count, next_age()
        self.edges = [(op, (), FLOAT32)]

    def backward(self, grad_output: Array) -> "OutputGrad":
        return OutputGrad(grad_output, self.index, self.count)


class OutputGrad(NamedTuple):
    """The gradient of one output of an op with several outputs."""

    grad: Array
    output_index: int
    num_outputs: int
