"""L2: resizing images, as multiplication by two small matrices."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from minigrad.autograd.function import Function
from minigrad.backend import Array, array_module, gemm, to_device_of
from minigrad.ops import checks

MODES = ("nearest", "nearest-exact", "bilinear", "bicubic")


class Interpolate(Function):
    """y = R x Cᵀ for each channel: R interpolates between rows, C between columns.  Bicubic: Keys 1981.

        y[n,c] = R x[n,c] Cᵀ,   ∂x[n,c] = Rᵀ ∂y[n,c] C

    `weights` computes R and C from the sizes along H and W. Most weights in R and C are 0. Zero weights are left out of
    the sums: 0 · NaN is NaN, so a NaN in x would otherwise spread to an entire row or column. `scales` is the ratio of
    output to input size along H and W that the caller gave as `scale_factor`; None: the ratio of the integer sizes.

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
    """M x along H (axis 2) or W (axis 3) of images: y_r = Σ_j M_rj xⱼ, over the j where M_rj is not 0."""
    xp = array_module(x)
    if xp is np and _is_finite(x):  # then 0 · xⱼ is 0, and a matrix product is faster
        M = matrix.astype(x.dtype)
        return gemm(M, x) if axis == 2 else gemm(x, M.T)
    N, C, *sizes = x.shape
    sizes[axis - 2] = len(matrix)
    y = xp.zeros((N, C, *sizes), x.dtype)
    for rows, columns, entries in _taps(matrix):
        factors = entries.astype(x.dtype).reshape((-1, 1) if axis == 2 else -1)  # (rows, 1) or (columns,)
        index = (slice(None),) * axis + (to_device_of(rows, x),)
        y[index] += xp.take(x, to_device_of(columns, x), axis=axis) * to_device_of(factors, x)
    return y


def _is_finite(x: np.ndarray) -> bool:
    """True if x has no NaN or infinity. (False too if the sum of x overflows: then the slower path runs.)"""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(x.sum()))


def _taps(matrix: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Row indices, column indices and values of each row's first nonzero element, then of each row's second, ..."""
    rows, columns = np.nonzero(matrix)
    before = np.arange(len(rows)) - np.searchsorted(rows, rows)  # nonzero elements before each in its row
    for t in range(before.max() + 1):
        at = before == t
        yield rows[at], columns[at], matrix[rows[at], columns[at]]


def weights(
    in_size: int, out_size: int, *, mode: str, align_corners: bool, antialias: bool, scale: float | None
) -> np.ndarray:
    """The matrix (out_size, in_size) that resizes one axis, in float64.

    Input pixel j is the interval from j to j + 1, with centre j + ½. Output pixel r is an interval of length `step`,
    step = in_size / out_size (or 1 / scale, if given), with centre c = step · (r + ½). The weights are

        nearest          1 for j = ⌊step · r⌋, the input pixel at the left edge of r, not at its centre
        nearest-exact    1 for j = ⌊c⌋
        bilinear         triangle(j + ½ - c)
        bicubic          cubic(j + ½ - c)

    and pixels outside the image have the value of the nearest border pixel. With `align_corners`, the centres of the
    first and of the last pixels coincide: step = (in_size - 1) / (out_size - 1), c = step · r + ½. With `antialias`,
    filters are `step` times as wide if step > 1, pixels outside the image have weight 0, and each row is normalised to
    sum 1; as in PyTorch, `align_corners` then changes only the step: c = step · (r + ½).
    """
    unchanged = out_size == in_size and (antialias or mode in ("nearest", "bilinear"))
    if unchanged or (mode == "nearest" and out_size == 2 * in_size):
        scale = None  # as in PyTorch: a scale with rounding errors still copies pixels exactly
    r, j = np.arange(out_size), np.arange(in_size)
    if align_corners:
        step = (in_size - 1) / (out_size - 1) if out_size > 1 else 0.0
    else:
        step = in_size / out_size if scale is None else 1 / scale
    centre = step * r + 0.5 if align_corners and not antialias else step * (r + 0.5)
    if mode in ("nearest", "nearest-exact"):
        edge_or_centre = r.astype(np.float32) + (0 if mode == "nearest" else 0.5)
        source = np.floor(np.float32(step) * edge_or_centre)  # in float32, as in PyTorch, so that ties round alike
        return (j == np.minimum(source, in_size - 1)[:, None]).astype(np.float64)
    if antialias:
        distance = (j + 0.5 - centre[:, None]) / max(step, 1)
        matrix = _triangle(distance) if mode == "bilinear" else _cubic(distance, a=-0.5)
        return matrix / matrix.sum(axis=1, keepdims=True)
    beyond = np.arange(-2, in_size + 2)  # cubic filters reach two pixels outside the image
    distance = beyond + 0.5 - centre[:, None]
    matrix = _triangle(distance) if mode == "bilinear" else _cubic(distance, a=-0.75)
    # Add the weights of pixels outside the image to the weights of the border pixels.
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
    """Check the arguments of interpolate and return the output size."""
    checks.rank(x, 4, "(N, C, H, W)", "interpolate")
    checks.floating(x, "interpolate")
    if 0 in x.shape[1:]:
        raise ValueError(f"interpolate: only the batch may be empty, got shape {x.shape}")
    if mode not in MODES:
        raise ValueError(f"interpolate: mode must be one of {', '.join(MODES)}, got {mode!r}")
    if mode in ("nearest", "nearest-exact"):
        if align_corners is not None:
            raise ValueError(f"interpolate: align_corners is only for mode 'bilinear' or 'bicubic', got {mode!r}")
        if antialias:
            raise ValueError(f"interpolate: antialias is only for mode 'bilinear' or 'bicubic', got {mode!r}")
    if scales is not None and min(scales) <= 0:
        raise ValueError(f"interpolate: scales must be above 0, got {scales}")
    return checks.pair(size, "size", "interpolate", minimum=1)
