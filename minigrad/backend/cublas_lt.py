"""L0: matrix products with a fused bias or bias gradient, by the epilogues of cublasLt.

A linear layer computes y = x Wᵀ + b, and in backward ∂W = ∂yᵀ x, ∂b = Σ ∂y over the rows. A separate addition of the
bias costs one more pass over y (in half precision three: the product in float32, the addition, the cast), a separate ∂b
one more pass over ∂y. An epilogue of cublasLt adds b or computes ∂b while the elements are in registers. cublasLt is
column-major, as cublas.py explains: D = op(A) op(B) is the transpose of the result, and

    y = a b + bias           BIAS      the vector has one element for each row of D, a column of y
    a b and Σ_k a_mk         BGRADB    the vector has one element for each column of D, from op(B) = aᵀ

The vector must have the dtype of D; sums accumulate in float32. The GELU epilogue is not used: it is the tanh
approximation, and minigrad's GELU is exact.

A product (`Problem`) is described to the library once, and the library selects an algorithm once (`Plan`). A call then
passes only addresses: it neither allocates nor synchronizes, so it can be captured in a CUDA graph. Without cublasLt
or an algorithm, these functions return None, and the caller computes product and vector separately.
"""

import ctypes
import weakref
from contextlib import ExitStack
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from minigrad.backend import cublas
from minigrad.backend.arrays import Array, array_module
from minigrad.backend.cublas import (
    DATA_TYPES,
    OP_N,
    SCALARS,
    WORKSPACE,
    Operand,
    call,
    data_type,
    load_library,
    pointer,
)
from minigrad.backend.dtypes import FLOAT32, cast

# cublasLt.h. Attributes of cublasLtMatmulDesc: (value of the enum, C type)
TRANSPOSE_A, TRANSPOSE_B = (3, ctypes.c_int32), (4, ctypes.c_int32)
EPILOGUE, VECTOR = (7, ctypes.c_uint32), (8, ctypes.c_void_p)
BIAS, BGRADB = 4, 512  # epilogues
# and of cublasLtMatmulPreference
MAX_WORKSPACE, REDUCTIONS = (1, ctypes.c_uint64), (3, ctypes.c_uint32)
ALIGNMENTS = [(number, ctypes.c_uint32) for number in (5, 6, 7, 8)]  # bytes; of A, B, C and D
IN_COMPUTE_TYPE = 2  # split-k: partial sums over k are added in float32, never in a 16-bit type
ALIGNED = 256  # bytes: no algorithm needs a larger alignment
NO_ALGORITHM = (8, 15)  # CUBLAS_STATUS_ARCH_MISMATCH, _NOT_SUPPORTED
MAX_PLANS = 4096  # cached plans, of about 1 KiB each; exceeded only if sizes do not repeat


class Problem(NamedTuple):
    """A product without its addresses: all that the library needs to select an algorithm."""

    epilogue: int
    sizes: tuple[int, int, int]  # m, n, k
    types: tuple[int, int, int]  # of A and B; of C and the vector; of the accumulator
    ops: tuple[int, int]  # of A and B
    leading: tuple[int, int, int]  # leading dimensions of A, B and C
    aligned: tuple[int, int, int, int]  # alignment in bytes of A, B, C and the vector


class Plan(NamedTuple):
    """The descriptors of a problem, and the selected algorithm."""

    operation: ctypes.c_void_p
    A: ctypes.c_void_p
    B: ctypes.c_void_p
    C: ctypes.c_void_p
    algorithm: Any
    workspace: int  # bytes


class HeuristicResult(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8), ("workspace", ctypes.c_size_t), ("state", ctypes.c_int),
        ("waves", ctypes.c_float), ("reserved", ctypes.c_int * 4),
    )  # fmt: skip


def matmul_with_bias(a: Array, b: Array, bias: Array, dtype: np.dtype) -> Array | None:
    """`a @ b + bias` (M, N), added in float32 and cast once; None if cublasLt has no algorithm.

    Args:
        a: (M, K), float16, bfloat16 or float32.
        b: (K, N), of the same dtype.
        bias: (N,), of the result's dtype, or of any dtype if the result is float32.
        dtype: the dtype of the result: that of a and b, or float32.
    """
    if not _supported(a, b, dtype) or bias.shape != b.shape[1:] or dtype not in (bias.dtype, FLOAT32):
        return None
    xp = array_module(a)
    y = xp.empty((len(a), b.shape[1]), dtype)
    return y if _product(BIAS, a, b, y, xp.ascontiguousarray(cast(bias, dtype))) else None


def matmul_and_sums(a: Array, b: Array, dtype: np.dtype) -> tuple[Array, Array] | None:
    """`a @ b` (M, N) and `a.sum(axis=1)` (M,), in one pass over a; None if cublasLt has no algorithm, and with TF32:
    NVIDIA does not document whether the sums would be of inputs rounded to TF32.

    Args:
        a: (M, K), float16, bfloat16 or float32.
        b: (K, N), of the same dtype.
        dtype: the dtype of both results: that of a and b, or float32.
    """
    if not _supported(a, b, dtype) or cublas.compute_type(a.dtype) == cublas.COMPUTE_32F_FAST_TF32:
        return None
    xp = array_module(a)
    y, sums = xp.empty((len(a), b.shape[1]), dtype), xp.empty((len(a),), dtype)
    return (y, sums) if _product(BGRADB, a, b, y, sums) else None


def _supported(a: Array, b: Array, dtype: np.dtype) -> bool:
    """True if cublasLt supports these shapes and dtypes in a product with an epilogue."""
    return (
        a.ndim == b.ndim == 2 and a.shape[1] == len(b) and a.size > 0 and b.size > 0
        and a.dtype == b.dtype and a.dtype.name in ("float16", "bfloat16", "float32")
        and dtype in (a.dtype, FLOAT32)
    )  # fmt: skip


def _product(epilogue: int, a: Array, b: Array, y: Array, vector: Array) -> bool:
    """y = a b, with this epilogue. Returns False, with y unchanged, if cublasLt is missing or has no algorithm."""
    lt = shared()
    if lt is None:
        return False
    (M, K), N = a.shape, b.shape[1]
    # cuBLAS is column-major (cublas.py) and computes yᵀ = bᵀ aᵀ: its factor A is b, its factor B is a.
    A, B, C = cublas.operand(b, ()), cublas.operand(a, ()), Operand(y, OP_N, N, M * N)
    return lt.matmul(epilogue, N, M, K, A, B, C, vector, cublas.compute_type(a.dtype))


class Lt:
    """cublasLt through ctypes.

    Args:
        library: libcublasLt, from `load_library("cublasLt")`.
    """

    def __init__(self, library: Any) -> None:
        self.library, self.handle = library, ctypes.c_void_p()
        self.plans: dict[Problem, Plan | None] = {}  # None: the library has no algorithm
        call(library, "cublasLtCreate", ctypes.byref(self.handle))
        self.owned, self.descriptors = ExitStack(), ExitStack()  # destroyed on close, the handle last
        self.owned.callback(library.cublasLtDestroy, self.handle)
        self.owned.callback(self.descriptors.close)
        self.close = weakref.finalize(self, self.owned.close)

    def matmul(
        self, epilogue: int, m: int, n: int, k: int, A: Operand, B: Operand, C: Operand, vector: Array, compute: int
    ) -> bool:
        """C = op(A) op(B), (m, k) (k, n), column-major, on the stream of cuBLAS. False if there is no algorithm."""
        a, b, c, end = (pointer(x) for x in (A.array, B.array, C.array, vector))
        problem = Problem(
            epilogue, (m, n, k), (data_type(A), data_type(C), compute), (A.op, B.op),
            (A.leading, B.leading, C.leading), (_alignment(a), _alignment(b), _alignment(c), _alignment(end)),
        )  # fmt: skip
        if problem not in self.plans:
            if len(self.plans) >= MAX_PLANS:  # a launched product no longer needs its plan
                self.descriptors.close()
                self.plans.clear()
            self.plans[problem] = self._plan(problem, end)
        plan = self.plans[problem]
        if plan is None:
            return False
        self._set("MatmulDesc", plan.operation, VECTOR, end)
        stream, workspace = cublas.current().stream_and_workspace(plan.workspace)
        at = ctypes.c_void_p
        one, zero = map(at, SCALARS[compute])
        status = call(
            self.library, "cublasLtMatmul", self.handle, plan.operation, one, at(a), plan.A, at(b), plan.B,
            zero, at(c), plan.C, at(c), plan.C, plan.algorithm, at(pointer(workspace)),
            ctypes.c_size_t(workspace.nbytes), at(stream), allowed=NO_ALGORITHM,
        )  # fmt: skip
        if status:
            self.plans[problem] = None
        return not status

    def _plan(self, problem: Problem, vector: int) -> Plan | None:
        (m, n, k), (data, out, compute), (op_A, op_B) = problem.sizes, problem.types, problem.ops
        with ExitStack() as stack:
            operation = self._create(stack, "MatmulDesc", compute, DATA_TYPES["float32"])  # float32: the scalars' type
            for attribute, value in (
                (TRANSPOSE_A, op_A), (TRANSPOSE_B, op_B), (EPILOGUE, problem.epilogue), (VECTOR, vector),
            ):  # fmt: skip
                self._set("MatmulDesc", operation, attribute, value)
            in_memory = ((m, k)[:: -1 if op_A else 1], (k, n)[:: -1 if op_B else 1], (m, n))
            A, B, C = (
                self._create(stack, "MatrixLayout", kind, *map(ctypes.c_uint64, size), ctypes.c_int64(leading))
                for kind, size, leading in zip((data, data, out), in_memory, problem.leading, strict=True)
            )
            found = self._heuristic(operation, A, B, C, problem.aligned)
            if found is None:
                return None
            self.descriptors.push(stack.pop_all())
        return Plan(operation, A, B, C, found.algorithm, found.workspace)

    def _heuristic(self, operation: Any, A: Any, B: Any, C: Any, aligned: tuple[int, ...]) -> HeuristicResult | None:
        """The first algorithm of the library's heuristic, or None."""
        found, count = HeuristicResult(), ctypes.c_int()
        with ExitStack() as stack:
            preference = self._create(stack, "MatmulPreference")
            self._set("MatmulPreference", preference, MAX_WORKSPACE, WORKSPACE)
            self._set("MatmulPreference", preference, REDUCTIONS, IN_COMPUTE_TYPE)
            for attribute, size in zip(ALIGNMENTS, (*aligned[:3], aligned[2]), strict=True):
                self._set("MatmulPreference", preference, attribute, size)
            status = call(
                self.library, "cublasLtMatmulAlgoGetHeuristic", self.handle, operation, A, B, C, C, preference,
                1, ctypes.byref(found), ctypes.byref(count), allowed=NO_ALGORITHM,
            )  # fmt: skip
        return None if status or not count.value or found.state else found

    def _create(self, stack: ExitStack, kind: str, *arguments: Any) -> ctypes.c_void_p:
        """Create a descriptor, which closing `stack` destroys."""
        descriptor = ctypes.c_void_p()
        call(self.library, f"cublasLt{kind}Create", ctypes.byref(descriptor), *arguments)
        stack.callback(getattr(self.library, f"cublasLt{kind}Destroy"), descriptor)
        return descriptor

    def _set(self, kind: str, descriptor: ctypes.c_void_p, attribute: tuple[int, Any], value: int) -> None:
        number, ctype = attribute
        data = ctype(value)
        size = ctypes.c_size_t(ctypes.sizeof(data))
        call(self.library, f"cublasLt{kind}SetAttribute", descriptor, number, ctypes.byref(data), size)


def _alignment(address: int) -> int:
    """The alignment of an address: the largest power of two, at most ALIGNED, that divides it."""
    return min(address & -address, ALIGNED)


@cache
def shared() -> Lt | None:
    """The `Lt` of the process, so that a captured step reuses the plans of earlier steps; None without cublasLt."""
    try:
        library = load_library("cublasLt")
    except RuntimeError:
        return None
    return Lt(library)
