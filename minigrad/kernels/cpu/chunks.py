"""L2: chunks of arrays that stay in the cache, and sums by BLAS."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from minigrad.backend import Array

# Elements of an array in a chunk. A chunk of each array that an operation reads or writes should stay in the L2 cache
# of a core, 1 or 2 MiB. GELU, with a dozen operations on five arrays, gains most from small chunks. Sums by BLAS read
# a chunk only a few times, and larger chunks mean fewer calls. Below 64K elements, threads wait for the GIL.
CHUNK = 1 << 18  # 1 MiB: norms and attention
ELEMENTWISE = 1 << 16  # 256 KiB: GELU, ReLU and AdamW


def is_float32(x: Array) -> bool:
    """True for float32 NumPy arrays that are not 0-d."""
    return type(x) is np.ndarray and x.dtype == np.float32 and x.ndim > 0


def is_finite(x: Array) -> bool:
    """True if x has no NaN and no infinity: its sum of squares, one pass by BLAS, is finite. False too if this sum
    overflows, as it does if x has a value beyond 2e19."""
    flat = x.ravel(order="K")
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(flat @ flat))


def chunks(*arrays: Array | None) -> Iterator[tuple[Array, ...]]:
    """Arrays of one shape and memory order, flattened, ELEMENTWISE elements of each at a time. None stays None."""
    flat = [None if x is None else x.ravel(order="K") for x in arrays]
    size = next(x.size for x in flat if x is not None)
    for start in range(0, size, ELEMENTWISE):
        yield tuple(None if x is None else x[start : start + ELEMENTWISE] for x in flat)


def row_chunks(count: int, width: int) -> Iterator[slice]:
    """`count` rows of `width` elements, in slices of about CHUNK elements."""
    step = max(1, CHUNK // max(width, 1))
    return (slice(start, start + step) for start in range(0, count, step))


@lru_cache(maxsize=64)
def ones(count: int) -> np.ndarray:
    """A vector of ones: `x @ ones(x.shape[1])` sums each row, `ones(len(x)) @ x` each column."""
    return np.ones(count, np.float32)
