"""L1: Function, an op with forward and backward on arrays. A Function never holds Tensors, only the arrays it saves."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from minigrad.autograd.node import Node
from minigrad.backend import Array, array_module, scatter_add
from minigrad.backend.dtypes import FLOAT32, cast, is_half
from minigrad.backend.fast_paths import fast_path
from minigrad.backend.sums import sum_over

KERNELS = "minigrad.kernels."


class Function(Node):
    """An op: `forward` on arrays, and `backward`, which maps ∂loss/∂output to ∂loss/∂input.

    An instance is one application of the op and, if an input requires a gradient, one node of the graph. `forward`
    saves the arrays that `backward` needs, and no others, as attributes of `self`; they are freed after `backward`.

    The contract:
      * arrays are positional arguments, options are keyword arguments; an absent input, such as no bias, is None;
      * `forward` and `backward` never write to inputs or to `grad_output`;
      * `forward` may return a tuple of outputs; then `grad_output` is a list, with None for unused outputs;
      * `backward` returns a tuple with a gradient, or None, for each input; for one input, the tuple may be omitted;
      * the gradient of a broadcast input may have the shape of the output: the engine sums it (`unbroadcast`);
      * a returned array is new, `grad_output` or a view of `grad_output`, never a saved array; only `grad_output` may
        be returned twice (a new array too, if the op has several outputs). So the engine may add in place to a returned
        array that is neither `grad_output` nor a view, and that is returned once;
      * an op may also define `backward_accumulate(grad_output, total)`: `backward`, with `total` added to the gradient
        of the first input, in a new array. `total` is the gradient that this input has received so far, for example
        through a residual connection, in the dtype of the input before any cast: the sum takes no pass over memory of
        its own;
      * first order only: `backward` computes on arrays, in place where possible, and is itself not differentiable.

    Type promotion, autocast and casts of 16-bit inputs happen outside the op (`dispatch.py`), which may also run a fast
    path instead (`minigrad/backend/fast_paths.py`).
    """

    apply: ClassVar[Callable[..., Any]]  # MyOp.apply(x, ...) is Tensor.apply(MyOp, x, ...), which `Tensor` adds
    needs_input_grad: tuple[bool, ...] = ()  # whether each input requires a gradient; skip the computation if not

    def __init_subclass__(cls) -> None:
        for name in ("forward", "backward"):
            if isinstance(vars(cls).get(name), staticmethod):
                raise TypeError(
                    f"{cls.__name__}.{name} is a staticmethod, as in torch.autograd.Function: here an op is an "
                    f"instance and computes on arrays: write `def {name}(self, x, ...)` without @staticmethod, save "
                    "arrays as attributes of self instead of ctx.save_for_backward, and return arrays"
                )

    def forward(self, *arrays: Any, **options: Any) -> Any:
        """Compute the output, an array or a tuple of arrays."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def grad_dtype(self, i: int, default: np.dtype) -> np.dtype:
        """The dtype of the gradient of input i: the dtype of the input before autocast, such as float32 for a
        parameter."""
        edge = self.edges[i] if self.edges else None
        return default if edge is None else edge[2]

    @property
    def op_name(self) -> str:
        return next(c.__name__ for c in type(self).__mro__ if not c.__module__.startswith(KERNELS))

    def __repr__(self) -> str:
        """`<LayerNorm>`, or for a fast path `<LayerNorm, cpu fast path>`."""
        module = type(self).__module__
        if not module.startswith(KERNELS):
            return f"<{self.op_name}>"
        return f"<{self.op_name}, {module.removeprefix(KERNELS).partition('.')[0]} fast path>"


def run(
    function: type[Function], needs_input_grad: Sequence[object], *arrays: Any, **options: Any
) -> tuple[Function, Any]:
    """Run an op inside another op's forward, by a fast path if one supports the inputs.

    Returns:
        The inner op and its output. The outer op's backward calls the inner op's backward.
    """
    op: Function = (fast_path(function, *arrays, **options) or function)()
    op.needs_input_grad = tuple(map(bool, needs_input_grad))
    return op, op.forward(*arrays, **options)


class Partial:
    """A sparse gradient of x, from the backward of `x[index]`: `values` at `index`, zero elsewhere.

    Dense gradients of k slices of x would take k arrays of the shape of x; the engine adds all Partials to one buffer.
    """

    __slots__ = ("index", "repeats", "values")

    def __init__(self, values: Array, index: Any, *, repeats: bool) -> None:
        self.values, self.index, self.repeats = values, index, repeats  # repeats: index may contain duplicates

    def add_to(self, buffer: Array) -> Array:
        """Add the values in place to `buffer`, of the shape of x, and return `buffer`."""
        if self.repeats and is_half(buffer.dtype):  # accumulate in float32
            total = array_module(buffer).zeros(buffer.shape, FLOAT32)
            scatter_add(total, self.index, cast(self.values, FLOAT32))
            buffer += cast(total, buffer.dtype)
        elif self.repeats:
            scatter_add(buffer, self.index, self.values)
        else:
            buffer[self.index] += self.values
        return buffer


def unbroadcast(grad: Array, shape: tuple[int, ...]) -> Array:
    """Sum `grad` over the axes along which an input of `shape` was broadcast: for y_ij = x_j, ∂x_j = Σ_i ∂y_ij."""
    added = grad.ndim - len(shape)
    stretched = tuple(i for i, size in enumerate(shape, added) if size == 1 and grad.shape[i] != 1)
    return sum_over(grad, tuple(range(added)) + stretched, keepdims=True).reshape(shape)
