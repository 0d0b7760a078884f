"""L2: activations, number by number."""

import numpy as np

from minigrad.backend import Array, array_module
from minigrad.dtypes import cast
from minigrad.kernels.cuda.launch import MOST_GRID, PACK, STORED, Kernel, on_gpu, pack_of
from minigrad.kernels.twins import twin_of
from minigrad.ops import activation

THREADS = 256  # of a block


def _takes(x: Array) -> bool:
    return bool(on_gpu(x) and x.dtype.name in STORED and 0 < x.size <= THREADS * MOST_GRID[0] and without_gaps(x))


@twin_of(activation.ReLU)
class ReLU(activation.ReLU):
    """The same formula.  Saves y."""

    takes = staticmethod(_takes)

    def forward(self, x: Array) -> Array:
        y = _map("relu_forward", x)
        if any(self.needs_input_grad):
            self.y = y
        return y

    def backward(self, grad_output: Array) -> Array:
        return _map("relu_backward", self.y, _laid_out_as(self.y, grad_output))


@twin_of(activation.GELU)
class GELU(activation.GELU):
    """The same formula, but the slope is found in backward.  Saves x."""

    takes = staticmethod(_takes)

    def forward(self, x: Array) -> Array:
        if any(self.needs_input_grad):
            self.x = x
        return _map("gelu_forward", x)

    def backward(self, grad_output: Array) -> Array:
        return _map("gelu_backward", self.x, _laid_out_as(self.x, grad_output))


def _map(name: str, x: Array, *others: Array) -> Array:
    """What a kernel makes of x and others like it: an array of x's shape and order in memory."""
    result = empty_like(x, x.dtype)
    pack = pack_of(x, PACK, *others, result)  # the rows are as long as one likes: the last pack may be less than one
    kernel = Kernel("activation.cu", name, STORED=STORED[x.dtype.name], PACK=pack)
    kernel(-(-x.size // (THREADS * pack)), THREADS, x, *others, result, np.int64(x.size))
    return result


def without_gaps(x: Array) -> bool:
    """Whether the numbers of x lie side by side in memory, in whatever order."""
    return bool(x.flags.c_contiguous or x.transpose(_axes(x)).flags.c_contiguous)


def _axes(x: Array) -> tuple[int, ...]:
    """The axes of x from the one whose neighbours lie farthest apart in memory to the one where they are closest."""
    return tuple(sorted(range(x.ndim), key=lambda axis: -x.strides[axis]))


def empty_like(x: Array, dtype: np.dtype) -> Array:
    """An array of the shape of x, its axes in the same order in memory."""
    if x.flags.c_contiguous:
        return array_module(x).empty(x.shape, dtype)
    axes = _axes(x)
    in_memory = array_module(x).empty(tuple(x.shape[axis] for axis in axes), dtype)
    return in_memory.transpose(tuple(sorted(range(x.ndim), key=lambda i: axes[i])))


def _laid_out_as(x: Array, grad: Array) -> Array:
    """`grad`, copied if its order in memory is not that of x."""
    grad = cast(grad, x.dtype)
    if grad.strides == x.strides:
        return grad
    copy = empty_like(x, x.dtype)
    copy[...] = grad
    return copy
