"""L2: GroupNorm, with a thread block for each group of each image."""

from functools import cache
from math import gcd, prod

import numpy as np

from minigrad.backend import Array, array_module
from minigrad.backend.cublas import pointer
from minigrad.backend.dtypes import FLOAT32, cast
from minigrad.backend.fast_paths import fast_path_of
from minigrad.kernels.cuda.launch import MAX_GRID, PACK, SMALLEST, STORED, Kernel, on_gpu, sum_rows
from minigrad.ops import norm

THREADS, MAX_THREADS = 256, 1024  # threads of a block; for a group with more than LARGE elements
LARGE = 1 << 13
MAX_WIDTH = THREADS  # channels of a group
MAX_PIXELS = 1 << 30  # of an image


@fast_path_of(norm.GroupNorm)
class CUDAGroupNorm(norm.GroupNorm):
    """The op's formula by `group_norm.cu`, for images that are channels-last in memory, as a convolution returns them.

    Shapes: x, y (N, C, H, W), viewed as (N, P, C), P = H · W; μ, r (N, G).  Saves x, μ, r, weight.
    Dtypes: x and y float32, bfloat16 or float16; weight, bias, μ and r float32.
    """

    @staticmethod
    def supports(x: Array, weight: Array | None, bias: Array | None, *, num_groups: int, eps: float) -> bool:
        if not (on_gpu(x) and x.dtype.name in STORED and x.ndim == 4 and x.size and x.shape[0] <= MAX_GRID[1]):
            return False
        _, C, H, W = x.shape
        groups = num_groups > 0 and C % num_groups == 0 and C // num_groups <= MAX_WIDTH
        affine = all(p is None or _is_param(p, C) for p in (weight, bias))
        return groups and affine and H * W < MAX_PIXELS and bool(x.transpose(0, 2, 3, 1).flags.c_contiguous)

    def forward(self, x: Array, weight: Array | None, bias: Array | None, *, num_groups: int, eps: float) -> Array:
        xp, N = array_module(x), len(x)
        self.x, self.weight, self.groups = x.transpose(0, 2, 3, 1), weight, num_groups
        self.mean, self.rstd = xp.empty((N, num_groups), FLOAT32), xp.empty((N, num_groups), FLOAT32)
        y = xp.empty(self.x.shape, x.dtype)
        self._launch(
            "group_norm_forward", (self.x, y),
            self.x, weight, bias, y, self.mean, self.rstd, *self._sizes(), np.float32(max(eps, SMALLEST)),
        )  # fmt: skip
        return y.transpose(0, 3, 1, 2)

    def backward(self, grad_output: Array) -> tuple[Array | None, Array | None, Array | None]:
        xp, (N, _, _, C) = array_module(self.x), self.x.shape
        want_x, *want_params = self.needs_input_grad
        grad_y = xp.ascontiguousarray(cast(grad_output.transpose(0, 2, 3, 1), self.x.dtype))
        grad_x = xp.empty(self.x.shape, self.x.dtype) if want_x else None
        partials = xp.empty((N, 2, C), FLOAT32) if any(want_params) else None
        kernel = self._launch(
            "group_norm_backward", (self.x, grad_y, grad_x),
            grad_y, self.x, self.weight, self.mean, self.rstd, grad_x, partials, *self._sizes(),
        )  # fmt: skip
        grad_x = None if grad_x is None else grad_x.transpose(0, 3, 1, 2)
        if partials is None:
            return grad_x, None, None
        want_weight, want_bias = want_params
        grad_weight, grad_bias = xp.empty(C, FLOAT32), xp.empty(C, FLOAT32)
        sum_rows(kernel, partials, grad_weight, grad_bias)
        return grad_x, grad_weight if want_weight else None, grad_bias if want_bias else None

    def _launch(self, name: str, packed: tuple[Array | None, ...], *args: Array) -> Kernel:
        """Launch and return the kernel for all groups of all images. `packed`: arrays loaded or stored in packs."""
        N, H, W, C = self.x.shape
        width = C // self.groups
        aligned = all(a is None or pointer(a) % PACK == 0 for a in packed)
        pack = gcd(PACK // self.x.dtype.itemsize, width) if aligned else 1
        threads = MAX_THREADS if H * W * width > LARGE else THREADS
        kernel = _kernel(name, STORED[self.x.dtype.name], width, threads, pack)
        kernel((self.groups, N), threads, *args)
        return kernel

    def _sizes(self) -> tuple[np.int32, np.int32]:
        """The kernel arguments P, the pixels of an image, and C."""
        return np.int32(prod(self.x.shape[1:3])), np.int32(self.x.shape[3])


def _is_param(p: Array, C: int) -> bool:
    return bool(on_gpu(p) and p.dtype == FLOAT32 and p.shape == (C,) and p.flags.c_contiguous)


@cache
def _kernel(name: str, stored: str, width: int, threads: int, pack: int) -> Kernel:
    return Kernel("group_norm.cu", name, STORED=stored, WIDTH=width, THREADS=threads, PACK=pack)
