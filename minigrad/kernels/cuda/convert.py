"""L2: casts between float32, bfloat16 and float16, of one array or of many in one launch.

CuPy's support for bfloat16 is recent, so these casts do not use `astype`.
"""

from collections.abc import Sequence

import numpy as np

from minigrad.backend import Array, device_of, dtypes, empty
from minigrad.backend.fast_paths import fast_path_of
from minigrad.kernels.cuda.activation import empty_like, without_gaps
from minigrad.kernels.cuda.launch import MAX_GRID, PACK, STORED, Kernel, on_gpu, pack_of
from minigrad.kernels.cuda.table import Table, fits

THREADS = 256  # threads of a block


def supports(x: Array, dtype: np.dtype) -> bool:
    """True if x is dense and on the GPU, and both dtypes are float32, bfloat16 or float16."""
    known = on_gpu(x) and {x.dtype.name, dtype.name} <= STORED.keys()
    return known and 0 < x.size <= THREADS * MAX_GRID[0] and without_gaps(x)


# A NumPy array is excluded although tests simulate a GPU with NumPy arrays: there, `cast` is the expected result.
@fast_path_of(dtypes.cast, supports=lambda x, dtype: not isinstance(x, np.ndarray | np.generic) and supports(x, dtype))
def convert(x: Array, dtype: np.dtype) -> Array:
    """x cast to another dtype, with the same memory order of axes."""
    y = empty_like(x, dtype)
    wider = x if x.dtype.itemsize >= dtype.itemsize else y
    pack = pack_of(wider, PACK, x, y)  # the last pack may be partial
    kernel = Kernel("convert.cu", "convert", FROM=STORED[x.dtype.name], TO=STORED[dtype.name], PACK=pack)
    kernel(-(-x.size // (THREADS * pack)), THREADS, x, y, np.int64(x.size))
    return y


@fast_path_of(dtypes.cast_all, supports=lambda xs, dtype: any(map(on_gpu, xs)))
def convert_all(xs: Sequence[Array], dtype: np.dtype) -> list[Array]:
    """Cast each x. Contiguous float32 arrays are cast to a 16-bit dtype in one launch, into one allocation."""
    fused = [x for x in xs if fits(x) and x.flags.c_contiguous] if dtypes.is_half(dtype) else []
    if not fused:
        return [dtypes.cast(x, dtype) for x in xs]
    step = PACK // dtype.itemsize  # elements: every copy is aligned to 16 bytes, for loads in packs
    ends = np.cumsum([-(-x.size // step) * step for x in fused]).tolist()
    memory = empty((ends[-1],), dtype, device_of(fused[0]))
    copies = [memory[start : start + x.size].reshape(x.shape) for start, x in zip([0, *ends], fused, strict=False)]
    Table(fused, copies).launch(Kernel("convert.cu", "convert_all", FROM="float", TO=STORED[dtype.name], PACK=1))
    copy_of = dict(zip(map(id, fused), copies, strict=True))
    return [copy_of[id(x)] if id(x) in copy_of else dtypes.cast(x, dtype) for x in xs]
