"""L2: the types of arrays, changed by a kernel."""

import numpy as np

from minigrad import dtypes
from minigrad.backend import Array, array_module
from minigrad.dtypes import FLOAT32
from minigrad.kernels.cuda.activation import empty_like, without_gaps
from minigrad.kernels.cuda.launch import MOST_GRID, PACK, STORED, Kernel, on_gpu, pack_of

THREADS = 256  # of a block


@dtypes.on_device
def convert(x: Array, dtype: np.dtype) -> Array:
    """x in another dtype, its axes in the same order in memory; a copy even if it is of that dtype.

    From and to float32, bfloat16 and float16 by `convert.cu`. For bfloat16 from and to anything else the way is by
    float32, so that CuPy, which hardly knows bfloat16, never casts it. The rest is CuPy's.
    """
    if not on_gpu(x) or x.size > THREADS * MOST_GRID[0]:
        return _astype(x, dtype)
    if not (x.dtype.name in STORED and dtype.name in STORED):
        if x.dtype.name == "bfloat16":
            return _astype(convert(x, FLOAT32), dtype)
        return convert(_astype(x, FLOAT32), dtype) if dtype.name == "bfloat16" else _astype(x, dtype)
    x = x if without_gaps(x) else array_module(x).ascontiguousarray(x)
    y = empty_like(x, dtype)
    wide, other = (x, y) if x.dtype.itemsize >= y.dtype.itemsize else (y, x)
    pack = pack_of(wide, PACK, other)  # the last pack may be less than one
    kernel = Kernel("convert.cu", "convert", FROM=STORED[x.dtype.name], TO=STORED[dtype.name], PACK=pack)
    kernel(-(-x.size // (THREADS * pack)), THREADS, x, y, np.int64(x.size))
    return y


def _astype(x: Array, dtype: np.dtype) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):  # of what stands for a GPU's arrays, where there is none
        return x.astype(dtype)
