"""L0: sums over any axes of an array, in any memory layout, as accurate in float32 as PyTorch's.

NumPy uses pairwise summation along the axis that is contiguous in memory, but naive summation along every other axis:
it adds row by row to one row of totals. For n terms and unit roundoff u, 2⁻²⁴ in float32, the errors are at most

    naive       (n - 1) · u · Σ |xᵢ|       every addition rounds a total that is as large as the result
    pairwise    ⌈log₂ n⌉ · u · Σ |xᵢ|      Higham 1993, "The accuracy of floating point summation"

So NumPy's sum over a batch, as in the gradient of a bias, is naive, and over 10⁵ rows loses two decimal digits. Here,
rows are added in two stages, with k = ⌊n / GROUP⌋:

    sⱼ = xⱼ + xⱼ₊ₖ + xⱼ₊₂ₖ + ..,   j < k    GROUP terms in float32: one product of a vector of ones and a matrix
    y  = Σⱼ sⱼ                              k terms in float64

The error is at most GROUP · u · Σ |xᵢ| for every n, and BLAS is twice as fast as NumPy's sum.

On a GPU, CuPy's sums are used, which are tree reductions.
"""

from collections.abc import Callable
from math import prod

import numpy as np

from minigrad.backend.arrays import Array, array_module
from minigrad.backend.dtypes import FLOAT32, cast, is_half

TINY = 64  # elements of an array, up to which NumPy's sum is accurate enough, and has less overhead
FEW = 8  # terms, up to which naive summation is accurate enough
PRODUCT = 16  # terms, up to which one product with ones is accurate enough
MANY = 256  # terms, from which groups have GROUP terms, as the errors of many groups cancel; else SMALL_GROUP terms
GROUP, SMALL_GROUP = 32, 8
BLOCK = 256  # elements of a contiguous row that BLAS adds in one call, in several SIMD lanes
LONG = 4096  # elements of a contiguous row, up to which BLAS is faster than NumPy's pairwise sum
ONES = {np.dtype(kind): np.ones(BLOCK, kind) for kind in (np.float32, np.float64)}

Axis = int | tuple[int, ...] | None


def sum_over(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """Σ x over `axis` (None: all axes), in the dtype of x; the remaining axes keep the memory order of x. Computed by

        NumPy's or CuPy's sum     for few terms, all elements of a contiguous array, integers, and on a GPU
        `sum_over` in float32     for float16 and bfloat16
        `_sum_over_rows`          for the first axes of a contiguous array
        `_sum_in_memory_order`    for other axes

    NaN and infinity propagate as in `x.sum`.
    """
    if x.size <= TINY and x.itemsize > 2:
        return x.sum(axis=axis, keepdims=keepdims)
    if axis is None:
        axes = tuple(range(x.ndim))
    else:
        axes = (axis % x.ndim,) if isinstance(axis, int) else tuple([a % x.ndim for a in axis])
    if _numpy_suffices(x, axes):
        return x.sum(axis=axes, keepdims=keepdims)
    if x.dtype not in ONES:
        return cast(sum_over(cast(x, FLOAT32), axes, keepdims), x.dtype)
    if axes == tuple(range(len(axes))) and x.flags.c_contiguous:
        y = _sum_over_rows(x.reshape(prod(x.shape[: len(axes)]), -1))
    else:
        y = _sum_in_memory_order(x, axes)
    return y.reshape([1 if a in axes else size for a, size in enumerate(x.shape) if keepdims or a not in axes])


def mean_over(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """The mean of x over `axis`; NaN if there are no elements."""
    total = sum_over(x, axis, keepdims)
    n = x.size // max(total.size, 1)
    return total / n if n else total * np.nan


def means_over(axis: Axis, *arrays: Array) -> list[Array]:
    """The mean of each array over `axis`, with keepdims."""
    return [mean_over(x, axis, keepdims=True) for x in arrays]


def deviations(x: Array, axis: Axis, means: Callable[..., list[Array]] = means_over) -> tuple[Array, Array]:
    """μ = ⟨x⟩ over `axis`, with keepdims, and d = x - μ; means are computed by `means`.

    The rounding of μ to the dtype of x shifts all deviations by the same amount, large compared with d if |μ| is large
    compared with the spread of x. The mean of d equals this amount, so ⟨d⟩ is subtracted from d and added to μ.
    """
    xp, (mean,) = array_module(x), means(axis, x)
    d = x - mean
    (rest,) = means(axis, d)
    rest = xp.where(xp.isfinite(rest), rest, 0)
    d -= rest
    return mean + rest, d


def cumulative_sum(x: Array, axis: int) -> Array:
    """yᵢ = Σ_{j≤i} xⱼ along `axis`. Floats are added in float64, as NumPy's cumsum is a naive summation."""
    if type(x) is not np.ndarray or x.dtype.kind != "f":
        return x.cumsum(axis=axis)
    return x.cumsum(axis=axis, dtype=np.float64).astype(x.dtype, copy=False)


def cumulative_product(x: Array, axis: int) -> Array:
    """yᵢ = Π_{j≤i} xⱼ along `axis`. Floats are multiplied in float64."""
    if type(x) is not np.ndarray or x.dtype.kind != "f":
        return x.cumprod(axis=axis)
    with np.errstate(over="ignore"):  # a product above the maximum of float32 is ∞
        return x.cumprod(axis=axis, dtype=np.float64).astype(x.dtype, copy=False)


def _numpy_suffices(x: Array, axes: tuple[int, ...]) -> bool:
    """True if `x.sum` is accurate: for few terms, integers, CuPy, and all elements of a contiguous array (pairwise)."""
    n = prod([x.shape[a] for a in axes])
    if n <= FEW or type(x) is not np.ndarray or not x.size:
        return True
    if x.dtype in ONES:
        return n == x.size and x.flags.c_contiguous
    return not is_half(x.dtype)


def _sum_in_memory_order(x: Array, axes: tuple[int, ...]) -> Array:
    """Σ over any axes, the innermost in memory first. The result may lack axes of size 1."""
    shape, strides = x.shape, x.strides
    repeated = [a for a in axes if not strides[a] and shape[a] > 1]
    if repeated:  # broadcast axes, with stride 0: the sum of n equal values is a product
        once = x[tuple([slice(1) if a in repeated else slice(None) for a in range(x.ndim)])]
        return sum_over(once, axes) * prod([shape[a] for a in repeated])
    # View x with its axes in order of decreasing strides, without axes of size 1.
    order = sorted([a for a, size in enumerate(shape) if size > 1], key=lambda a: -abs(strides[a]))
    y = x.transpose(order + [a for a, size in enumerate(shape) if size == 1]).reshape([shape[a] for a in order])
    stop = len(order)
    while stop:  # from the innermost axis outwards, sum each run of adjacent reduced axes
        start = stop
        while start and (order[start - 1] in axes) == (order[stop - 1] in axes):
            start -= 1
        if order[start] in axes:
            y = _sum_of_run(y, start, stop)
        stop = start
    remaining = [a for a in order if a not in axes]
    return y.transpose([remaining.index(a) for a in sorted(remaining)])  # the axes in the order of x again


def _sum_of_run(x: Array, start: int, stop: int) -> Array:
    """Σ over the adjacent axes from `start` to before `stop`: (*lead, *run, *tail) -> (*lead, *tail)."""
    lead, tail = x.shape[:start], x.shape[stop:]
    n, C = prod(x.shape[start:stop]), prod(tail)
    y = _sum_along_last(x.reshape(*lead, n)) if C == 1 else _sum_over_rows(x.reshape(*lead, n, C))
    return y.reshape(lead + tail)


def _sum_over_rows(x: Array) -> Array:
    """Σ over the rows of matrices: (..., n, C) -> (..., C)."""
    *lead, n, C = x.shape
    if n <= FEW:
        return x.sum(axis=-2)
    if n <= PRODUCT:
        return _product_with_ones(x)
    group = GROUP if n >= MANY else SMALL_GROUP
    k = n // group
    groups = x[..., : k * group, :].reshape(*lead, group, k * C)
    total = _product_with_ones(groups).reshape(*lead, k, C).sum(axis=-2, dtype=np.float64)
    if n % group:
        total += _product_with_ones(x[..., k * group :, :])
    return total.astype(x.dtype)


def _sum_along_last(x: Array) -> Array:
    """Σ over the last axis, (..., n) -> (...): pairwise, or by BLAS for many short rows, for which NumPy is slow."""
    n = x.shape[-1]
    if x.ndim == 1 or n > LONG or not x.flags.c_contiguous:
        return x.sum(axis=-1)
    rows = x.reshape(-1, n)
    first, *others = (rows[:, i : i + BLOCK] @ ONES[x.dtype][: min(BLOCK, n - i)] for i in range(0, n, BLOCK))
    total = sum(others, first.astype(np.float64)).astype(x.dtype) if others else first
    return total.reshape(x.shape[:-1])


def _product_with_ones(rows: Array) -> Array:
    """Σ over the rows of matrices by BLAS: (..., n, C) -> (..., C). BLAS requires rows without gaps or overlap."""
    *_, n, C = rows.shape
    if rows.strides[-1] != rows.itemsize or rows.strides[-2] < C * rows.itemsize:
        rows = np.ascontiguousarray(rows)
    return np.matmul(ONES[rows.dtype][:n], rows)
