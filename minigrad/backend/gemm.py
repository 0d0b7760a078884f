"""L0: matrix products, by NumPy on the CPU, by cuBLAS on a GPU.

Every matrix product on a GPU calls `gemm` or `gemm_and_sums`: CuPy's `matmul` cannot be captured in a CUDA graph,
has no argument for the accumulator's dtype, and cannot add a bias.
"""

from typing import Any

import numpy as np

from minigrad.backend import cublas, cublas_lt, products
from minigrad.backend.arrays import Array, array_module
from minigrad.backend.dtypes import FLOAT32, cast, is_half, upcast


def gemm(a: Array, b: Array, *, bias: Array | None = None, dtype: Any = None) -> Array:
    """The matrix product `a @ b + bias` over the last two axes; the other axes broadcast.

    Args:
        a, b: arrays of the same dtype; 16-bit products accumulate in float32.
        bias: a vector along the last axis, added before the result is cast to 16 bits.
        dtype: the dtype of the result if a and b are 16-bit: their dtype (default), or float32.
    """
    dtype = a.dtype if dtype is None or not is_half(a.dtype) else dtype
    if bias is not None and not isinstance(a, np.ndarray):
        y = cublas_lt.matmul_with_bias(a, b, bias, dtype)
        if y is not None:
            return y
    if not is_half(a.dtype):
        y = _product(a, b, a.dtype)
        if bias is not None:
            y += bias
        return y
    if bias is None:
        return cast(_product(a, b, dtype), dtype)
    return cast(_product(a, b, FLOAT32) + cast(bias, FLOAT32), dtype)


def gemm_and_sums(a: Array, b: Array, *, dtype: Any = None) -> tuple[Array, Array | None]:
    """`gemm(a, b, dtype=dtype)` of two matrices, and `a.sum(axis=1)` in the dtype of the product.

    The sums are None if no implementation computes product and sums in one pass over a: then sum a separately.
    """
    if not isinstance(a, np.ndarray):
        both = cublas_lt.matmul_and_sums(a, b, a.dtype if dtype is None or not is_half(a.dtype) else dtype)
        if both is not None:
            return both
    return gemm(a, b, dtype=dtype), None


def _product(a: Array, b: Array, dtype: np.dtype) -> Array:
    """`a @ b`. On the CPU, the product of 16-bit arrays is float32 whatever `dtype`: 16 bits would not be faster."""
    if isinstance(a, np.ndarray):
        return products.accurate_matmul(*(upcast([a, b]) if is_half(a.dtype) else (a, b)))
    if a.dtype.kind in "biu":
        return array_module(a).matmul(a, b)
    return cublas.matmul(a, b, dtype)
