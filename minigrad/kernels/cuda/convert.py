"""L2: float32, bfloat16 and float16 into each other: what CuPy's own `astype` does, for a type it is new to."""

from collections.abc import Sequence

import numpy as np

from minigrad import dtypes
from minigrad.backend import Array, device_of, empty
from minigrad.kernels.cuda.activation import empty_like, without_gaps
from minigrad.kernels.cuda.launch import MOST_GRID, PACK, STORED, Kernel, on_gpu, pack_of
from minigrad.kernels.cuda.table import Table, takes

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


@dtypes.all_on_device
def convert_all(xs: Sequence[Array], dtype: np.dtype) -> list[Array]:
    """Each x in another type: those in float32 and in order are rounded in one launch, into one piece of memory."""
    fused = [x for x in xs if takes(x) and x.flags.c_contiguous] if dtypes.is_narrow(dtype) else []
    if not fused:
        return [dtypes.cast(x, dtype) for x in xs]
    room = PACK // dtype.itemsize  # each begins at a multiple of so many numbers: kernels may read 16 bytes at once
    ends = np.cumsum([-(-x.size // room) * room for x in fused]).tolist()
    memory = empty((ends[-1],), dtype, device_of(fused[0]))
    copies = [memory[start : start + x.size].reshape(x.shape) for start, x in zip([0, *ends], fused, strict=False)]
    Table(fused, copies).launch(Kernel("convert.cu", "convert_all", FROM="float", TO=STORED[dtype.name], PACK=1))
    made = dict(zip(map(id, fused), copies, strict=True))
    return [made[id(x)] if id(x) in made else dtypes.cast(x, dtype) for x in xs]
