"""L2: normalisation, a row in registers; and with a residual connection before it."""

from collections.abc import Sequence
from functools import cache
from math import prod

import numpy as np

from minigrad.backend import Array, array_module
from minigrad.dtypes import FLOAT32, cast
from minigrad.kernels.cuda.launch import STORED, WARP, Kernel, on_gpu, pack_of, sum_rows
from minigrad.kernels.cuda.residual import NONE_DROPPED, Dropped, Residual, dropped
from minigrad.kernels.twins import twin_of
from minigrad.ops import norm, residual

THREADS = 256  # of a block, in norm.cu
WIDEST_FOR_A_WARP, WIDEST = 1024, 8192  # columns: 32 in each thread's registers
MOST_ROWS = 1 << 30
BLOCKS = 256  # that share ∂weight and ∂bias: enough to keep a GPU busy; always as many, whatever the GPU, so that sums
# have the same order on all


@twin_of(norm.LayerNorm)
class LayerNorm(norm.LayerNorm):
    """The same formula by `norm.cu`: one kernel forward, one backward, and a short one that ends the sums of ∂weight.

    Shapes: x and y as (rows, C), with the C numbers of one mean in each; μ, r (rows,).  Saves x, μ, r, weight.
    x and y may be narrow; weight, bias, μ and r are float32.
    """

    @staticmethod
    def takes(x: Array, weight: Array | None, bias: Array | None, *, shape: tuple[int, ...], eps: float) -> bool:
        if not (on_gpu(x) and x.size and shape and x.shape[x.ndim - len(shape) :] == shape and prod(shape) <= WIDEST):
            return False
        if not (x.dtype.name in STORED and x.flags.c_contiguous and x.size < MOST_ROWS * prod(shape)):
            return False
        return all(p is None or _is_param(p, shape) for p in (weight, bias))

    def forward(
        self, x: Array, weight: Array | None, bias: Array | None, *, shape: tuple[int, ...], eps: float
    ) -> Array:
        self.weight, self.shape = weight, shape
        self.x, y, self.mean, self.rstd = normalize(x, weight, bias, shape, eps)
        return y

    def backward(self, grad_output: Array) -> tuple[Array | None, Array | None, Array | None]:
        want_x, *want_params = self.needs_input_grad
        grad_x, _, grad_weight, grad_bias = normalize_backward(
            grad_output, self.x, self.weight, self.mean, self.rstd, self.shape, (want_x, None, *want_params)
        )
        return grad_x, grad_weight, grad_bias


@twin_of(residual.ResidualLayerNorm)
class ResidualLayerNorm(residual.ResidualLayerNorm):
    """The same formula in one pass: s is rounded, written, and normalised while it is in registers, so y is bit for bit
    the norm of what s holds. Backward ∂s is added in float32, and ∂x and ∂b are rounded once.

    Shapes: x, b, s, y as (rows, C); μ, r (rows,).  Saves s, μ, r, weight, and what m is made of.
    """

    @staticmethod
    def takes(x: Array, branch: Array, weight: Array, bias: Array, *, p: float, eps: float) -> bool:
        normed = LayerNorm.takes(x, weight, bias, shape=x.shape[-1:], eps=eps)
        return normed and Residual.takes(x, branch, None, p=p)

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
        alone = Residual()  # nobody has used y
        alone.needs_input_grad = (*self.needs_input_grad[:2], None)
        alone.dropped, alone.scale, alone.branch = self.dropped, None, None
        return *alone.backward(grad_s)[:2], None, None


def normalize(
    x: Array, weight: Array | None, bias: Array | None, shape: tuple[int, ...], eps: float,
    branch: Array | None = None, dropped: Dropped = NONE_DROPPED,
) -> tuple[Array, Array, Array, Array]:  # fmt: skip
    """s = x + m · b, or x itself without a branch; its norm y; and μ and r."""
    xp, C = array_module(x), prod(shape)
    rows = x.size // C
    s = None if branch is None else xp.empty(x.shape, x.dtype)
    y, mean, rstd = xp.empty(x.shape, x.dtype), xp.empty(rows, FLOAT32), xp.empty(rows, FLOAT32)
    kernel, block = _compiled("layer_norm_forward", C, x, weight, bias, y, branch, s)
    kernel(
        -(-rows // block[1]), block,
        x, weight, bias, y, mean, rstd, np.int32(rows), np.float32(eps), branch, s, *dropped,
    )  # fmt: skip
    return x if s is None else s, y, mean, rstd


def normalize_backward(
    grad_y: Array, s: Array, weight: Array | None, mean: Array, rstd: Array, shape: tuple[int, ...],
    wanted: Sequence[object], grad_s: Array | None = None, dropped: Dropped = NONE_DROPPED,
) -> tuple[Array | None, ...]:  # fmt: skip
    """∂x, ∂b, ∂weight, ∂bias, each if it is `wanted`. Where nothing is dropped, ∂b is ∂x."""
    xp, C, rows, same = array_module(s), prod(shape), len(mean), dropped[0] is None
    want_x, want_branch, *want_params = wanted
    if same:
        want_x, want_branch = want_x or want_branch, None
    grad_y, grad_s = (None if g is None else xp.ascontiguousarray(cast(g, s.dtype)) for g in (grad_y, grad_s))
    grad_x, grad_branch = (xp.empty(s.shape, s.dtype) if want else None for want in (want_x, want_branch))
    kernel, block = _compiled("layer_norm_backward", C, s, grad_y, weight, grad_x, grad_s, grad_branch)
    blocks = min(BLOCKS, -(-rows // block[1]))
    shares = xp.empty((blocks, 2, C), FLOAT32) if any(want_params) else None
    kernel(
        blocks, block,
        grad_y, s, weight, mean, rstd, grad_x, shares, np.int32(rows), grad_s, grad_branch, *dropped,
        shared=2 * C * 4 if block[1] > 1 else 0,
    )  # fmt: skip
    if same:
        grad_branch = grad_x
    if shares is None:
        return grad_x, grad_branch, None, None
    sums = xp.empty((2, *shape), FLOAT32)
    sum_rows(kernel, shares, sums)
    grad_weight, grad_bias = (grad if want else None for grad, want in zip(sums, want_params, strict=True))
    return grad_x, grad_branch, grad_weight, grad_bias


def _is_param(p: Array, shape: tuple[int, ...]) -> bool:
    return bool(on_gpu(p) and p.dtype == FLOAT32 and p.shape == shape and p.flags.c_contiguous)


def _compiled(name: str, C: int, x: Array, *others: Array | None) -> tuple[Kernel, tuple[int, int]]:
    """The kernel for rows of C numbers like those of x, 16 bytes at once if all arrays allow it; and a block: threads,
    and rows."""
    team = WARP if C <= WIDEST_FOR_A_WARP else THREADS
    return _kernel(name, STORED[x.dtype.name], C, team, pack_of(x, C, *others)), (team, THREADS // team)


@cache
def _kernel(name: str, stored: str, C: int, team: int, pack: int) -> Kernel:
    return Kernel("norm.cu", name, STORED=stored, COLUMNS=C, TEAM=team, PACK=pack)
