"""L2: LayerNorm with each row in registers, with or without a residual connection before it."""

from collections.abc import Sequence
from functools import cache
from math import prod

import numpy as np

from minigrad.backend import Array, array_module
from minigrad.backend.dtypes import FLOAT32, cast
from minigrad.backend.fast_paths import fast_path_of
from minigrad.kernels.cuda.launch import SMALLEST, STORED, WARP, Kernel, on_gpu, pack_of, sum_rows
from minigrad.kernels.cuda.residual import NONE_DROPPED, CUDAResidual, Dropped, dropped
from minigrad.ops import norm, residual

THREADS = 256  # threads of a block, in norm.cu
MAX_WARP_COLUMNS, MAX_COLUMNS = 1024, 8192  # for a warp and for a block: 32 columns in each thread's registers
MAX_ROWS = 1 << 30
BLOCKS = 256  # partial sums of ∂weight and ∂bias: enough blocks to fill a GPU, and the same order of sums on every GPU


@fast_path_of(norm.LayerNorm)
class CUDALayerNorm(norm.LayerNorm):
    """The op's formula by `norm.cu`: one kernel forward, one backward, and sum_rows for ∂weight and ∂bias.

    Shapes: x and y are viewed as (rows, C), C the size of the normalised axes; μ, r (rows,).  Saves x, μ, r, weight.
    Dtypes: x and y float32, bfloat16 or float16; weight, bias, μ and r float32.
    """

    @staticmethod
    def supports(x: Array, weight: Array | None, bias: Array | None, *, shape: tuple[int, ...], eps: float) -> bool:
        if not (on_gpu(x) and x.size and shape and x.shape[x.ndim - len(shape) :] == shape):
            return False
        if prod(shape) > MAX_COLUMNS:
            return False
        if not (x.dtype.name in STORED and x.flags.c_contiguous and x.size < MAX_ROWS * prod(shape)):
            return False
        return all(p is None or _is_param(p, shape) for p in (weight, bias))

    def forward(
        self, x: Array, weight: Array | None, bias: Array | None, *, shape: tuple[int, ...], eps: float
    ) -> Array:
        self.weight, self.shape = weight, shape
        self.x, y, self.mean, self.rstd = normalize(x, weight, bias, shape, eps)
        return y

    def backward(self, grad_output: Array) -> tuple[Array | None, Array | None, Array | None]:
        return self.backward_accumulate(grad_output, None)

    def backward_accumulate(
        self, grad_output: Array, total: Array | None
    ) -> tuple[Array | None, Array | None, Array | None]:
        want_x, *want_params = self.needs_input_grad
        grad_x, _, grad_weight, grad_bias = normalize_backward(
            grad_output, self.x, self.weight, self.mean, self.rstd, self.shape, (want_x, None, *want_params), total
        )
        return grad_x, grad_weight, grad_bias


@fast_path_of(residual.ResidualLayerNorm)
class CUDAResidualLayerNorm(residual.ResidualLayerNorm):
    """The op's formula in one pass over memory: s is cast to its dtype, stored, and normalised while in registers, so y
    is bit for bit CUDALayerNorm of the stored s. Backward adds ∂s in float32, and casts ∂x and ∂b once.

    Shapes: x, b, s, y as (rows, C); μ, r (rows,).  Saves s, μ, r, weight, and for m the random numbers u (N,) and p.
    """

    @staticmethod
    def supports(x: Array, branch: Array, weight: Array, bias: Array, *, p: float, eps: float) -> bool:
        normed = CUDALayerNorm.supports(x, weight, bias, shape=x.shape[-1:], eps=eps)
        return normed and CUDAResidual.supports(x, branch, None, p=p)

    def forward(
        self, x: Array, branch: Array, weight: Array, bias: Array, *, p: float, eps: float
    ) -> tuple[Array, Array]:
        self.weight, self.dropped = weight, dropped(x, p)
        self.s, y, self.mean, self.rstd = normalize(x, weight, bias, x.shape[-1:], eps, branch, self.dropped)
        return self.s, y

    def backward(self, grad_outputs: list[Array | None]) -> tuple[Array | None, ...]:
        grad_s, grad_y = grad_outputs
        if grad_y is not None:
            return normalize_backward(
                grad_y, self.s, self.weight, self.mean, self.rstd, self.weight.shape, self.needs_input_grad,
                grad_s, self.dropped,
            )  # fmt: skip
        alone = CUDAResidual()  # y has no gradient: only the residual connection remains
        alone.needs_input_grad = (*self.needs_input_grad[:2], False)
        alone.dropped, alone.scale, alone.branch = self.dropped, None, None
        return *alone.backward(grad_s)[:2], None, None


def normalize(
    x: Array, weight: Array | None, bias: Array | None, shape: tuple[int, ...], eps: float,
    branch: Array | None = None, dropped: Dropped = NONE_DROPPED,
) -> tuple[Array, Array, Array, Array]:  # fmt: skip
    """s = x + m · b, or x without a branch; y = LayerNorm(s); μ and r of s."""
    xp, C = array_module(x), prod(shape)
    rows = x.size // C
    s = None if branch is None else xp.empty(x.shape, x.dtype)
    y, mean, rstd = xp.empty(x.shape, x.dtype), xp.empty(rows, FLOAT32), xp.empty(rows, FLOAT32)
    kernel, block = _compiled("layer_norm_forward", C, x, weight, bias, y, branch, s)
    kernel(
        -(-rows // block[1]), block,
        x, weight, bias, y, mean, rstd, np.int32(rows), np.float32(max(eps, SMALLEST)), branch, s, *dropped,
    )  # fmt: skip
    return x if s is None else s, y, mean, rstd


def normalize_backward(
    grad_y: Array, s: Array, weight: Array | None, mean: Array, rstd: Array, shape: tuple[int, ...],
    wanted: Sequence[object], grad_s: Array | None = None, dropped: Dropped = NONE_DROPPED,
) -> tuple[Array | None, ...]:  # fmt: skip
    """∂x, ∂b, ∂weight, ∂bias, each if `wanted`, else None. Without stochastic depth, ∂b is the same array as ∂x."""
    xp, C, rows, same = array_module(s), prod(shape), len(mean), dropped[0] is None
    want_x, want_branch, *want_params = wanted
    if same:
        want_x, want_branch = want_x or want_branch, None
    grad_y, grad_s = (None if g is None else xp.ascontiguousarray(cast(g, s.dtype)) for g in (grad_y, grad_s))
    grad_x, grad_branch = (xp.empty(s.shape, s.dtype) if want else None for want in (want_x, want_branch))
    kernel, block = _compiled("layer_norm_backward", C, s, grad_y, weight, grad_x, grad_s, grad_branch)
    blocks = min(BLOCKS, -(-rows // block[1]))
    partials = xp.empty((blocks, 2, C), FLOAT32) if any(want_params) else None
    kernel(
        blocks, block,
        grad_y, s, weight, mean, rstd, grad_x, partials, np.int32(rows), grad_s, grad_branch, *dropped,
        shared=2 * C * 4 if block[1] > 1 else 0,
    )  # fmt: skip
    if same:
        grad_branch = grad_x
    if partials is None:
        return grad_x, grad_branch, None, None
    want_weight, want_bias = want_params
    grad_weight, grad_bias = xp.empty(shape, FLOAT32), xp.empty(shape, FLOAT32)
    sum_rows(kernel, partials, grad_weight, grad_bias)
    return grad_x, grad_branch, grad_weight if want_weight else None, grad_bias if want_bias else None


def _is_param(p: Array, shape: tuple[int, ...]) -> bool:
    return bool(on_gpu(p) and p.dtype == FLOAT32 and p.shape == shape and p.flags.c_contiguous)


def _compiled(name: str, C: int, x: Array, *others: Array | None) -> tuple[Kernel, tuple[int, int]]:
    """The kernel for rows of C elements of x's dtype, in 16-byte packs if all arrays are aligned, and the block."""
    team = WARP if C <= MAX_WARP_COLUMNS else THREADS
    return _kernel(name, STORED[x.dtype.name], C, team, pack_of(x, C, *others)), (team, THREADS // team)


@cache
def _kernel(name: str, stored: str, C: int, team: int, pack: int) -> Kernel:
    return Kernel("norm.cu", name, STORED=stored, COLUMNS=C, TEAM=team, PACK=pack)
