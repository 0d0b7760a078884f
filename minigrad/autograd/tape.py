"""L1: backward through the autograd graph, from a loss to the leaves.

A graph consists of nodes (`node.py`). Each node has, for every input of its op, an edge to the node that computed this
input. There are no reference cycles: a Tensor refers to its node, and a node only to the nodes of its inputs.
"""

import threading
from collections.abc import Callable, Container, Iterable
from operator import attrgetter
from typing import Any

from numpy import ndarray

from minigrad.autograd import writes
from minigrad.autograd.function import Partial, unbroadcast
from minigrad.autograd.grad_mode import mode
from minigrad.autograd.node import Leaf, Node, OutputGrad
from minigrad.backend import array_module, as_array, plus
from minigrad.backend.dtypes import FLOAT32, cast, upcast


def backward(gradients: dict[Node, Any], retain_graph: bool = False, inputs: Container[Node] | None = None) -> None:
    """Propagate gradients of the loss to the leaves.

    Nodes are visited in reverse order of creation, so a node is visited after all gradients of its output have been
    summed. The sum is accumulated in place if the engine owns the array (`owned`), else out of place.

    An op may call `backward` in its own backward, as gradient checkpointing does. Post-accumulate hooks of leaves run
    in the outermost backward: a leaf may still receive gradients there.

    Args:
        gradients: the nodes where backward starts, with the gradient of each output; modified.
        retain_graph: keep the arrays that the ops saved.
        inputs: None, or the nodes whose gradients are wanted. Then `gradients` holds the gradients of `inputs` at the
            end, only ops on paths to `inputs` run backward, and no leaf accumulates its gradient.
    """
    if _running.outermost:
        _propagate(gradients, retain_graph, inputs, _newest_first(gradients), None)
        return
    with Outermost() as outermost:
        nodes = _newest_first(gradients)
        if Leaf.any_post_hooks and inputs is None:
            nodes = _hooked_leaves_early(nodes)
        _propagate(gradients, retain_graph, inputs, nodes, outermost)


class Outermost:
    """A backward that is not called by another backward, while it runs.

    `nested` has the leaves with post-accumulate hooks that received a gradient in a nested backward only, so far.
    """

    __slots__ = "ends", "nested"

    def __init__(self) -> None:
        self.nested: dict[Leaf, None] = {}  # an ordered set
        self.ends: list[Callable[[BaseException | None], None]] = []

    def __enter__(self) -> "Outermost":
        _running.outermost.append(self)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if error is None and self.nested:  # leaves that are not in the graph of the outermost backward
                for leaf in list(self.nested):
                    self.run_hooks(leaf)
        except BaseException as raised:
            error = raised
            raise
        finally:
            _running.outermost.clear()
            self.run_ends(error)

    def run_ends(self, error: BaseException | None) -> None:
        """Call the functions of `at_end`, the last first. All are called, also if one of them raises an exception."""
        while self.ends:
            try:
                self.ends.pop()(error)
            except BaseException:
                self.run_ends(error)
                raise

    def run_hooks(self, leaf: Leaf) -> None:
        """Run the post-accumulate hooks of a leaf whose gradient is complete."""
        self.nested.pop(leaf, None)
        for hook in leaf.post_hooks:
            hook()


class _Running(threading.local):
    """Of each thread: the outermost backward that runs, in a list of at most one."""

    def __init__(self) -> None:
        self.outermost: list[Outermost] = []


_running = _Running()


def at_end(end: Callable[[BaseException | None], None]) -> None:
    """Within a hook or the backward of an op: call `end(error)` at the end of the outermost backward, with the
    exception that it raised, or None. Functions are called in reverse order, as by `ExitStack`."""
    _running.outermost[0].ends.append(end)


def _propagate(
    gradients: dict[Node, Any],
    retain_graph: bool,
    inputs: Container[Node] | None,
    nodes: list[Node],
    outermost: Outermost | None,
) -> None:
    """Visit `nodes`, for `backward`. `outermost`: None in a nested backward."""
    leading = set() if inputs is None else _leading_to(inputs, nodes)
    owned, observer, written, hooked = set(), mode.observer, writes.latest, Leaf.any_post_hooks
    for node in nodes:
        grad = gradients.pop(node, None)
        if grad is None:  # the backward of every op that uses this output returned None
            if outermost is not None and node in outermost.nested:
                outermost.run_hooks(node)
                written = writes.latest
            continue
        if node.hooks:
            for hook in node.hooks:
                replaced = hook(grad)
                grad = grad if replaced is None else replaced
            owned.discard(node)  # a hook may have kept a reference to grad
            written = writes.latest  # a hook may have written to parameters
        if inputs is not None:
            if node in inputs:
                gradients[node] = grad if node in owned else grad.copy()
            if node not in leading:
                continue
        if type(node) is Leaf:
            node.accumulate(grad, node in owned)
            if hooked and node.post_hooks and node.requires_grad:
                if outermost is None:
                    _running.outermost[0].nested[node] = None
                else:
                    outermost.run_hooks(node)
                    written = writes.latest
            continue
        if node.age < written:
            _refuse_overwritten(node)
        several = type(grad) is list
        if node.cast_back is not None:  # forward computed in float32
            grad = upcast(grad) if several else cast(grad, FLOAT32)
        edges = node.edges or ()
        accumulate = node.backward_accumulate
        if accumulate is None or edges[0] is None or edges[0][0] not in gradients:
            results = node.backward(grad)
        else:  # the op adds the gradient that its first input has received so far
            results = accumulate(grad, gradients.pop(edges[0][0]))
        if type(results) is not tuple:
            results = (results,)
        if observer is not None:
            observer.backward(node, next(g for g in grad if g is not None) if several else grad, results)
        if len(results) != len(edges):
            raise TypeError(
                f"{node!r}.backward must return one gradient per input, {len(edges)}, returned {len(results)}"
            )
        for edge, result in zip(edges, results):  # noqa: B905 (checked above; strict=True costs as much as an op)
            if edge is None or result is None:
                continue
            # Deliver: add `result` to the gradients received so far by the node that computed this input.
            target, shape, dtype = edge
            total = gradients.get(target)
            if type(result) is not ndarray:
                if type(result) is OutputGrad:
                    gradients.setdefault(target, [None] * result.num_outputs)[result.output_index] = result.grad
                    continue
                if type(result) is Partial:
                    result.values = cast(result.values, dtype)
                    if target not in owned:
                        total = array_module(result.values).zeros(shape, dtype) if total is None else total.copy()
                        owned.add(target)
                    gradients[target] = result.add_to(total)
                    continue
                if not hasattr(result, "dtype") or hasattr(result, "requires_grad"):  # or a Tensor
                    raise TypeError(f"{node!r}.backward must return arrays or None, got {type(result).__name__}")
                result = as_array(result)
            # A result that is neither grad_output nor a view is new: the engine may add to it in place.
            fresh = result is not grad and result.base is None
            if several:
                fresh = fresh and sum(result is x for x in (*grad, *results)) == 1
            if result.shape != shape:  # the input was broadcast
                result, fresh = unbroadcast(result, shape), True
            if result.dtype is not dtype and result.dtype != dtype:
                result, fresh = cast(result, dtype), True
            if total is None:
                gradients[target] = result
                if fresh:
                    owned.add(target)
            elif target in owned:
                total += result
                gradients[target] = total
            else:
                gradients[target] = as_array(plus(total, result))
                owned.add(target)
        if not retain_graph:
            node.__dict__.clear()  # frees saved arrays and edges: a second backward finds `edges` is None


def _refuse_overwritten(node: Node) -> None:
    """Raise RuntimeError if an array saved by the node was written to after forward."""
    x = writes.overwritten(node)
    if x is not None:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            f"{node!r} saved an array of shape {x.shape} {x.dtype} in forward, which was written to before backward. "
            "Call backward before the write (an optimizer step, x += y, x[i] = v), or create a new tensor: x = x + y"
        )


def _newest_first(roots: Iterable[Node]) -> list[Node]:
    """The roots and all nodes that they depend on, in reverse order of creation: a topological order.

    Raises:
        RuntimeError: an earlier backward freed a part of this graph.
    """
    nodes = list(roots)
    found = set(nodes)
    for node in nodes:  # `nodes` grows during the loop: a breadth-first search
        if node.edges is None:
            raise RuntimeError(
                "backward through a graph whose saved arrays were freed by an earlier backward. Run forward again, "
                "or sum the losses and call backward once, or pass retain_graph=True the first time"
            )
        for edge in node.edges:
            if edge is not None and edge[0] not in found:
                found.add(edge[0])
                nodes.append(edge[0])
    nodes.sort(key=attrgetter("age"), reverse=True)
    return nodes


def _hooked_leaves_early(newest_first: list[Node]) -> list[Node]:
    """The same order, but each leaf with post-accumulate hooks directly after its last consumer, the oldest."""
    waiting: set[Node] = set()
    for node in reversed(newest_first):
        if node.age:
            break
        if type(node) is Leaf and node.post_hooks:
            waiting.add(node)
    if not waiting:
        return newest_first
    early: dict[Node, list[Node]] = {}  # consumer -> the leaves after it
    moved = set()
    for node in reversed(newest_first):
        for edge in node.edges or ():
            if edge is not None and edge[0] in waiting:
                waiting.discard(edge[0])
                moved.add(edge[0])
                early.setdefault(node, []).append(edge[0])
    return [x for node in newest_first if node not in moved for x in (node, *early.get(node, ()))]


def _leading_to(inputs: Container[Node], newest_first: list[Node]) -> set[Node]:
    """The nodes with a path to one of `inputs`. An input is among them if it has a path to another input."""
    leading: set[Node] = set()
    for node in reversed(newest_first):
        if any(edge is not None and (edge[0] in inputs or edge[0] in leading) for edge in node.edges or ()):
            leading.add(node)
    return leading


def history(root: Node) -> list[Node]:
    """Root and all nodes that it depends on, in order of creation. The search ends at nodes freed by backward."""
    nodes, found = [root], {root}
    for node in nodes:  # as in `_newest_first`
        for edge in node.edges or ():
            if edge is not None and edge[0] not in found:
                found.add(edge[0])
                nodes.append(edge[0])
    return sorted(nodes, key=attrgetter("age"))
