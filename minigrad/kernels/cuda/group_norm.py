"""L2: group normalisation, a block of threads for each group."""

from functools import cache
from math import gcd, prod

import numpy as np

from minigrad.backend import Array, array_module
from minigrad.cublas import pointer
from minigrad.dtypes import FLOAT32, cast
from minigrad.kernels.cuda.launch import MOST_GRID, PACK, STORED, Kernel, on_gpu, sum_rows
from minigrad.kernels.twins import twin_of
from minigrad.ops import norm

THREADS, MORE_THREADS = 256, 1024  # of a block, and where a group has many numbers
MANY = 1 << 13
WIDEST = THREADS  # channels of a group: a thread has one of them, or a few
MOST_PLACES = 1 << 30


@twin_of(norm.GroupNorm)
class GroupNorm(norm.GroupNorm):
    """The same formula on images that are channels-last in memory, as those that a convolution has made.

    Shapes: x, y (N, C, H, W); seen by the kernels, (N, P, C) with P places; μ, r (N, G).  Saves x, μ, r, weight.
    x and y may be narrow; weight, bias, μ and r are float32.
    """

    @staticmethod
    def takes(x: Array, weight: Array | None, bias: Array | None, *, num_groups: int, eps: float) -> bool:
        if not (on_gpu(x) and x.dtype.name in STORED and x.ndim == 4 and x.size and x.shape[0] <= MOST_GRID[1]):
            return False
        _, C, H, W = x.shape
        groups = num_groups > 0 and C % num_groups == 0 and C // num_groups <= WIDEST
        affine = all(p is None or _is_param(p, C) for p in (weight, bias))
        return groups and affine and H * W < MOST_PLACES and bool(x.transpose(0, 2, 3, 1).flags.c_contiguous)

    def forward(self, x: Array, weight: Array | None, bias: Array | None, *, num_groups: int, eps: float) -> Array:
        xp, N = array_module(x), len(x)
        self.x, self.weight, self.groups = x.transpose(0, 2, 3, 1), weight, num_groups
        self.mean, self.rstd = xp.empty((N, num_groups), FLOAT32), xp.empty((N, num_groups), FLOAT32)
        y = xp.empty(self.x.shape, x.dtype)
        self._launch(
            "group_norm_forward", (self.x, y),
            self.x, weight, bias, y, self.mean, self.rstd, *self._sizes(), np.float32(eps),
        )  # fmt: skip
        return y.transpose(0, 3, 1, 2)

    def backward(self, grad_output: Array) -> tuple[Array | None, Array | None, Array | None]:
        xp, (N, _, _, C) = array_module(self.x), self.x.shape
        want_x, *want_params = self.needs_input_grad
        grad_y = xp.ascontiguousarray(cast(grad_output.transpose(0, 2, 3, 1), self.x.dtype))
        grad_x = xp.empty(self.x.shape, self.x.dtype) if want_x else None
        shares = xp.empty((N, 2, C), FLOAT32) if any(want_params) else None
        kernel = self._launch(
            "group_norm_backward", (self.x, grad_y, grad_x),
            grad_y, self.x, self.weight, self.mean, self.rstd, grad_x, shares, *self._sizes(),
        )  # fmt: skip
        grad_x = None if grad_x is None else grad_x.transpose(0, 3, 1, 2)
        if shares is None:
            return grad_x, None, None
        sums = xp.empty((2, C), FLOAT32)
        sum_rows(kernel, shares, sums)
        grad_weight, grad_bias = (grad if want else None for grad, want in zip(sums, want_params, strict=True))
        return grad_x, grad_weight, grad_bias

    def _launch(self, name: str, packed: tuple[Array | None, ...], *args: Array) -> Kernel:
        """For all groups of all images; `packed` are the arrays that are read and written by packs."""
        N, H, W, C = self.x.shape
        width = C // self.groups
        aligned = all(a is None or pointer(a) % PACK == 0 for a in packed)
        pack = gcd(PACK // self.x.dtype.itemsize, width) if aligned else 1
        threads = MORE_THREADS if H * W * width > MANY else THREADS
        kernel = _kernel(name, STORED[self.x.dtype.name], width, threads, pack)
        kernel((self.groups, N), threads, *args)
        return kernel

    def _sizes(self) -> tuple[np.int32, np.int32]:
        """P and C."""
        return np.int32(prod(self.x.shape[1:3])), np.int32(self.x.shape[3])


def _is_param(p: Array, C: int) -> bool:
    return bool(on_gpu(p) and p.dtype == FLOAT32 and p.shape == (C,) and p.flags.c_contiguous)


@cache
def _kernel(name: str, stored: str, width: int, threads: int, pack: int) -> Kernel:
    return Kernel("group_norm.cu", name, STORED=stored, WIDTH=width, THREADS=threads, PACK=pack)
