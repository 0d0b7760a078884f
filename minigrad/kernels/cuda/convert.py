"""L2: float32, bfloat16 and float16 into each other: what CuPy's own `astype` does, for a type it is new to."""

import numpy as np

from minigrad import dtypes
from minigrad.backend import Array
from minigrad.kernels.cuda.activation import empty_like, without_gaps
from minigrad.kernels.cuda.launch import MOST_GRID, PACK, STORED, Kernel, on_gpu, pack_of

THREADS = 256  # of a block


@dtypes.on_device
def convert(x: Array, dtype: np.dtype) -> Array:
    """x in another type, the order of its axes in memory kept; by CuPy if a kernel is not for it."""
    known = on_gpu(x) and {x.dtype.name, dtype.name} <= STORED.keys()
    if not (known and 0 < x.size <= THREADS * MOST_GRID[0] and without_gaps(x)):
        return x.astype(dtype)
    y = empty_like(x, dtype)
    wider = x if x.dtype.itemsize >= dtype.itemsize else y
    pack = pack_of(wider, PACK, x, y)  # the last pack may be less than one
    kernel = Kernel("convert.cu", "convert", FROM=STORED[x.dtype.name], TO=STORED[dtype.name], PACK=pack)
    kernel(-(-x.size // (THREADS * pack)), THREADS, x, y, np.int64(x.size))
    return y
