"""L2: elementwise activations."""

import numpy as np

from minigrad.backend import Array, array_module
from minigrad.backend.dtypes import cast
from minigrad.backend.fast_paths import fast_path_of
from minigrad.kernels.cuda.launch import MAX_GRID, PACK, STORED, Kernel, on_gpu, pack_of
from minigrad.ops import activation

THREADS = 256  # threads of a block


def _supports(x: Array) -> bool:
    return bool(on_gpu(x) and x.dtype.name in STORED and 0 < x.size <= THREADS * MAX_GRID[0] and without_gaps(x))


@fast_path_of(activation.ReLU)
class CUDAReLU(activation.ReLU):
    """The op's formula by `activation.cu`.  Shapes: x, y any.  Dtypes: float32, bfloat16, float16.  Saves y."""

    supports = staticmethod(_supports)

    def forward(self, x: Array) -> Array:
        y = _map("relu_forward", x)
        if any(self.needs_input_grad):
            self.y = y
        return y

    def backward(self, grad_output: Array) -> Array:
        return _map("relu_backward", self.y, _laid_out_as(self.y, grad_output))


@fast_path_of(activation.GELU)
class CUDAGELU(activation.GELU):
    """The op's formula by `activation.cu`; backward recomputes the slope.  Shapes and dtypes as CUDAReLU.  Saves x."""

    supports = staticmethod(_supports)

    def forward(self, x: Array) -> Array:
        if any(self.needs_input_grad):
            self.x = x
        return _map("gelu_forward", x)

    def backward(self, grad_output: Array) -> Array:
        return _map("gelu_backward", self.x, _laid_out_as(self.x, grad_output))


def _map(name: str, x: Array, *others: Array) -> Array:
    """Apply an elementwise kernel to x and `others`, which have x's layout. The result has x's shape and layout."""
    result = empty_like(x, x.dtype)
    pack = pack_of(x, PACK, *others, result)  # any size will do: the last pack may be partial
    kernel = Kernel("activation.cu", name, STORED=STORED[x.dtype.name], PACK=pack)
    kernel(-(-x.size // (THREADS * pack)), THREADS, x, *others, result, np.int64(x.size))
    return result


def without_gaps(x: Array) -> bool:
    """True if x is dense: its elements are contiguous in memory, with the axes in any order."""
    return bool(x.flags.c_contiguous or x.transpose(_axes(x)).flags.c_contiguous)


def _axes(x: Array) -> tuple[int, ...]:
    """The axes of x by decreasing stride."""
    return tuple(sorted(range(x.ndim), key=lambda axis: -x.strides[axis]))


def empty_like(x: Array, dtype: np.dtype) -> Array:
    """An uninitialized array of x's shape, with the axes in the same memory order."""
    if x.flags.c_contiguous:
        return array_module(x).empty(x.shape, dtype)
    axes = _axes(x)
    in_memory = array_module(x).empty(tuple(x.shape[axis] for axis in axes), dtype)
    return in_memory.transpose(tuple(sorted(range(x.ndim), key=lambda i: axes[i])))


def _laid_out_as(x: Array, grad: Array) -> Array:
    """`grad` in x's dtype and layout, copied if needed."""
    grad = cast(grad, x.dtype)
    if grad.strides == x.strides:
        return grad
    copy = empty_like(x, x.dtype)
    copy[...] = grad
    return copy
