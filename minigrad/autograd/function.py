"""L1: what an op is. It knows arrays, never Tensors: a graph of Functions holds only what their backwards need."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad.autograd.node import Node
from minigrad.backend import Array, array_module, scatter_add
from minigrad.backend.dtypes import FLOAT32, cast, is_half
from minigrad.backend.fast_paths import fast_path
from minigrad.backend.sums import sum_over

KERNELS = "minigrad.kernels."


class Function(Node):
    """One op: `forward` on arrays, and `backward`, which maps ∂loss/∂output to ∂loss/∂input.

    An instance is one application of the op and, where a gradient is wanted, one node of the graph. `forward` assigns
    to `self` what `backward` will need, by name and as little as will do; the engine clears it all after use.

    The contract:
      * arrays are positional arguments, options are keyword arguments; an input that is not there (no bias) is None;
      * inputs and `grad_output` are never written to;
      * `forward` may return a tuple: several outputs. Then `backward` gets a list, with None for one that was not used;
      * `backward` returns one gradient for each array, or None; a single one need not be in a tuple;
      * a gradient may have the shape of the output where the input was broadcast: the engine sums it back;
      * a returned array is new, or `grad_output` or a view of it: never one that was saved, and none twice but
        `grad_output`, so that the engine may add to it in place (what an op of several outputs returns, it never does);
      * first order only: `backward` works on raw arrays, in place where it can, and is not itself differentiable.

    What else happens when a Tensor meets an op is none of its business: the inputs are brought to one dtype, autocast
    and 16-bit inputs are cast (`dispatch.py`), and a fast path may run in its place (`minigrad/backend/fast_paths.py`).
    """

    needs_input_grad: tuple[bool, ...] = ()  # for each input, whether its gradient is wanted: skip the others' work

    def forward(self, *arrays: Any, **options: Any) -> Any:
        """The output, an array or a tuple of arrays."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def grad_dtype(self, i: int, default: np.dtype) -> np.dtype:
        """The dtype that the gradient of input i should have: in autocast, an op sees a 16-bit copy of a parameter, and
        the parameter itself is float32."""
        edge = self.edges[i] if self.edges else None
        return default if edge is None else edge[2]

    @property
    def op_name(self) -> str:
        return next(c.__name__ for c in type(self).__mro__ if not c.__module__.startswith(KERNELS))

    def __repr__(self) -> str:
        """`<LayerNorm>`, or for a fast path the op and the machine it is for: `<LayerNorm, cpu fast path>`."""
        module = type(self).__module__
        if not module.startswith(KERNELS):
            return f"<{self.op_name}>"
        return f"<{self.op_name}, {module.removeprefix(KERNELS).partition('.')[0]} fast path>"


def run(
    function: type[Function], needs_input_grad: Sequence[object], *arrays: Any, **options: Any
) -> tuple[Function, Any]:
    """Run an op within another op's forward: by a fast path, if one supports the inputs.

    Returns:
        The inner op, for the backward of the outer one, and its output.
    """
    op: Function = (fast_path(function, *arrays, **options) or function)()
    op.needs_input_grad = tuple(map(bool, needs_input_grad))
    return op, op.forward(*arrays, **options)


class Partial:
    """The gradient of `x[index]` with respect to x: `values` at `index`, zero elsewhere, never built in full.

    Slicing one array k times would cost k arrays of zeros in backward; the engine adds each Partial into one buffer.
    """

    __slots__ = ("index", "repeats", "values")

    def __init__(self, values: Array, index: Any, *, repeats: bool) -> None:
        self.values, self.index, self.repeats = values, index, repeats  # repeats: index may name an entry twice

    def add_to(self, buffer: Array) -> Array:
        """Add the values to `buffer`, an array of the shape of x, in place; return it."""
        if self.repeats and is_half(buffer.dtype):  # sums are in float32
            total = array_module(buffer).zeros(buffer.shape, FLOAT32)
            scatter_add(total, self.index, cast(self.values, FLOAT32))
            buffer += cast(total, buffer.dtype)
        elif self.repeats:
            scatter_add(buffer, self.index, self.values)
        else:
            buffer[self.index] += self.values
        return buffer


def unbroadcast(grad: Array, shape: tuple[int, ...]) -> Array:
    """Sum `grad` over the axes along which an input of `shape` was broadcast: y_ij = x_j gives ∂x_j = Σ_i ∂y_ij."""
    added = grad.ndim - len(shape)
    stretched = tuple(i for i, size in enumerate(shape, added) if size == 1 and grad.shape[i] != 1)
    return sum_over(grad, tuple(range(added)) + stretched, keepdims=True).reshape(shape)
