"""L2: activations, number by number."""

import numpy as np

from minigrad.backend import Array, array_module
from minigrad.cublas import pointer
from minigrad.kernels.cuda.launch import MOST_GRID, Kernel, on_gpu
from minigrad.kernels.twins import twin_of
from minigrad.ops import activation

THREADS = 256  # of a block


def _takes(x: Array) -> bool:
    if not (on_gpu(x) and x.dtype == np.float32 and 0 < x.size <= THREADS * MOST_GRID[0]):
        return False
    return bool(x.flags.c_contiguous or x.transpose(_axes(x)).flags.c_contiguous)  # without gaps


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
    result = _empty(x)
    arrays = (x, *others, result)
    pack = 4 if all(pointer(a) % 16 == 0 for a in arrays) else 1
    kernel = Kernel("activation.cu", name, PACK=pack)
    kernel(-(-x.size // (THREADS * pack)), THREADS, *arrays, np.int64(x.size))
    return result


def _axes(x: Array) -> tuple[int, ...]:
    """The axes of x from the one whose neighbours lie farthest apart in memory to the one where they are closest."""
    return tuple(sorted(range(x.ndim), key=lambda axis: -x.strides[axis]))


def _empty(x: Array) -> Array:
    """An array of the shape of x, its axes in the same order in memory."""
    if x.flags.c_contiguous:
        return array_module(x).empty(x.shape, np.float32)
    axes = _axes(x)
    in_memory = array_module(x).empty(tuple(x.shape[axis] for axis in axes), np.float32)
    return in_memory.transpose(tuple(sorted(range(x.ndim), key=lambda i: axes[i])))


def _laid_out_as(x: Array, grad: Array) -> Array:
    """`grad`, copied if its order in memory is not that of x."""
    if grad.strides == x.strides and grad.dtype == np.float32:
        return grad
    copy = _empty(x)
    copy[...] = grad
    return copy
