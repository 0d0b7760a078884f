"""L1: the tape. How gradients walk back through a graph of Functions; the per-thread modes; observers.

A graph is nothing but nodes: each `Function` knows, for every input, the node that made it. The edges join Functions
and not Tensors, so an activation lives only as long as some op has saved it. There is no cycle: an output points to
its node, a node to the nodes before it, never back.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ContextDecorator, contextmanager
from functools import wraps
from inspect import isgeneratorfunction
from operator import attrgetter
from typing import Any, NamedTuple

from numpy import ndarray

from minigrad.autograd import writes
from minigrad.autograd.function import Function, Partial, unbroadcast
from minigrad.autograd.node import next_age
from minigrad.backend import Array, array_module, plus, whole
from minigrad.backend.dtypes import FLOAT32, cast, is_floating, upcast


class _Mode(threading.local):
    """What each thread decides for itself; a new thread starts with these defaults."""

    grad_enabled: bool = True
    observer: "Observer | None" = None
    autocast: Any = None  # minigrad/autograd/autocast.py


mode = _Mode()
autocasts = 0  # in all threads, as `observers`
observers = 0  # how many there are in all threads: a look at this is cheaper than one at `mode`
lock = threading.Lock()


class Leaf(Function):
    """The end of a path: gradients that arrive here are kept, summed, for the user.

    The leaf holds the gradient and not the Tensor (the Tensor holds the leaf), so there is no cycle between them.
    Two threads may run backward into the same parameters: the sum is taken under a lock. Its age stays 0: older than
    every op, a leaf comes last, whichever process it was made in. While `requires_grad` is off, gradients that arrive
    from a graph recorded before are dropped.
    """

    requires_grad: bool = True

    def __init__(self) -> None:
        self.grad: Array | None = None
        self.edges = []

    def accumulate(self, grad: Array, owned: bool) -> None:
        if not self.requires_grad:
            return
        with lock:
            if self.grad is None:
                self.grad = grad if owned else grad.copy()
            else:
                self.grad += grad


class Output(Function):
    """One of several outputs of an op. It hands its gradient on to the op, whose `backward` gets a list: the gradient
    of each output, or None for one that the loss does not depend on."""

    def __init__(self, op: Function, place: int, count: int) -> None:
        self.place, self.count, self.age = place, count, next_age()
        self.edges = [(op, (), FLOAT32)]

    def backward(self, grad_output: Array) -> "Share":
        return Share(grad_output, self.place, self.count)


class Share(NamedTuple):
    """What an `Output` hands on."""

    grad: Array
    place: int
    outputs: int  # how many the op has


def backward(root: Function, grad_output: Array, retain_graph: bool = False) -> None:
    """Send `grad_output`, the gradient of the loss with respect to root's output, back to every leaf.

    Nodes are visited from young to old, so a node's gradient is complete when its turn comes. Of several gradients for
    one node, a later one is added in place where the sum so far is the engine's own array, else out of place.
    """
    gradients: dict[Function, Any] = {root: grad_output}
    owned, observer, written = set(), mode.observer, writes.latest
    for node in _youngest_first(root):
        grad = gradients.pop(node, None)
        if grad is None:  # every path from the root to here ended in a None
            continue
        if node.hooks:
            for hook in node.hooks:
                replaced = hook(grad)
                grad = grad if replaced is None else replaced
            owned.discard(node)  # a hook may have kept it
            written = writes.latest  # and may have updated parameters
        if type(node) is Leaf:
            node.accumulate(grad, node in owned)
            continue
        if node.age < written:
            _refuse_overwritten(node)
        several = type(grad) is list
        if node.rounded is not None:  # as its inputs were in forward
            grad = upcast(grad) if several else cast(grad, FLOAT32)
        results = node.backward(grad)
        if type(results) is not tuple:
            results = (results,)
        if observer is not None:
            observer.backward(node, next(g for g in grad if g is not None) if several else grad, results)
        edges = node.edges or ()
        if len(results) != len(edges):
            raise TypeError(f"{node!r}.backward returned {len(results)} gradients for {len(edges)} inputs")
        for edge, result in zip(edges, results):  # noqa: B905 (checked above; strict=True costs as much as an op)
            if edge is None or result is None:
                continue
            # Deliver: add `result` to what the node that made this input has received so far.
            target, shape, dtype = edge
            held = gradients.get(target)
            if type(result) is not ndarray:
                if type(result) is Share:
                    gradients.setdefault(target, [None] * result.outputs)[result.place] = result.grad
                    continue
                if type(result) is Partial:
                    result.values = cast(result.values, dtype)
                    if target not in owned:
                        held = array_module(result.values).zeros(shape, dtype) if held is None else held.copy()
                        owned.add(target)
                    gradients[target] = result.add_to(held)
                    continue
                if not hasattr(result, "dtype"):
                    raise TypeError(f"{node!r}.backward must return arrays or None, got {type(result).__name__}")
                result = whole(result)
            # By the contract of Function, nobody else has it, but for what came.
            fresh = result is not grad and result.base is None and not several
            if result.shape != shape:  # the input was broadcast; here, and nowhere else, that is undone
                result, fresh = unbroadcast(result, shape), True
            if result.dtype is not dtype and result.dtype != dtype:
                result, fresh = cast(result, dtype), True
            if held is None:
                gradients[target] = result
                if fresh:
                    owned.add(target)
            elif target in owned:
                held += result
                gradients[target] = held
            else:
                gradients[target] = whole(plus(held, result))
                owned.add(target)
        if not retain_graph:
            node.__dict__.clear()  # what was saved, and the way on: a second backward will find `edges` gone


def _refuse_overwritten(node: Function) -> None:
    """Raises a RuntimeError if an array that the node saved has been written to since."""
    x = writes.overwritten(node)
    if x is not None:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            f"{node!r} saved an array of shape {x.shape} {x.dtype} in forward, and it was written to before backward. "
            "Call backward before the write (an optimizer step, x += y, x[i] = v), or make a new tensor: x = x + y"
        )


def _youngest_first(root: Function) -> list[Function]:
    """All nodes that root depends on, itself included, sorted by falling age: a topological order.

    Raises:
        RuntimeError: a backward has already walked through a part of this graph and freed it.
    """
    nodes, found = [root], {root}
    for node in nodes:  # as in `history`
        if node.edges is None:
            raise RuntimeError(
                "backward through a graph that is gone: its saved arrays were freed by an earlier backward. "
                "Run the forward again, sum the losses and call backward once, or pass retain_graph=True the first time"
            )
        for edge in node.edges:
            if edge is not None and edge[0] not in found:
                found.add(edge[0])
                nodes.append(edge[0])
    nodes.sort(key=attrgetter("age"), reverse=True)
    return nodes


def history(root: Function) -> list[Function]:
    """All nodes that root depends on, itself included, old ones first; not beyond those that backward has freed."""
    nodes, found = [root], {root}
    for node in nodes:  # the list grows while it is walked
        for edge in node.edges or ():
            if edge is not None and edge[0] not in found:
                found.add(edge[0])
                nodes.append(edge[0])
    return sorted(nodes, key=attrgetter("age"))


class _GradMode(ContextDecorator):
    """A context manager that sets this thread's grad mode; also a decorator, with or without brackets."""

    enabled: bool

    def __new__(cls, function: Callable[..., Any] | None = None) -> Any:
        self = super().__new__(cls)
        return self if function is None else self(function)

    def __call__(self, function: Callable[..., Any]) -> Any:
        """Decorate: of a generator, each step runs in this mode, and what is between the steps does not."""
        if not isgeneratorfunction(function):
            return super().__call__(function)

        @wraps(function)
        def in_steps(*args: Any, **kwargs: Any) -> Iterator[Any]:
            generator = function(*args, **kwargs)
            resume, sent = generator.send, None
            while True:
                try:
                    with self:
                        value = resume(sent)
                except StopIteration as end:
                    return end.value
                try:
                    resume, sent = generator.send, (yield value)
                except BaseException as error:  # thrown in, or the end: the generator's own `finally` is to run too
                    resume, sent = generator.throw, error

        return in_steps

    def __enter__(self) -> None:
        self._stack().append(mode.grad_enabled)
        mode.grad_enabled = self.enabled

    def __exit__(self, *exception: object) -> None:
        mode.grad_enabled = self._stack().pop()

    @staticmethod
    def _stack() -> list[bool]:
        stack: list[bool] = mode.__dict__.setdefault("previous", [])
        return stack


class no_grad(_GradMode):  # noqa: N801 (PyTorch's name)
    """Record nothing in this block, or in this function when used as a decorator: nothing can be differentiated."""

    enabled = False


class enable_grad(_GradMode):  # noqa: N801 (PyTorch's name)
    """Record again, inside a `no_grad` block."""

    enabled = True


def is_grad_enabled() -> bool:
    """Whether this thread is recording operations."""
    return mode.grad_enabled


class Observer:
    """Sees every op of a thread, within `observing(...)`. `path` holds the modules now running, outermost first."""

    def __init__(self) -> None:
        self.path: list[Any] = []  # kept by `nn.Module`

    def forward(self, node: Function, arrays: list[Any], output: Array) -> None:
        """`node.forward` took these arrays, and made `output`: of several outputs, the last."""

    def backward(self, node: Function, grad_output: Array, results: tuple[Any, ...]) -> None:
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
    global observers
    previous, mode.observer = mode.observer, observer
    with lock:
        observers += 1
    try:
        yield observer
    finally:
        with lock:
            observers -= 1
        mode.observer = previous


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

    def backward(self, node: Function, grad_output: Array, results: tuple[Any, ...]) -> None:
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


def _name(node: Function) -> str:
    return type(node).__name__ + (f" (in {node.where})" if node.where else "")


def _finite(x: Any) -> bool:
    if x is None or not hasattr(x, "dtype") or not is_floating(x.dtype):
        return True
    (x,) = upcast([x])
    return bool(array_module(x).isfinite(x).all())


def _count(x: Array) -> str:
    xp, (x,) = array_module(x), upcast([x])
    return f"{int(xp.isnan(x).sum())} NaN and {int(xp.isinf(x).sum())} Inf"
