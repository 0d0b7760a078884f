"""Fake cuBLAS and cublasLt: NumPy multiplies the matrices at the given (host) addresses."""

import ctypes
from typing import Any

import numpy as np

from minigrad.backend import cublas, cublas_lt
from minigrad.backend.dtypes import as_dtype
from tests.cupy_on_cpu.array import ndarray
from tests.cupy_on_cpu.capture import do


class HostBlas:
    """cublasGemmStridedBatchedEx, from pointers, sizes and strides: see minigrad/backend/cublas.py."""

    def gemm(self, m: int, n: int, k: int, A: Any, B: Any, C: Any, batch: int, data: int, compute: int) -> None:
        a, b, c = self.columns(m, n, k, A, B, C, batch, data)
        exact = np.float64 if data == 1 else np.float32

        def product() -> None:
            c[...] = a.astype(exact) @ b.astype(exact)

        do(product)

    def columns(self, m: int, n: int, k: int, A: Any, B: Any, C: Any, batch: int, data: int) -> list[np.ndarray]:
        """Views of op(A) (batch, m, k), op(B) (batch, k, n) and C (batch, m, n)."""
        parts = [
            self._matrices(x, number, batch, *(size[::-1] if x.op else size))
            for x, number, size in ((A, data, (m, k)), (B, data, (k, n)), (C, cublas.data_type(C), (m, n)))
        ]
        return [x.swapaxes(1, 2) if operand.op else x for x, operand in zip(parts, (A, B, C), strict=True)]

    def _matrices(self, x: Any, data: int, batch: int, rows: int, columns: int) -> np.ndarray:
        """A view (batch, rows, columns) of column-major matrices."""
        dtype = next(as_dtype(name) for name, number in cublas.DATA_TYPES.items() if number == data)
        assert x.leading >= rows, "the leading dimension is at least the number of rows"
        numbers = (batch - 1) * x.stride + (columns - 1) * x.leading + rows
        memory = (ctypes.c_char * (numbers * dtype.itemsize)).from_address(x.array.data.ptr)
        strides = (x.stride * dtype.itemsize, dtype.itemsize, x.leading * dtype.itemsize)
        return np.ndarray((batch, rows, columns), dtype, memory, strides=strides)


class HostLt(HostBlas):
    """cublasLtMatmul with an epilogue, from pointers and descriptors: see minigrad/backend/cublas_lt.py."""

    def matmul(
        self, epilogue: int, m: int, n: int, k: int, A: Any, B: Any, C: Any, vector: ndarray, compute: int
    ) -> bool:
        ((a,), (b,), (c,)), v = self.columns(m, n, k, A, B, C, 1, cublas.data_type(A)), vector._host
        assert v.shape == ((m,) if epilogue == cublas_lt.BIAS else (n,)) and v.dtype == C.array.dtype

        def product() -> None:
            exact = a.astype(np.float32) @ b.astype(np.float32)
            if epilogue == cublas_lt.BIAS:
                exact += v.astype(np.float32)[:, None]
            else:
                assert epilogue == cublas_lt.BGRADB
                v[...] = b.astype(np.float32).sum(axis=0)
            c[...] = exact

        do(product)
        return True
