"""L1: reverse-mode automatic differentiation in one page, without optimizations: lesson 5 in minigrad/README.md.

A loss L is computed by ops, each a `Function` with a derivative. The chain rule connects them: if y = f(x) and ∂y
stands for ∂L/∂y, then ∂x = f.backward(∂y). If x is used twice, its two gradients are added. So backward needs

    a graph   of calls: each with its op (and the arrays its forward saved) and its input Variables,
    an order  in which ∂y is complete before f.backward(∂y) runs: a call after all calls that used its output.

This engine and the real engine (`tape.py`, `minigrad/_tensor.py`) run the same `Function` classes, and give the same
gradients (tests/autograd/test_plain.py). The real engine also frees saved arrays during backward, accumulates gradients
in place, chooses fast paths, supports half precision, and detects NaN.

    x = Variable(np.array([1.0, 2.0, 3.0]), requires_grad=True)
    y = apply(Sum, apply(Mul, x, x), axis=None, keepdims=False)      # y = Σ x², ∂x = 2x
    backward(y)
    print(x.grad)                                                    # [2. 4. 6.]
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad.autograd.dispatch import DEFAULT, RULES
from minigrad.autograd.function import Function, Partial, unbroadcast
from minigrad.backend import Array


class Variable:
    """An array and the call that computed it. A leaf, without call, accumulates ∂L/∂self in `grad`, of data's shape."""

    def __init__(self, data: Array, requires_grad: bool = False, call: "Call | None" = None, index: int = 0) -> None:
        self.data = np.asarray(data)
        self.requires_grad = requires_grad
        self.call, self.index = call, index  # self is output number `index` of `call`; a leaf has call None
        self.grad: Array | None = None


class Call:
    """One application of an op: a node of the graph. Its inputs are its edges."""

    def __init__(self, op: Function, inputs: Sequence[Any], output: Any) -> None:
        self.op, self.inputs = op, inputs
        self.several = isinstance(output, tuple)  # several outputs: backward receives a list of gradients
        self.grads: list[Any] = [None] * (len(output) if self.several else 1)  # ∂L/∂output, summed over its uses


def apply(function: type[Function], *inputs: Any, **options: Any) -> Any:
    """Run an op's forward and, if any input requires a gradient, record the call.

    Args:
        function: the class of the op.
        *inputs: Variables; or arrays, Python numbers and None, which get no gradients.
        **options: the keyword arguments of the op's `forward`.

    Returns:
        A Variable, or a tuple of Variables if the op has several outputs.
    """
    arrays = [x.data if isinstance(x, Variable) else x for x in inputs]
    promote = RULES.get(function, DEFAULT).promote  # type promotion, lesson 6: skip at first reading
    if promote is not None:
        arrays = promote(arrays)
    op = function()
    op.needs_input_grad = tuple(isinstance(x, Variable) and x.requires_grad for x in inputs)
    output = op.forward(*arrays, **options)
    recorded = any(op.needs_input_grad)
    call = Call(op, inputs, output) if recorded else None
    if isinstance(output, tuple):
        return tuple(Variable(y, recorded, call, i) for i, y in enumerate(output))
    return Variable(output, recorded, call)


def backward(output: Variable, gradient: Array | None = None) -> None:
    """Add ∂L/∂x to `x.grad` for every leaf x that requires a gradient; `gradient` is ∂L/∂output, by default ones."""
    receive(output, np.ones_like(output.data) if gradient is None else gradient)
    for call in reversed(topological_order(output)):
        grads, call.grads = call.grads, [None] * len(call.grads)  # reset, so that backward can run again
        if all(grad is None for grad in grads):
            continue  # the backward of every call that uses these outputs returned None
        results = call.op.backward(grads if call.several else grads[0])
        for x, result in zip(call.inputs, results if isinstance(results, tuple) else (results,), strict=True):
            if isinstance(x, Variable) and x.requires_grad and result is not None:
                receive(x, result)


def receive(x: Variable, grad: Any) -> None:
    """Add `grad` to the sum of gradients of x, kept in `x.grad` for a leaf, else in `x.call.grads`."""
    if isinstance(grad, Partial):  # the gradient of x[index], zero elsewhere; only the op of x[index] returns a Partial
        grad = grad.add_to(np.zeros(x.data.shape, grad.values.dtype))
    grad = unbroadcast(np.asarray(grad), x.data.shape)
    previous = x.grad if x.call is None else x.call.grads[x.index]
    total = np.asarray(grad if previous is None else previous + grad, x.data.dtype)
    if x.call is None:
        x.grad = total
    else:
        x.call.grads[x.index] = total


def topological_order(output: Variable) -> list[Call]:
    """The calls that `output` depends on, each after the calls that made its inputs: depth-first, in post-order.

    In pre-order (exercise 4), a backward could run before its gradient is complete. The real engine sorts by age.
    """
    order: dict[Call, None] = {}  # as an ordered set
    path = [output.call] if output.call else []  # from `output` to the visited call: each made an input of the previous
    while path:
        missing = [x.call for x in path[-1].inputs if isinstance(x, Variable) and x.call and x.call not in order]
        if missing:
            path.append(missing[-1])
        else:  # post-order: all inputs of this call are in the order
            order[path.pop()] = None
    return list(order)
