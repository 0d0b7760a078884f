"""L2: resizing images, by two small matrices."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from minigrad.autograd.function import Function
from minigrad.backend import Array, array_module, beside, gemm
from minigrad.ops import checks

MODES = ("nearest", "nearest-exact", "bilinear", "bicubic")


class Interpolate(Function):
    """y = R x Cᵀ for every channel: rows are mixed by R, then columns by C.  Bicubic: Keys 1981.

        y[n,c] = R x[n,c] Cᵀ,   ∂x[n,c] = Rᵀ ∂y[n,c] C

    R and C come from one function of the sizes along their axis, `weights`. Most of their entries are 0 and are left
    out, so that an x that is no number shows only in the pixels that are made of it: 0 · NaN would be in all others
    too. `scales` are output over input sizes, along H and W, where a caller gave these; None is the ratio of the whole
    sizes.

    Shapes: x (N, C, H, W); y (N, C, OH, OW); R (OH, H); C (OW, W).  Saves R and C.
    """

    def forward(
        self,
        x: Array,
        *,
        size: Any,
        scales: tuple[float, float] | None,
        mode: str,
        align_corners: bool | None,
        antialias: bool,
    ) -> Array:
        out = _check(x, size, scales, mode, align_corners, antialias)
        self.rows, self.columns = (
            weights(
                x.shape[2 + axis],
                out[axis],
                mode=mode,
                align_corners=bool(align_corners),
                antialias=antialias,
                scale=None if scales is None else scales[axis],
            )
            for axis in (0, 1)
        )
        return _mix(self.columns, _mix(self.rows, x, axis=2), axis=3)

    def backward(self, grad_output: Array) -> Array:
        return _mix(self.columns.T, _mix(self.rows.T, grad_output, axis=2), axis=3)


def _mix(matrix: np.ndarray, x: Array, axis: int) -> Array:
    """M x along the rows (axis 2) or columns (axis 3) of images: y_r = Σ_j M_rj xⱼ over the j where M_rj is not 0."""
    xp = array_module(x)
    if xp is np and _is_finite(x):  # then 0 · xⱼ is 0, and a product the same, and faster
        M = matrix.astype(x.dtype)
        return gemm(M, x) if axis == 2 else gemm(x, M.T)
    N, C, *sizes = x.shape
    sizes[axis - 2] = len(matrix)
    y = xp.zeros((N, C, *sizes), x.dtype)
    for rows, columns, entries in _taps(matrix):
        factors = entries.astype(x.dtype).reshape((-1, 1) if axis == 2 else -1)  # (rows, 1) or (columns,)
        place = (slice(None),) * axis + (beside(x, rows),)
        y[place] += xp.take(x, beside(x, columns), axis=axis) * beside(x, factors)
    return y


def _is_finite(x: np.ndarray) -> bool:
    """Seen from the sum; a sum that is too large counts as not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(x.sum()))


def _taps(matrix: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The first entries of the rows that are not 0, then the second ones, and so on: their rows, columns and values."""
    rows, columns = np.nonzero(matrix)
    before = np.arange(len(rows)) - np.searchsorted(rows, rows)  # so many stand before it in its row
    for t in range(before.max() + 1):
        at = before == t
        yield rows[at], columns[at], matrix[rows[at], columns[at]]


def weights(
    in_size: int, out_size: int, *, mode: str, align_corners: bool, antialias: bool, scale: float | None
) -> np.ndarray:
    """The matrix (out_size, in_size) that resizes one axis, in float64.

    Input pixel j covers the stretch from j to j + 1, so its centre is j + ½. Output pixel r covers `step` of these
    pixels, step = in_size / out_size or 1 / scale, and its centre is c = step · (r + ½). The weights are

        nearest          1 for j = ⌊step · r⌋, the pixel under the near edge of r and not under its centre
        nearest-exact    1 for j = ⌊c⌋
        bilinear         triangle(j + ½ - c)
        bicubic          cubic(j + ½ - c)

    where pixels beyond the border count as the pixel at the border. With `align_corners` the outer centres of both axes
    meet: step = (in_size - 1) / (out_size - 1), c = step · r + ½. With `antialias`, where the image shrinks, the
    filters are `step` times as wide, with pixels beyond the border left out and the weights made to sum to 1; then
    `align_corners` changes the step only, and c = step · (r + ½) again (as in PyTorch).
    """
    unchanged = out_size == in_size and (antialias or mode in ("nearest", "bilinear"))
    if unchanged or (mode == "nearest" and out_size == 2 * in_size):
        scale = None  # PyTorch too takes the sizes here, so that a scale that is slightly off keeps whole pixels
    r, j = np.arange(out_size), np.arange(in_size)
    if align_corners:
        step = (in_size - 1) / (out_size - 1) if out_size > 1 else 0.0
    else:
        step = in_size / out_size if scale is None else 1 / scale
    centre = step * r + 0.5 if align_corners and not antialias else step * (r + 0.5)
    if mode in ("nearest", "nearest-exact"):
        edge_or_centre = r.astype(np.float32) + (0 if mode == "nearest" else 0.5)
        source = np.floor(np.float32(step) * edge_or_centre)  # float32 decides the ties, as in PyTorch
        return (j == np.minimum(source, in_size - 1)[:, None]).astype(np.float64)
    if antialias:
        distance = (j + 0.5 - centre[:, None]) / max(step, 1)
        matrix = _triangle(distance) if mode == "bilinear" else _cubic(distance, a=-0.5)
        return matrix / matrix.sum(axis=1, keepdims=True)
    beyond = np.arange(-2, in_size + 2)  # two pixels more at both ends, as far as the filters reach
    distance = beyond + 0.5 - centre[:, None]
    matrix = _triangle(distance) if mode == "bilinear" else _cubic(distance, a=-0.75)
    matrix[:, 2] += matrix[:, :2].sum(axis=1)
    matrix[:, -3] += matrix[:, -2:].sum(axis=1)
    return matrix[:, 2:-2]


def _triangle(t: np.ndarray) -> np.ndarray:
    """1 - |t| for |t| < 1, else 0."""
    return np.maximum(1 - abs(t), 0)


def _cubic(t: np.ndarray, *, a: float) -> np.ndarray:
    """(a + 2)|t|³ - (a + 3)|t|² + 1 for |t| ≤ 1;  a|t|³ - 5a|t|² + 8a|t| - 4a for 1 < |t| < 2;  0 elsewhere."""
    t = abs(t)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def _check(x: Array, size: Any, scales: Any, mode: str, align_corners: bool | None, antialias: bool) -> tuple[int, int]:
    """The output size, if the arguments go together."""
    checks.rank(x, 4, "(N, C, H, W)", "interpolate")
    checks.floating(x, "interpolate")
    if 0 in x.shape[1:]:
        raise ValueError(f"interpolate: only the batch may be empty, got shape {x.shape}")
    if mode not in MODES:
        raise ValueError(f"interpolate: mode must be one of {', '.join(MODES)}, got {mode!r}")
    if mode in ("nearest", "nearest-exact"):
        if align_corners is not None:
            raise ValueError(f"interpolate: align_corners is for 'bilinear' and 'bicubic'; leave it out with {mode!r}")
        if antialias:
            raise ValueError(f"interpolate: antialias is for 'bilinear' and 'bicubic', {mode!r} has no filter to widen")
    if scales is not None and min(scales) <= 0:
        raise ValueError(f"interpolate: the scales must be above 0, got {scales}")
    return checks.pair(size, "size", "interpolate", least=1)
