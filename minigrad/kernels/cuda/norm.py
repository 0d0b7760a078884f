"""L2: normalisation, a row in registers."""

from functools import cache
from math import prod

import numpy as np

from minigrad.backend import Array, array_module
from minigrad.dtypes import FLOAT32, cast
from minigrad.kernels.cuda.launch import STORED, WARP, Kernel, on_gpu, pack_of, sum_rows
from minigrad.kernels.twins import twin_of
from minigrad.ops import norm

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
        xp, C = array_module(x), prod(shape)
        rows = x.size // C
        y = xp.empty(x.shape, x.dtype)
        self.x, self.weight, self.shape = x, weight, shape
        self.mean, self.rstd = xp.empty(rows, FLOAT32), xp.empty(rows, FLOAT32)
        kernel, block = _compiled("layer_norm_forward", C, x, weight, bias, y)
        kernel(
            -(-rows // block[1]), block,
            x, weight, bias, y, self.mean, self.rstd, np.int32(rows), np.float32(eps),
        )  # fmt: skip
        return y

    def backward(self, grad_output: Array) -> tuple[Array | None, Array | None, Array | None]:
        xp, C, rows = array_module(self.x), prod(self.shape), len(self.mean)
        want_x, *want_params = self.needs_input_grad
        grad_y = xp.ascontiguousarray(cast(grad_output, self.x.dtype))
        grad_x = xp.empty(self.x.shape, self.x.dtype) if want_x else None
        kernel, block = _compiled("layer_norm_backward", C, self.x, grad_y, self.weight, grad_x)
        blocks = min(BLOCKS, -(-rows // block[1]))
        shares = xp.empty((blocks, 2, C), FLOAT32) if any(want_params) else None
        kernel(
            blocks, block,
            grad_y, self.x, self.weight, self.mean, self.rstd, grad_x, shares, np.int32(rows),
            shared=2 * C * 4 if block[1] > 1 else 0,
        )  # fmt: skip
        if shares is None:
            return grad_x, None, None
        sums = xp.empty((2, *self.shape), FLOAT32)
        sum_rows(kernel, shares, sums)
        grad_weight, grad_bias = (grad if want else None for grad, want in zip(sums, want_params, strict=True))
        return grad_x, grad_weight, grad_bias


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
