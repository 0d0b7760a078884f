"""L2: the residual connection with layer scale and stochastic depth, in one pass over memory."""

from functools import cache
from math import prod
from typing import TypeAlias

import numpy as np

from minigrad.backend import Array, array_module, device_of
from minigrad.backend.dtypes import FLOAT32
from minigrad.backend.fast_paths import fast_path_of
from minigrad.backend.random import default_generator
from minigrad.kernels.cuda.launch import STORED, WARP, Kernel, on_gpu, pack_of, sum_rows
from minigrad.ops import residual

THREADS = 256  # threads of a block
MAX_ROWS = 1 << 30
MAX_BLOCKS = 65535  # of a grid along y
BLOCKS = 128  # partial sums of ∂γ: the same on every GPU, and so is the order of sums

Dropped: TypeAlias = tuple[Array | None, np.float32, np.float32, np.int32]
"""The fields of `Dropped` in dropped.cuh: u (N,) or None, p, 1 / (1 - p), rows per image."""
NONE_DROPPED: Dropped = None, np.float32(0), np.float32(1), np.int32(1)


@fast_path_of(residual.Residual)
class CUDAResidual(residual.Residual):
    """The op's formula by `residual.cu`: one kernel forward, one backward, and sum_rows for ∂γ.

    Without γ and stochastic depth ∂b is ∂s, and backward launches nothing.  Saves for m the random numbers u (N,) and
    p; γ; and b if γ needs a gradient.
    """

    @staticmethod
    def supports(x: Array, branch: Array, scale: Array | None, *, p: float) -> bool:
        if not (on_gpu(x) and on_gpu(branch) and x.ndim > 1 and x.size and x.shape == branch.shape):
            return False  # (1-D: an image would be one column)
        if not (x.dtype.name in STORED and x.dtype == branch.dtype and x.size < MAX_ROWS * x.shape[-1]):
            return False
        fits = scale is None or (on_gpu(scale) and scale.dtype == FLOAT32 and scale.shape == x.shape[-1:])
        return bool(fits and all(a is None or a.flags.c_contiguous for a in (x, branch, scale)))

    def forward(self, x: Array, branch: Array, scale: Array | None, *, p: float) -> Array:
        self.dropped, self.scale = dropped(x, p), scale
        self.branch = branch if scale is not None and self.needs_input_grad[2] else None
        s = array_module(x).empty(x.shape, x.dtype)
        kernel, columns, block, _ = _compiled("residual_forward", x, branch, s)
        rows = x.size // x.shape[-1]
        blocks = min(-(-rows // block[1]), MAX_BLOCKS)
        kernel((columns, blocks), block, x, branch, scale, s, np.int32(rows), *self.dropped)
        return s

    def backward(self, grad_output: Array) -> tuple[Array, Array, Array | None]:
        if self.dropped[0] is None and self.scale is None:
            return grad_output, grad_output, None
        want_branch, want_scale = self.needs_input_grad[1], self.branch is not None
        if not (want_branch or want_scale):
            return grad_output, None, None
        xp, C, rows = array_module(grad_output), grad_output.shape[-1], grad_output.size // grad_output.shape[-1]
        grad_s = xp.ascontiguousarray(grad_output)
        grad_branch = xp.empty(grad_s.shape, grad_s.dtype) if want_branch else None
        kernel, columns, block, pack = _compiled("residual_backward", grad_s, self.branch, grad_branch)
        blocks = min(-(-rows // block[1]), BLOCKS)
        partials, grad_scale = (xp.empty((blocks, C), FLOAT32), xp.empty(C, FLOAT32)) if want_scale else (None, None)
        kernel(
            (columns, blocks), block,
            grad_s, self.branch, self.scale, grad_branch, partials, np.int32(rows), *self.dropped,
            shared=THREADS * pack * 4 if want_scale else 0,
        )  # fmt: skip
        if partials is not None:
            sum_rows(kernel, partials, grad_scale)
        return grad_output, grad_branch, grad_scale


def dropped(x: Array, p: float) -> Dropped:
    """Stochastic depth for the N images of x (N, ..., C): draws the random numbers u (N,), unless p is 0."""
    if not p:
        return NONE_DROPPED
    u = default_generator().uniform(x.shape[:1], device=device_of(x), axis=0)
    return u, np.float32(p), np.float32(1 / (1 - p) if p < 1 else 0), np.int32(prod(x.shape[1:-1]))


def _compiled(name: str, x: Array, *arrays: Array | None) -> tuple[Kernel, int, tuple[int, int], int]:
    """The kernel for rows of C elements of x's dtype, gridDim.x, the block size, and PACK."""
    C = x.shape[-1]
    pack = pack_of(x, C, *arrays)
    across = min(WARP, 1 << (-(-C // pack) - 1).bit_length())
    return _kernel(name, C, pack, STORED[x.dtype.name]), -(-C // (pack * across)), (across, THREADS // across), pack


@cache
def _kernel(name: str, C: int, pack: int, stored: str) -> Kernel:
    return Kernel("residual.cu", name, C=C, PACK=pack, STORED=stored)
