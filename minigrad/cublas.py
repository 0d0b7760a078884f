"""L0: matrix products on NVIDIA's GPUs, through cuBLAS.

CuPy's own `matmul` turns batches of float16 into float32 and back, has no batches of bfloat16, and ignores TF32 there;
and CuPy refuses every cuBLAS call while a stream is captured into a CUDA graph, which cuBLAS itself does not. So all
products are one call of `cublasGemmStridedBatchedEx`, made either by CuPy (`CupyBlas`) or, for capture, directly by
ctypes on the same library (`CtypesBlas`). Those with a bias go another way: minigrad/cublas_lt.py.

cuBLAS thinks in columns. A matrix with rows one after another, as NumPy keeps it, is to cuBLAS the transpose; so it is
asked for Cᵀ = Bᵀ Aᵀ, and no number moves:

    memory of a (M, K)                  op        leading dimension
    rows one after another              "N"       elements from one row to the next
    columns one after another           "T"       elements from one column to the next
    anything else                       copied first

Products of float16 and bfloat16 are summed in float32, and may stay so. Those of float32 are exact to float32, or with
`allow_tf32(True)` are made of numbers rounded to 10 bits of fraction, on tensor cores.
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

from minigrad.backend import Array, array_module, cupy_module
from minigrad.dtypes import FLOAT32, is_narrow

# library_types.h (cudaDataType) and cublas_api.h (cublasComputeType_t, cublasOperation_t)
DATA_TYPES = {"float16": 2, "float32": 0, "float64": 1, "bfloat16": 14}
COMPUTE_32F, COMPUTE_64F, COMPUTE_32F_FAST_TF32 = 68, 70, 77
OP_N, OP_T = 0, 1
DEFAULT_ALGORITHM = -1
WORKSPACE = 32 << 20  # bytes; NVIDIA's advice for Hopper. Given at the start, nothing is allocated during capture.

_tf32 = False


def allow_tf32(allowed: bool) -> None:
    """Whether products of float32 may use TF32: several times as fast, with errors of about 1e-3. Off at first."""
    global _tf32
    _tf32 = allowed


class Operand(NamedTuple):
    """A batch of matrices as cuBLAS wants it."""

    array: Array  # what it points into; kept alive until the call is made
    op: int
    leading: int
    stride: int  # elements from one matrix of the batch to the next; 0: the same one for all


def data_type(x: Operand) -> int:
    """The type of its numbers, as cuBLAS counts types."""
    return DATA_TYPES[x.array.dtype.name]


class Blas(Protocol):
    """One product for each matrix of a batch, in cuBLAS's terms: C = op(A) op(B), (m, k) (k, n), in columns.

    `data` is the type of A and B; that of C may be wider.
    """

    def gemm(
        self, m: int, n: int, k: int, A: Operand, B: Operand, C: Operand, batch: int, data: int, compute: int
    ) -> None: ...

    def place(self, size: int) -> tuple[int, Array]:
        """Where products are made that another library makes (minigrad/cublas_lt.py): the stream, a pointer, and
        `size` bytes of device memory or more, which nothing else on this stream uses meanwhile."""
        ...


def matmul(a: Array, b: Array, dtype: Any = None) -> Array:
    """`a @ b` over the last two axes, the others broadcasting; a of one axis is a row, b of one axis a column.

    Args:
        a: (..., M, K), float16, bfloat16, float32 or float64.
        b: (..., K, N), of the same dtype.
        dtype: of the result: that of a and b, or float32 if they are narrow.

    Raises:
        TypeError: another dtype, or two.
        ValueError: the shapes do not fit.
    """
    if a.dtype != b.dtype or a.dtype.name not in DATA_TYPES:
        raise TypeError(
            f"cuBLAS multiplies two arrays of one dtype out of {', '.join(DATA_TYPES)}: got {a.dtype} and {b.dtype}"
        )
    row, column = a.ndim == 1, b.ndim == 1
    a, b = a[None] if row else a, b[:, None] if column else b
    (M, K), (K2, N) = a.shape[-2:], b.shape[-2:]
    if K != K2:
        raise ValueError(
            f"matmul: the last axis of a must be as long as the last but one of b, got {a.shape} and {b.shape}"
        )
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    out = array_module(a).empty((*lead, M, N), a.dtype if dtype is None else dtype)
    if out.dtype != a.dtype and not (is_narrow(a.dtype) and out.dtype == FLOAT32):
        raise TypeError(f"cuBLAS makes {a.dtype}, or float32 of narrow numbers, of {a.dtype}: not {out.dtype}")
    if not out.size or not K:
        out[...] = 0
    else:
        if b.ndim == 2:  # one b for all: the batch is but more rows
            a, lead = a.reshape(prod(lead) * M, K), ()
        A, B, C = operand(a, lead), operand(b, lead), Operand(out, OP_N, N, M * N)
        _blas.gemm(N, a.shape[-2], K, B, A, C, prod(lead), DATA_TYPES[a.dtype.name], compute_type(a.dtype))
    out = out[..., 0, :] if row else out
    return out[..., 0] if column else out


def compute_type(dtype: np.dtype) -> int:
    """What products of such numbers are summed in."""
    if dtype == np.float64:
        return COMPUTE_64F
    return COMPUTE_32F_FAST_TF32 if _tf32 and dtype == FLOAT32 else COMPUTE_32F


def operand(x: Array, batch: Sequence[int]) -> Operand:
    """x as a batch of matrices, copied if its strides are not those of one."""
    stride = _batch_stride(x, batch)
    if stride is not None:
        (rows, columns), (down, across) = x.shape[-2:], (step // x.dtype.itemsize for step in x.strides[-2:])
        if (across == 1 or columns == 1) and (down >= columns or rows == 1):
            return Operand(x, OP_N, max(down, columns), stride // x.dtype.itemsize)
        if (down == 1 or rows == 1) and (across >= rows or columns == 1):
            return Operand(x, OP_T, max(across, rows), stride // x.dtype.itemsize)
    xp = array_module(x)
    return operand(xp.ascontiguousarray(xp.broadcast_to(x, (*batch, *x.shape[-2:]))), batch)


def _batch_stride(x: Array, batch: Sequence[int]) -> int | None:
    """Bytes from one matrix to the next, if all of them follow each other at the same distance."""
    added = len(batch) - x.ndim + 2
    strides = [0] * added + [0 if n == 1 else step for n, step in zip(x.shape[:-2], x.strides[:-2], strict=True)]
    steps = [(count, step) for count, step in zip(batch, strides, strict=True) if count > 1]
    even = all(outer == count * inner for (_, outer), (count, inner) in pairwise(steps))
    step = steps[-1][1] if steps else 0
    return step if even and step >= 0 else None


@cache
def _cupy_blas() -> tuple[Any, Any]:
    """CuPy's binding of cuBLAS (taken from its package, which finds the library first), and where its handle is."""
    return importlib.import_module("cupy_backends.cuda.libs").cublas, importlib.import_module("cupy.cuda.device")


class CupyBlas:
    """The call as CuPy makes it, on its own handle and the current stream."""

    def gemm(
        self, m: int, n: int, k: int, A: Operand, B: Operand, C: Operand, batch: int, data: int, compute: int
    ) -> None:
        cublas, device = _cupy_blas()
        one, zero = SCALARS[compute]
        cublas.gemmStridedBatchedEx(
            device.get_cublas_handle(), A.op, B.op, m, n, k, one,
            pointer(A.array), data, A.leading, A.stride, pointer(B.array), data, B.leading, B.stride, zero,
            pointer(C.array), data_type(C), C.leading, C.stride, batch, compute, DEFAULT_ALGORITHM,
        )  # fmt: skip

    def place(self, size: int) -> tuple[int, Array]:
        """CuPy's memory is a pool for each stream: what is let go may be used again only after the product."""
        cupy = cupy_module()
        return int(cupy.cuda.get_current_stream().ptr), cupy.empty((size,), np.uint8)


class CtypesBlas:
    """The same call made directly, which a stream that is being captured allows.

    Args:
        library: libcublas, as `load_library` finds it.
        workspace: device memory of `WORKSPACE` bytes, kept as long as graphs with these products are.
    """

    def __init__(self, library: Any, workspace: Array) -> None:
        self.library, self.workspace, self.handle, self.stream = library, workspace, ctypes.c_void_p(), 0
        call(library, "cublasCreate_v2", ctypes.byref(self.handle))
        self.close = weakref.finalize(self, library.cublasDestroy_v2, self.handle)  # at the latest with this object

    def use_stream(self, stream: int) -> None:
        """Make the products that follow on this stream (a pointer). Giving it a stream takes the workspace away."""
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

    def place(self, size: int) -> tuple[int, Array]:
        """Its own workspace, whatever the size: products on one stream follow each other."""
        return self.stream, self.workspace


def call(library: Any, name: str, *arguments: Any, allowed: Sequence[int] = ()) -> int:
    """The status that a function of the library returns: 0, success, or one of those allowed.

    Raises:
        RuntimeError: another.
    """
    status: int = getattr(library, name)(*arguments)
    if status and status not in allowed:
        raise RuntimeError(f"{name} failed: {STATUS.get(status, 'unknown error')} (status {status})")
    return status


def _matrix(x: Operand, data: int) -> tuple[Any, ...]:
    """Pointer, data type, leading dimension and stride, as C takes them."""
    return ctypes.c_void_p(pointer(x.array)), data, x.leading, ctypes.c_longlong(x.stride)


def pointer(x: Array) -> int:
    """Where the numbers of x begin."""
    return int(x.ctypes.data if isinstance(x, np.ndarray) else x.data.ptr)


def load_library(name: str = "cublas") -> ctypes.CDLL:
    """The libcublas that CuPy uses, or its sibling "cublasLt".

    Raises:
        RuntimeError: there is none.
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
    """What makes products now."""
    return _blas


@contextmanager
def use_blas(blas: Blas) -> Iterator[None]:
    """Within the block, products are made by `blas`. (One thread at a time works with a GPU.)"""
    global _blas
    previous, _blas = _blas, blas
    try:
        yield
    finally:
        _blas = previous


_ONE_ZERO = {dtype: np.array([1, 0], dtype) for dtype in (np.float32, np.float64)}
SCALARS = {  # where 1 and 0 are, in the type that is computed in
    compute: (_ONE_ZERO[dtype].ctypes.data, _ONE_ZERO[dtype][1:].ctypes.data)
    for compute, dtype in ((COMPUTE_32F, np.float32), (COMPUTE_32F_FAST_TF32, np.float32), (COMPUTE_64F, np.float64))
}
STATUS = {  # cublasStatus_t
    1: "not initialized", 3: "out of memory", 7: "invalid value", 8: "this GPU lacks a feature", 11: "memory mapping",
    13: "the kernel failed", 14: "internal error", 15: "not supported",
}  # fmt: skip
