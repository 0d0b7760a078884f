"""L0: matrix products that end in more than a product, through cublasLt.

A linear layer is y = x Wᵀ + b, and with ∂W = ∂yᵀ x it needs ∂b = Σ ∂y over the rows. As calls of their own the bias is
one more pass over y (three where y is narrow: made in float32, added to, rounded), and the sums are one more over ∂y.
cublasLt does either while the numbers are on the chip anyway, in its epilogue. In columns, as cuBLAS thinks
(minigrad/cublas.py), D = op(A) op(B) is the transpose of what is asked for, and

    y = a b + bias         BIAS      bias has one number for a row of D: for a column of y
    Σ_k a_mk beside a b    BGRADB    one number for a column of D, from op(B), which is aᵀ

The vector has the type of D, the only one that the library takes; sums are in float32 before they are rounded to it.
Its epilogue for GELU is of no use here: that is the approximation by tanh, and ours is exact.

What the library needs to know of a product (`Problem`) is described to it once, and it is asked for an algorithm once;
a call then only says where the numbers are. So it neither allocates nor waits, and may be captured into a CUDA graph.
Where there is no cublasLt, or it has no algorithm, the answer is None, and product and vector are made one by one.
"""

import ctypes
import weakref
from contextlib import ExitStack
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from minigrad import cublas
from minigrad.backend import Array, array_module
from minigrad.cublas import DATA_TYPES, OP_N, SCALARS, WORKSPACE, Operand, call, data_type, load_library, pointer
from minigrad.dtypes import FLOAT32, cast

# cublasLt.h. Attributes of an operation: (number, C's type)
TRANSPOSE_A, TRANSPOSE_B = (3, ctypes.c_int32), (4, ctypes.c_int32)
EPILOGUE, VECTOR = (7, ctypes.c_uint32), (8, ctypes.c_void_p)
BIAS, BGRADB = 4, 512  # epilogues
# and of what is preferred among algorithms
MAX_WORKSPACE, REDUCTIONS = (1, ctypes.c_uint64), (3, ctypes.c_uint32)
ALIGNMENTS = [(number, ctypes.c_uint32) for number in (5, 6, 7, 8)]  # bytes; of A, B, C and D
IN_COMPUTE_TYPE = 2  # parts of a sum over k that are made apart are added in float32, never as narrow numbers
ALIGNED = 256  # bytes: all that the library asks for
NO_ALGORITHM = (8, 15)  # this GPU lacks a feature; not supported
MAX_PLANS = 4096  # kept, of about 1 KiB each: more are only where sizes never come again


class Problem(NamedTuple):
    """A product as the library chooses an algorithm for it: all but where the numbers are."""

    epilogue: int
    sizes: tuple[int, int, int]  # m, n, k
    types: tuple[int, int, int]  # of A and B; of C and the vector; that is computed in
    ops: tuple[int, int]  # of A and B
    leading: tuple[int, int, int]  # of A, B and C
    aligned: tuple[int, int, int, int]  # A, B, C and the vector, to so many bytes


class Plan(NamedTuple):
    """What the library has been told of a problem, and the algorithm it chose."""

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
    """`a @ b + bias`, rounded once, if cublasLt can.

    Args:
        a: (M, K), float16, bfloat16 or float32.
        b: (K, N), of the same dtype.
        bias: (N,), of the result's dtype, or of any where that is float32.
        dtype: of the result: that of a and b, or float32.
    """
    if not _fit(a, b, dtype) or bias.shape != b.shape[1:] or dtype not in (bias.dtype, FLOAT32):
        return None
    xp = array_module(a)
    y = xp.empty((len(a), b.shape[1]), dtype)
    return y if _product(BIAS, a, b, y, xp.ascontiguousarray(cast(bias, dtype))) else None


def matmul_and_sums(a: Array, b: Array, dtype: np.dtype) -> tuple[Array, Array] | None:
    """`a @ b` and, from the same reading of a, `a.sum(axis=1)`, if cublasLt can. Not in TF32: nobody says whether the
    sums would be of rounded numbers.

    Args:
        a: (M, K), float16, bfloat16 or float32.
        b: (K, N), of the same dtype.
        dtype: of both results: that of a and b, or float32.
    """
    if not _fit(a, b, dtype) or cublas.compute_type(a.dtype) == cublas.COMPUTE_32F_FAST_TF32:
        return None
    xp = array_module(a)
    y, sums = xp.empty((len(a), b.shape[1]), dtype), xp.empty((len(a),), dtype)
    return (y, sums) if _product(BGRADB, a, b, y, sums) else None


def _fit(a: Array, b: Array, dtype: np.dtype) -> bool:
    """Whether these are two matrices of numbers that cublasLt has epilogues for."""
    return (
        a.ndim == b.ndim == 2 and a.shape[1] == len(b) and a.size > 0 and b.size > 0
        and a.dtype == b.dtype and a.dtype.name in ("float16", "bfloat16", "float32")
        and dtype in (a.dtype, FLOAT32)
    )  # fmt: skip


def _product(epilogue: int, a: Array, b: Array, y: Array, vector: Array) -> bool:
    """y = a b, with this epilogue. False: nothing was done."""
    lt = shared()
    if lt is None:
        return False
    (M, K), N = a.shape, b.shape[1]
    A, B, C = cublas.operand(b, ()), cublas.operand(a, ()), Operand(y, OP_N, N, M * N)
    return lt.matmul(epilogue, N, M, K, A, B, C, vector, cublas.compute_type(a.dtype))


class Lt:
    """cublasLt, by ctypes.

    Args:
        library: libcublasLt, as `load_library("cublasLt")` finds it.
    """

    def __init__(self, library: Any) -> None:
        self.library, self.handle = library, ctypes.c_void_p()
        self.plans: dict[Problem, Plan | None] = {}  # None: there is no algorithm
        call(library, "cublasLtCreate", ctypes.byref(self.handle))
        self.made, self.described = ExitStack(), ExitStack()  # by the library for us, to be given back, the handle last
        self.made.callback(library.cublasLtDestroy, self.handle)
        self.made.callback(self.described.close)
        self.close = weakref.finalize(self, self.made.close)

    def matmul(
        self, epilogue: int, m: int, n: int, k: int, A: Operand, B: Operand, C: Operand, vector: Array, compute: int
    ) -> bool:
        """C = op(A) op(B), (m, k) (k, n), in columns, on the stream of the products around it. False: it cannot."""
        a, b, c, end = (pointer(x) for x in (A.array, B.array, C.array, vector))
        problem = Problem(
            epilogue, (m, n, k), (data_type(A), data_type(C), compute), (A.op, B.op),
            (A.leading, B.leading, C.leading), (_aligned(a), _aligned(b), _aligned(c), _aligned(end)),
        )  # fmt: skip
        if problem not in self.plans:
            if len(self.plans) >= MAX_PLANS:  # a product that was asked for needs its plan no longer
                self.described.close()
                self.plans.clear()
            self.plans[problem] = self._plan(problem, end)
        plan = self.plans[problem]
        if plan is None:
            return False
        self._set("MatmulDesc", plan.operation, VECTOR, end)
        stream, workspace = cublas.current().place(plan.workspace)
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
        with ExitStack() as made:
            operation = self._make(made, "MatmulDesc", compute, DATA_TYPES["float32"])  # the type of the scalars
            for attribute, value in (
                (TRANSPOSE_A, op_A), (TRANSPOSE_B, op_B), (EPILOGUE, problem.epilogue), (VECTOR, vector),
            ):  # fmt: skip
                self._set("MatmulDesc", operation, attribute, value)
            in_memory = ((m, k)[:: -1 if op_A else 1], (k, n)[:: -1 if op_B else 1], (m, n))
            A, B, C = (
                self._make(made, "MatrixLayout", kind, *map(ctypes.c_uint64, size), ctypes.c_int64(leading))
                for kind, size, leading in zip((data, data, out), in_memory, problem.leading, strict=True)
            )
            found = self._ask(operation, A, B, C, problem.aligned)
            if found is None:
                return None
            self.described.push(made.pop_all())
        return Plan(operation, A, B, C, found.algorithm, found.workspace)

    def _ask(self, operation: Any, A: Any, B: Any, C: Any, aligned: tuple[int, ...]) -> HeuristicResult | None:
        """The algorithm that the library thinks fastest."""
        found, count = HeuristicResult(), ctypes.c_int()
        with ExitStack() as made:
            preference = self._make(made, "MatmulPreference")
            self._set("MatmulPreference", preference, MAX_WORKSPACE, WORKSPACE)
            self._set("MatmulPreference", preference, REDUCTIONS, IN_COMPUTE_TYPE)
            for attribute, size in zip(ALIGNMENTS, (*aligned[:3], aligned[2]), strict=True):
                self._set("MatmulPreference", preference, attribute, size)
            status = call(
                self.library, "cublasLtMatmulAlgoGetHeuristic", self.handle, operation, A, B, C, C, preference,
                1, ctypes.byref(found), ctypes.byref(count), allowed=NO_ALGORITHM,
            )  # fmt: skip
        return None if status or not count.value or found.state else found

    def _make(self, made: ExitStack, kind: str, *arguments: Any) -> ctypes.c_void_p:
        """A descriptor, to be destroyed with `made`."""
        descriptor = ctypes.c_void_p()
        call(self.library, f"cublasLt{kind}Create", ctypes.byref(descriptor), *arguments)
        made.callback(getattr(self.library, f"cublasLt{kind}Destroy"), descriptor)
        return descriptor

    def _set(self, kind: str, descriptor: ctypes.c_void_p, attribute: tuple[int, Any], value: int) -> None:
        number, ctype = attribute
        held = ctype(value)
        size = ctypes.c_size_t(ctypes.sizeof(held))
        call(self.library, f"cublasLt{kind}SetAttribute", descriptor, number, ctypes.byref(held), size)


def _aligned(place: int) -> int:
    """The power of two, of bytes, that a place in memory is a multiple of."""
    return min(place & -place, ALIGNED)


@cache
def shared() -> Lt | None:
    """The one for all products, so that a graph is captured with the plans of the steps before it; None if there is no
    library."""
    try:
        library = load_library("cublasLt")
    except RuntimeError:
        return None
    return Lt(library)
