"""L0: sums of float32 over any axes of an array, in any layout, as exact as PyTorch's.

NumPy adds pairwise along the axis that is contiguous in memory. Along every other axis NumPy adds row by row into one
row of totals (naive summation). For n terms, with u the unit roundoff, 2⁻²⁴ in float32, the errors are at most

    naive       (n - 1) · u · Σ |xᵢ|       every addition rounds a total that is as large as the result
    pairwise    ⌈log₂ n⌉ · u · Σ |xᵢ|      Higham 1993, "The accuracy of floating point summation"

A sum over a batch, as in the gradient of a bias, is a naive one: over 10⁵ rows it loses two decimal digits. So here
the rows are added in two stages, with k = ⌊n / GROUP⌋:

    sⱼ = xⱼ + xⱼ₊ₖ + xⱼ₊₂ₖ + ..,   j < k    GROUP terms in float32: one product of a vector of ones and a matrix
    y  = Σⱼ sⱼ                              k terms in float64

The error is at most GROUP · u · Σ |xᵢ| for every n, and BLAS takes half the time of NumPy's sum.

On a GPU, sums are CuPy's own, which are trees.
"""

from math import prod

import numpy as np

from minigrad.backend.arrays import Array, array_module
from minigrad.backend.dtypes import FLOAT32, cast, is_half

FEW = 8  # terms, of which a naive sum is as exact as any
GROUP = 32  # terms added in float32 if there are MANY in all: the errors of many groups cancel; else FEW
MANY = 256  # also the terms added at once along a row: BLAS adds them in lanes of a few each
ONES = {np.dtype(kind): np.ones(MANY, kind) for kind in (np.float32, np.float64)}

Axis = int | tuple[int, ...] | None


def sum_over(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """Σ x over `axis` (None: all axes), in the dtype of x, and with the axes in memory in the order of x.

    NaN and infinity give what they give in `x.sum`. 16-bit floats are added in float32. Integers are NumPy's to add.
    """
    if x.size <= 2 * GROUP and x.itemsize > 2:  # too few to be worth more
        return x.sum(axis=axis, keepdims=keepdims)
    if axis is None:
        axes = tuple(range(x.ndim))
    else:
        axes = (axis % x.ndim,) if isinstance(axis, int) else tuple([a % x.ndim for a in axis])
    shape = x.shape
    n = prod([shape[a] for a in axes])
    if n <= FEW or type(x) is not np.ndarray or not x.size:
        return x.sum(axis=axes, keepdims=keepdims)
    if len(axes) == x.ndim and x.flags.c_contiguous and x.dtype in ONES:
        return x.sum(axis=axes, keepdims=keepdims)  # pairwise
    if x.dtype not in ONES:
        return _of_another_dtype(x, axes, keepdims)
    if axes == tuple(range(len(axes))) and x.flags.c_contiguous:
        y = _sum_of_run(x, 0, len(axes))
        return y.reshape((1,) * len(axes) + y.shape) if keepdims else y
    repeated = [a for a in axes if not x.strides[a] and shape[a] > 1]
    if repeated:  # the same values n times: their sum is a product
        once = x[tuple([slice(1) if a in repeated else slice(None) for a in range(x.ndim)])]
        return sum_over(once, axes, keepdims) * prod([shape[a] for a in repeated])
    # View x with its axes in the order of memory, outermost first, without those of size 1.
    order = sorted([a for a, size in enumerate(shape) if size > 1], key=lambda a: -abs(x.strides[a]))
    y = x.transpose(order + [a for a, size in enumerate(shape) if size == 1]).reshape([shape[a] for a in order])
    stop = len(order)
    while stop:  # from the innermost axis outwards, add up each run of neighbouring axes that are summed
        start = stop
        while start and (order[start - 1] in axes) == (order[stop - 1] in axes):
            start -= 1
        if order[start] in axes:
            y = _sum_of_run(y, start, stop)
        stop = start
    kept = [a for a in order if a not in axes]
    y = y.transpose(sorted(range(len(kept)), key=kept.__getitem__))  # axes in the order of x again
    return y.reshape([1 if a in axes else size for a, size in enumerate(shape) if keepdims or a not in axes])


def mean_over(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """The mean of x over `axis`; NaN of no values."""
    total = sum_over(x, axis, keepdims)
    n = x.size // max(total.size, 1)
    return total / n if n else total * np.nan


def deviations(x: Array, axis: Axis) -> tuple[Array, Array]:
    """μ = ⟨x⟩ over `axis`, of size 1 there, and d = x - μ.

    If x is large and varies little, rounding μ to the dtype of x leaves all deviations off by the same amount, and by
    more than many values of x differ. This amount is the mean of the deviations, so it is computed and subtracted.
    """
    xp, mean = array_module(x), mean_over(x, axis, keepdims=True)
    d = x - mean
    rest = mean_over(d, axis, keepdims=True)
    rest = xp.where(xp.isfinite(rest), rest, 0)
    d -= rest
    return mean + rest, d


def cumulative_sum(x: Array, axis: int) -> Array:
    """yᵢ = Σ_{j≤i} xⱼ along `axis`. NumPy adds one term after another: floats in float64, then."""
    if type(x) is not np.ndarray or x.dtype.kind != "f":
        return x.cumsum(axis=axis)
    return x.cumsum(axis=axis, dtype=np.float64).astype(x.dtype, copy=False)


def _sum_of_run(x: Array, start: int, stop: int) -> Array:
    """Σ over the axes from `start` to `stop`: (..., *run, *tail) -> (..., *tail)."""
    lead, tail = x.shape[:start], x.shape[stop:]
    n, C = prod(x.shape[start:stop]), prod(tail)
    rows = x.reshape(*lead, n, C)
    if C == 1:
        return _sum_along_last(rows[..., 0]).reshape(lead + tail)
    if n <= FEW:
        return rows.sum(axis=-2).reshape(*lead, *tail)
    if n <= 2 * GROUP:
        return _product_with_ones(rows).reshape(*lead, *tail)
    group = GROUP if n >= MANY else FEW
    k = n // group
    groups = rows[..., : k * group, :].reshape(*lead, group, k * C)
    total = _product_with_ones(groups).reshape(*lead, k, C).sum(axis=-2, dtype=np.float64)
    if n % group:
        total += _product_with_ones(rows[..., k * group :, :])
    return total.astype(x.dtype).reshape(*lead, *tail)


def _sum_along_last(x: Array) -> Array:
    """(..., n) -> (...): pairwise, or by BLAS if there are many short rows, on which NumPy is slow."""
    n = x.shape[-1]
    if x.ndim == 1 or n > 16 * MANY or not x.flags.c_contiguous:
        return x.sum(axis=-1)
    rows = x.reshape(-1, n)
    first, *others = (rows[:, i : i + MANY] @ ONES[x.dtype][: min(MANY, n - i)] for i in range(0, n, MANY))
    total = sum(others, first.astype(np.float64)).astype(x.dtype) if others else first
    return total.reshape(x.shape[:-1])


def _product_with_ones(rows: Array) -> Array:
    """Σ over the rows of matrices by BLAS: (..., n, C) -> (..., C). BLAS needs rows without gaps, one after another."""
    *_, n, C = rows.shape
    if rows.strides[-1] != rows.itemsize or rows.strides[-2] < C * rows.itemsize:
        rows = np.ascontiguousarray(rows)
    return np.matmul(ONES[rows.dtype][:n], rows)


def _of_another_dtype(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    if is_half(x.dtype):
        return cast(sum_over(cast(x, FLOAT32), axes, keepdims), x.dtype)
    return x.sum(axis=axes, keepdims=keepdims)
