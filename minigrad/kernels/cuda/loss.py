"""L2: cross-entropy, with each row of logits in registers."""

from functools import cache

import numpy as np

from minigrad.backend import Array, array_module
from minigrad.backend.fast_paths import fast_path_of
from minigrad.kernels.cuda.launch import WARP, Kernel, on_gpu
from minigrad.ops import loss

MAX_WARP_COLUMNS, MAX_COLUMNS = 1024, 24576  # classes, for a warp and for a block: 32 and 48 in each thread's registers
TEAM = 512  # threads of a row of more than MAX_WARP_COLUMNS classes
MAX_ROWS = 1 << 30


@fast_path_of(loss.CrossEntropy)
class CUDACrossEntropy(loss.CrossEntropy):
    """The op's formula by `loss.cu`: one kernel forward, one for the reduction, one backward. Smoothed targets are
    not stored.

    On a GPU indices are not checked, as a check would synchronize: an index out of range gives q = 0, no error.

    Shapes: x (N, C), index (N,) or q (N, C); x, q, w float32.  Saves x, the target, w, and 1 / the divisor of the mean.
    """

    @staticmethod
    def supports(
        x: Array, target: Array, weight: Array | None, *, ignore_index: int, reduction: str, label_smoothing: float
    ) -> bool:
        if not (_readable(x) and on_gpu(target) and x.ndim == 2 and x.size):
            return False
        (N, C), indices = x.shape, target.dtype.kind in "iu"
        fitting = (indices or _readable(target)) and target.shape == ((N,) if indices else (N, C))
        weighted = weight is None or (_readable(weight) and weight.shape == (C,))
        known = reduction in ("mean", "sum", "none") and 0 <= label_smoothing <= 1
        return fitting and weighted and known and C <= MAX_COLUMNS and N < MAX_ROWS

    def forward(
        self, x: Array, target: Array, weight: Array | None, *,
        ignore_index: int, reduction: str, label_smoothing: float,
    ) -> Array:  # fmt: skip
        xp, (N, C) = array_module(x), x.shape
        indices = target.dtype.kind in "iu"
        index = xp.ascontiguousarray(target, dtype=np.int64) if indices else None
        self.x, self.targets = x, (index, None if indices else target, weight)
        smoothing = np.float32(1 - label_smoothing), np.float32(label_smoothing / C)
        self.sizes = np.int32(N), np.int64(ignore_index), *smoothing
        loss = xp.empty(N, np.float32)
        row_weight = xp.empty(N, np.float32) if reduction == "mean" else None
        self._launch("cross_entropy_forward", x, *self.targets, loss, row_weight, *self.sizes)
        self.scale = None
        if reduction == "none":
            return loss
        total, self.scale = xp.empty((), np.float32), xp.empty((), np.float32)
        _kernel("cross_entropy_total", C)(1, 1024, loss, row_weight, total, self.scale, np.int32(N))
        return total

    def backward(self, grad_output: Array) -> tuple[Array | None, Array | None, None]:
        xp = array_module(self.x)
        want_x, want_q, _ = self.needs_input_grad
        grad_loss = xp.ascontiguousarray(grad_output, dtype=np.float32)
        grad_x = xp.empty(self.x.shape, np.float32) if want_x else None
        grad_q = xp.empty(self.x.shape, np.float32) if want_q else None
        self._launch(
            "cross_entropy_backward",
            grad_loss, np.int32(grad_output.ndim), self.scale, self.x, *self.targets, grad_x, grad_q, *self.sizes,
        )  # fmt: skip
        return grad_x, grad_q, None

    def _launch(self, name: str, *args: Array) -> None:
        """Launch a kernel over all rows of x."""
        N, C = self.x.shape
        team, teams = (WARP, 8) if C <= MAX_WARP_COLUMNS else (TEAM, 1)
        _kernel(name, C)(-(-N // teams), (team, teams), *args)


def _readable(x: Array) -> bool:
    return bool(on_gpu(x) and x.dtype == np.float32 and x.flags.c_contiguous)


@cache
def _kernel(name: str, C: int) -> Kernel:
    return Kernel("loss.cu", name, COLUMNS=C, TEAM=WARP if C <= MAX_WARP_COLUMNS else TEAM)
