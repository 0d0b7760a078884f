"""L2: GroupNorm, alone or with the ReLU after it, with a thread block for adjacent groups of each image."""

from functools import cache
from math import gcd, prod
from typing import Any

import numpy as np

from minigrad.backend import Array, array_module
from minigrad.backend.cublas import pointer
from minigrad.backend.dtypes import FLOAT32, cast
from minigrad.backend.fast_paths import fast_path_of
from minigrad.kernels.cuda.launch import MAX_GRID, PACK, SMALLEST, STORED, Kernel, on_gpu, sum_rows
from minigrad.ops import norm

THREADS, MAX_THREADS = 256, 512  # of a block; if it has more than LARGE elements
LARGE = 1 << 16  # (of two resident blocks, one loads while the other reduces)
MAX_WIDTH = THREADS  # channels of a group
MAX_PIXELS = 1 << 30  # of an image
SECTORS = 64  # bytes of a pixel that a block reads at least, two sectors of memory, if WIDTH is a power of two


class Launches:
    """The launches of both ops below, which set `with_relu`."""

    with_relu: bool

    def run_forward(
        self, x: Array, weight: Array | None, bias: Array | None, shortcut: Array | None, groups: int, eps: float
    ) -> Array:
        """y (N, C, H, W)."""
        xp, N = array_module(x), len(x)
        x, shortcut = (None if a is None else a.transpose(0, 2, 3, 1) for a in (x, shortcut))  # -> (N, H, W, C)
        self.x, self.weight, self.groups = x, weight, groups
        self.mean, self.rstd = xp.empty((N, groups), FLOAT32), xp.empty((N, groups), FLOAT32)
        y = xp.empty(x.shape, x.dtype)
        self._launch(
            "group_norm_forward", (x, shortcut, y),
            x, weight, bias, shortcut, y, self.mean, self.rstd, *self._sizes(), np.float32(max(eps, SMALLEST)),
        )  # fmt: skip
        self.bias = bias if self.with_relu and shortcut is None else None
        self.y = y if self.with_relu and shortcut is not None else None
        return y.transpose(0, 3, 1, 2)

    def run_backward(self, grad_output: Array, wanted: tuple[bool, ...]) -> tuple[Array | None, ...]:
        """∂x, ∂weight, ∂bias and ∂shortcut, each None if not wanted."""
        xp, (N, _, _, C) = array_module(self.x), self.x.shape
        want_x, want_weight, want_bias, want_shortcut = wanted
        grad_y = xp.ascontiguousarray(cast(grad_output.transpose(0, 2, 3, 1), self.x.dtype))
        grad_x, grad_shortcut = (
            xp.empty(self.x.shape, self.x.dtype) if want else None for want in (want_x, want_shortcut)
        )
        partials = xp.empty((N, 2, C), FLOAT32) if want_weight or want_bias else None
        kernel = self._launch(
            "group_norm_backward", (self.x, grad_y, self.y, grad_x, grad_shortcut),
            grad_y, self.x, self.y, self.weight, self.bias, self.mean, self.rstd, grad_x, grad_shortcut, partials,
            *self._sizes(),
        )  # fmt: skip
        grad_x, grad_shortcut = (
            None if grad is None else grad.transpose(0, 3, 1, 2) for grad in (grad_x, grad_shortcut)
        )
        if partials is None:
            return grad_x, None, None, grad_shortcut
        grad_weight, grad_bias = xp.empty(C, FLOAT32), xp.empty(C, FLOAT32)
        sum_rows(kernel, partials, grad_weight, grad_bias)
        return grad_x, grad_weight if want_weight else None, grad_bias if want_bias else None, grad_shortcut

    def _launch(self, name: str, packed: tuple[Array | None, ...], *args: Any) -> Kernel:
        """Launch and return the kernel for all groups of all images. `packed`: arrays loaded or stored in packs."""
        (N, H, W, C), itemsize = self.x.shape, self.x.dtype.itemsize
        width = C // self.groups
        channels = max(width, SECTORS // itemsize)  # of a block
        if channels % width or width & (width - 1) or C % channels:
            channels = width
        aligned = all(a is None or pointer(a) % PACK == 0 for a in packed)
        pack = gcd(PACK // itemsize, channels) if aligned else 1
        threads = MAX_THREADS if H * W * channels > LARGE else THREADS
        kernel = _kernel(name, STORED[self.x.dtype.name], self.with_relu, width, channels // width, threads, pack)
        kernel((C // channels, N), threads, *args)
        return kernel

    def _sizes(self) -> tuple[np.int32, np.int32]:
        """The kernel arguments P, the pixels of an image, and C."""
        return np.int32(prod(self.x.shape[1:3])), np.int32(self.x.shape[3])


@fast_path_of(norm.GroupNorm)
class CUDAGroupNorm(Launches, norm.GroupNorm):
    """The op's formula by `group_norm.cu`, for images that are channels-last in memory, as a convolution returns them.

    Shapes: x, y (N, C, H, W), viewed as (N, P, C), P = H · W; μ, r (N, G).  Saves x, μ, r, weight.
    Dtypes: x and y float32, bfloat16 or float16; weight, bias, μ and r float32.
    """

    with_relu = False

    @staticmethod
    def supports(x: Array, weight: Array | None, bias: Array | None, *, num_groups: int, eps: float) -> bool:
        return _supports(x, weight, bias, num_groups)

    def forward(self, x: Array, weight: Array | None, bias: Array | None, *, num_groups: int, eps: float) -> Array:
        return self.run_forward(x, weight, bias, None, num_groups, eps)

    def backward(self, grad_output: Array) -> tuple[Array | None, Array | None, Array | None]:
        grad_x, grad_weight, grad_bias, _ = self.run_backward(grad_output, (*self.needs_input_grad, False))
        return grad_x, grad_weight, grad_bias


@fast_path_of(norm.GroupNormReLU)
class CUDAGroupNormReLU(Launches, norm.GroupNormReLU):
    """The op's formula by `group_norm.cu`: one kernel forward, one backward, and sum_rows.

    Shapes and dtypes as CUDAGroupNorm; the shortcut as x.  Saves x, μ, r, weight, and y with a shortcut, else the bias:
    backward computes y ≤ 0 again.
    """

    with_relu = True

    @staticmethod
    def supports(
        x: Array, weight: Array | None, bias: Array | None, shortcut: Array | None, *, num_groups: int, eps: float
    ) -> bool:
        fits = shortcut is None or (
            on_gpu(shortcut) and shortcut.dtype == x.dtype and shortcut.shape == x.shape and shortcut.ndim == 4
            and bool(shortcut.transpose(0, 2, 3, 1).flags.c_contiguous)
        )  # fmt: skip
        return fits and _supports(x, weight, bias, num_groups)

    def forward(
        self, x: Array, weight: Array | None, bias: Array | None, shortcut: Array | None, *, num_groups: int, eps: float
    ) -> Array:
        return self.run_forward(x, weight, bias, shortcut, num_groups, eps)

    def backward(self, grad_output: Array) -> tuple[Array | None, ...]:
        return self.run_backward(grad_output, self.needs_input_grad)


def _supports(x: Array, weight: Array | None, bias: Array | None, num_groups: int) -> bool:
    if not (on_gpu(x) and x.dtype.name in STORED and x.ndim == 4 and x.size and x.shape[0] <= MAX_GRID[1]):
        return False
    _, C, H, W = x.shape
    groups = num_groups > 0 and C % num_groups == 0 and C // num_groups <= MAX_WIDTH
    affine = all(p is None or _is_param(p, C) for p in (weight, bias))
    return groups and affine and H * W < MAX_PIXELS and bool(x.transpose(0, 2, 3, 1).flags.c_contiguous)


def _is_param(p: Array, C: int) -> bool:
    return bool(on_gpu(p) and p.dtype == FLOAT32 and p.shape == (C,) and p.flags.c_contiguous)


@cache
def _kernel(name: str, stored: str, relu: bool, width: int, groups: int, threads: int, pack: int) -> Kernel:
    constants = {"RELU": int(relu), "WIDTH": width, "GROUPS": groups, "THREADS": threads, "PACK": pack}
    return Kernel("group_norm.cu", name, STORED=stored, **constants)
