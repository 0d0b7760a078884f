"""L0: matrix products on NVIDIA GPUs, by cuBLAS.

CuPy's `matmul` casts batches of float16 to float32 and back, supports no batches of bfloat16, and ignores TF32 for
batches. CuPy also refuses cuBLAS calls during CUDA graph capture, although cuBLAS supports capture. So every product is
one call of `cublasGemmStridedBatchedEx`, through CuPy (`CupyBlas`) or, during capture, through ctypes on the same
library (`CtypesBlas`). Products with a bias use cublasLt: minigrad/backend/cublas_lt.py.

cuBLAS is column-major: a row-major matrix in memory is the transposed matrix for cuBLAS. So cuBLAS computes
Cᵀ = Bᵀ Aᵀ, without copies:

    layout of a (M, K)       op        leading dimension
    row-major                "N"       row stride, in elements
    column-major             "T"       column stride, in elements
    other strides            copied first

Products of float16 and bfloat16 accumulate in float32, and can return float32. Products of float32 use float32
arithmetic, or after `allow_tf32(True)` tensor cores on inputs rounded to 10 bits of fraction.
"""

import ctypes
import importlib
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np

from minigrad.backend.arrays import Array, array_module, cupy_module
from minigrad.backend.dtypes import FLOAT32, is_half

# library_types.h (cudaDataType) and cublas_api.h (cublasComputeType_t, cublasOperation_t)
DATA_TYPES = {"float16": 2, "float32": 0, "float64": 1, "bfloat16": 14}
COMPUTE_32F, COMPUTE_64F, COMPUTE_32F_FAST_TF32 = 68, 70, 77
OP_N, OP_T = 0, 1
DEFAULT_ALGORITHM = -1
REDUCE_IN_COMPUTE_TYPE = 16  # cublasMath_t: split-k adds partial sums in the accumulator's type, never in a 16-bit type
WORKSPACE = 32 << 20  # bytes, as NVIDIA recommends for Hopper; allocated before capture, which must not allocate

_tf32 = False


def allow_tf32(allowed: bool) -> None:
    """Allow TF32 in products of float32: several times faster, with relative errors of about 1e-3. Off by default."""
    global _tf32
    _tf32 = allowed


class Operand(NamedTuple):
    """A batch of matrices, described for cuBLAS."""

    array: Array  # the memory; the reference keeps it alive until the call
    op: int
    leading: int  # leading dimension
    stride: int  # elements between the matrices of the batch; 0: one matrix for all


def data_type(x: Operand) -> int:
    """The cudaDataType of the elements."""
    return DATA_TYPES[x.array.dtype.name]


class Blas(Protocol):
    """A library of batched products C = op(A) op(B), (m, k) (k, n), column-major. `data` is the cudaDataType of A and
    B; C may have a wider type."""

    def gemm(
        self, m: int, n: int, k: int, A: Operand, B: Operand, C: Operand, batch: int, data: int, compute: int
    ) -> None: ...

    def stream_and_workspace(self, size: int) -> tuple[int, Array]:
        """The stream (a pointer) and a workspace for calls of cublasLt: at least `size` bytes of device memory that no
        concurrent work on the stream uses."""
        ...


def matmul(a: Array, b: Array, dtype: Any = None) -> Array:
    """`a @ b`: (..., M, K), (..., K, N) -> (..., M, N), with broadcast batch axes; a 1-D a is a row, a 1-D b a column.

    Args:
        a: (..., M, K), float16, bfloat16, float32 or float64.
        b: (..., K, N), of the same dtype.
        dtype: the dtype of the result: that of a and b (default), or float32 if a and b are float16 or bfloat16.

    Raises:
        TypeError: a dtype is not supported, or a and b differ in dtype.
        ValueError: the shapes do not match.
    """
    if a.dtype != b.dtype or a.dtype.name not in DATA_TYPES:
        raise TypeError(
            f"cuBLAS: a and b must have the same dtype, one of {', '.join(DATA_TYPES)}: got {a.dtype} and {b.dtype}"
        )
    row, column = a.ndim == 1, b.ndim == 1
    a, b = a[None] if row else a, b[:, None] if column else b
    (M, K), (K2, N) = a.shape[-2:], b.shape[-2:]
    if K != K2:
        raise ValueError(
            f"matmul: the last axis of a must match the second-last of b, got shapes {a.shape} and {b.shape}"
        )
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    out = array_module(a).empty((*lead, M, N), a.dtype if dtype is None else dtype)
    if out.dtype != a.dtype and not (is_half(a.dtype) and out.dtype == FLOAT32):
        raise TypeError(f"cuBLAS: the product of {a.dtype} arrays is {a.dtype}, or float32 if 16-bit: got {out.dtype}")
    if not out.size or not K:
        out[...] = 0
    else:
        if b.ndim == 2:  # one b for all matrices of the batch: the batch axes of a become rows
            a, lead = a.reshape(prod(lead) * M, K), ()
        A, B, C = operand(a, lead), operand(b, lead), Operand(out, OP_N, N, M * N)
        _blas.gemm(N, a.shape[-2], K, B, A, C, prod(lead), DATA_TYPES[a.dtype.name], compute_type(a.dtype))
    out = out[..., 0, :] if row else out
    return out[..., 0] if column else out


def compute_type(dtype: np.dtype) -> int:
    """The cublasComputeType_t of products of `dtype`: the type of the accumulator."""
    if dtype == np.float64:
        return COMPUTE_64F
    return COMPUTE_32F_FAST_TF32 if _tf32 and dtype == FLOAT32 else COMPUTE_32F


def operand(x: Array, batch: Sequence[int]) -> Operand:
    """x as a batch of matrices, copied if cuBLAS cannot express its strides."""
    stride = _batch_stride(x, batch)
    if stride is not None:
        rows, columns = x.shape[-2:]
        row_stride, column_stride = (step // x.dtype.itemsize for step in x.strides[-2:])
        if (column_stride == 1 or columns == 1) and (row_stride >= columns or rows == 1):
            return Operand(x, OP_N, max(row_stride, columns), stride // x.dtype.itemsize)
        if (row_stride == 1 or rows == 1) and (column_stride >= rows or columns == 1):
            return Operand(x, OP_T, max(column_stride, rows), stride // x.dtype.itemsize)
    xp = array_module(x)
    return operand(xp.ascontiguousarray(xp.broadcast_to(x, (*batch, *x.shape[-2:]))), batch)


def _batch_stride(x: Array, batch: Sequence[int]) -> int | None:
    """The stride in bytes between the matrices of a batch, or None if it is not constant."""
    added = len(batch) - x.ndim + 2
    strides = [0] * added + [0 if n == 1 else step for n, step in zip(x.shape[:-2], x.strides[:-2], strict=True)]
    steps = [(count, step) for count, step in zip(batch, strides, strict=True) if count > 1]
    even = all(outer == count * inner for (_, outer), (count, inner) in pairwise(steps))
    step = steps[-1][1] if steps else 0
    return step if even and step >= 0 else None


@cache
def _cupy_blas() -> tuple[Any, Any]:
    """CuPy's binding of cuBLAS, and the module with CuPy's cuBLAS handle. Importing both loads cuBLAS."""
    return importlib.import_module("cupy_backends.cuda.libs").cublas, importlib.import_module("cupy.cuda.device")


class CupyBlas:
    """Products through CuPy, on its handle and the current stream."""

    def gemm(
        self, m: int, n: int, k: int, A: Operand, B: Operand, C: Operand, batch: int, data: int, compute: int
    ) -> None:
        cublas, device = _cupy_blas()
        handle = device.get_cublas_handle()
        one, zero = SCALARS[compute]
        if C.array.itemsize == 2:  # in every call, as CuPy's own products reset the mode
            cublas.setMathMode(handle, REDUCE_IN_COMPUTE_TYPE)
        cublas.gemmStridedBatchedEx(
            handle, A.op, B.op, m, n, k, one,
            pointer(A.array), data, A.leading, A.stride, pointer(B.array), data, B.leading, B.stride, zero,
            pointer(C.array), data_type(C), C.leading, C.stride, batch, compute, DEFAULT_ALGORITHM,
        )  # fmt: skip

    def stream_and_workspace(self, size: int) -> tuple[int, Array]:
        """The current stream, and new memory. CuPy has a memory pool for each stream, so freed memory is reused only by
        later work on that stream."""
        cupy = cupy_module()
        return int(cupy.cuda.get_current_stream().ptr), cupy.empty((size,), np.uint8)


class CtypesBlas:
    """Products through ctypes, which work during CUDA graph capture.

    Args:
        library: libcublas, from `load_library`.
        workspace: device memory of `WORKSPACE` bytes. It must outlive the graphs that contain these products.
    """

    def __init__(self, library: Any, workspace: Array) -> None:
        self.library, self.workspace, self.handle, self.stream = library, workspace, ctypes.c_void_p(), 0
        call(library, "cublasCreate_v2", ctypes.byref(self.handle))
        call(library, "cublasSetMathMode", self.handle, REDUCE_IN_COMPUTE_TYPE)
        self.close = weakref.finalize(self, library.cublasDestroy_v2, self.handle)  # also called on garbage collection

    def use_stream(self, stream: int) -> None:
        """Run later products on this stream (a pointer). cublasSetStream resets the workspace, so it is set again."""
        self.stream = stream
        call(self.library, "cublasSetStream_v2", self.handle, ctypes.c_void_p(stream))
        size = ctypes.c_size_t(self.workspace.nbytes)
        call(self.library, "cublasSetWorkspace_v2", self.handle, ctypes.c_void_p(pointer(self.workspace)), size)

    def gemm(
        self, m: int, n: int, k: int, A: Operand, B: Operand, C: Operand, batch: int, data: int, compute: int
    ) -> None:
        one, zero = map(ctypes.c_void_p, SCALARS[compute])
        call(
            self.library, "cublasGemmStridedBatchedEx", self.handle, A.op, B.op, m, n, k, one,
            *_matrix(A, data), *_matrix(B, data), zero, *_matrix(C, data_type(C)),
            batch, compute, DEFAULT_ALGORITHM,
        )  # fmt: skip

    def stream_and_workspace(self, size: int) -> tuple[int, Array]:
        """The stream, and the workspace of `WORKSPACE` bytes, which products on one stream can share."""
        return self.stream, self.workspace


def call(library: Any, name: str, *arguments: Any, allowed: Sequence[int] = ()) -> int:
    """Call a function of the library. Returns its status: 0 for success, or a status of `allowed`.

    Raises:
        RuntimeError: any other status.
    """
    status: int = getattr(library, name)(*arguments)
    if status and status not in allowed:
        raise RuntimeError(f"{name} failed: {STATUS.get(status, 'unknown error')} (status {status})")
    return status


def _matrix(x: Operand, data: int) -> tuple[Any, ...]:
    """Pointer, data type, leading dimension and stride, as C arguments."""
    return ctypes.c_void_p(pointer(x.array)), data, x.leading, ctypes.c_longlong(x.stride)


def pointer(x: Array) -> int:
    """The address of the first element of x."""
    return int(x.ctypes.data if isinstance(x, np.ndarray) else x.data.ptr)


def load_library(name: str = "cublas") -> ctypes.CDLL:
    """Load libcublas, or with `name` "cublasLt" libcublasLt, from the CUDA libraries that CuPy uses.

    Raises:
        RuntimeError: the library was not found.
    """
    try:
        path = importlib.import_module("cuda.pathfinder").load_nvidia_dynamic_lib(name).abs_path
    except Exception as error:
        raise RuntimeError(
            f"found no lib{name}; CuPy's wheels with [ctk] bring it: pip install 'cupy-cuda13x[ctk]'"
        ) from error
    return ctypes.CDLL(path)


_blas: Blas = CupyBlas()


def current() -> Blas:
    """The library that computes products now."""
    return _blas


@contextmanager
def use_blas(blas: Blas) -> Iterator[None]:
    """Within the block, `blas` computes products. Not thread-safe: only one thread at a time may use a GPU."""
    global _blas
    previous, _blas = _blas, blas
    try:
        yield
    finally:
        _blas = previous


_ONE_ZERO = {dtype: np.array([1, 0], dtype) for dtype in (np.float32, np.float64)}
SCALARS = {  # compute type -> the addresses of 1 and 0 in that type
    compute: (_ONE_ZERO[dtype].ctypes.data, _ONE_ZERO[dtype][1:].ctypes.data)
    for compute, dtype in ((COMPUTE_32F, np.float32), (COMPUTE_32F_FAST_TF32, np.float32), (COMPUTE_64F, np.float64))
}
STATUS = {  # cublasStatus_t
    1: "not initialized", 3: "out of memory", 7: "invalid value", 8: "this GPU lacks a feature", 11: "memory mapping",
    13: "the kernel failed", 14: "internal error", 15: "not supported",
}  # fmt: skip
