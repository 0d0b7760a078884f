"""CuPy, as far as it is used here, on a machine without a GPU: a NumPy array in a wrapper that is as strict as CuPy.

An array of CuPy is no array of NumPy: it refuses to become one by accident, to be mixed with one, and arguments and
functions that CuPy lacks. `in_place_of_cupy()` makes `tensor.to("cuda")` work, and every test that takes the fixture
`device` runs on it; kernels are run by `tests/cuda/runner.py`. What it cannot show: speed, and CuPy's own mistakes.

The tables below are what CuPy 14.2 has, by the signatures in its wheel; a function that is missing here was never
looked up there.
"""

import ctypes
import operator
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

from minigrad.backend import capture, cublas, cublas_lt
from minigrad.backend.dtypes import as_dtype
from minigrad.backend.fast_paths import FAST_PATHS
from minigrad.backend.random import Generator
from minigrad.kernels.cuda.launch import Dim3, Kernel, use_device
from tests.cuda.runner import HAS_COMPILER, CpuDevice

FUNCTIONS = {  # and the names of their parameters beyond the arrays
    "absolute": "out dtype", "add": "out dtype", "divide": "out dtype", "exp": "out dtype", "log": "out dtype",
    "maximum": "out dtype", "minimum": "out dtype", "multiply": "out dtype", "sign": "out dtype", "sqrt": "out dtype",
    "subtract": "out dtype", "tanh": "out dtype", "copysign": "out dtype", "negative": "out dtype", "cos": "out dtype",
    "isfinite": "out dtype", "isinf": "out dtype", "isnan": "out dtype", "isneginf": "out", "clip": "a_min a_max out",
    "sin": "out dtype", "square": "out dtype", "power": "out dtype", "logaddexp": "out dtype",
    "matmul": "out dtype", "where": "", "allclose": "rtol atol equal_nan", "array_equal": "",
    "arange": "start stop step dtype", "empty": "shape dtype order", "zeros": "shape dtype order",
    "ones": "shape dtype order", "full": "shape fill_value dtype order", "empty_like": "dtype order shape",
    "zeros_like": "dtype order shape", "ones_like": "dtype order shape", "full_like": "fill_value dtype order shape",
    "tri": "N M k dtype",
    "ascontiguousarray": "dtype", "broadcast_to": "shape", "concatenate": "axis out dtype casting", "stack": "axis out",
    "expand_dims": "axis", "flip": "axis", "moveaxis": "source destination", "pad": "pad_width mode constant_values",
    "roll": "shift axis", "take": "indices axis out", "shares_memory": "max_work",
    "take_along_axis": "indices axis", "argmax": "axis dtype out keepdims", "argsort": "axis kind",
}  # fmt: skip
METHODS = {
    "all": "axis out keepdims", "any": "axis out keepdims", "argmax": "axis out dtype keepdims",
    "argmin": "axis out dtype keepdims", "astype": "dtype order casting subok copy", "clip": "min max out",
    "copy": "order", "cumprod": "axis dtype out", "cumsum": "axis dtype out", "fill": "value", "flatten": "order",
    "max": "axis out keepdims", "mean": "axis dtype out keepdims", "min": "axis out keepdims", "nonzero": "",
    "prod": "axis dtype out keepdims", "ravel": "order", "repeat": "repeats axis", "reshape": "order copy",
    "round": "decimals out", "squeeze": "axis", "std": "axis dtype out ddof keepdims", "sum": "axis dtype out keepdims",
    "swapaxes": "axis1 axis2", "transpose": "", "var": "axis dtype out ddof keepdims", "view": "dtype", "dot": "",
}  # fmt: skip
OPERATORS = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift"]
COMPARISONS = ["eq", "ne", "lt", "le", "gt", "ge"]


# Results of NumPy are in memory as the inputs are; those of CuPy are in the order of C, but for a few.

AS_THE_INPUT = {"astype", "empty_like", "full_like", "ones_like", "roll", "zeros_like"}
TO_FLOAT32 = {"clip", "round", "where"}  # CuPy has no bfloat16 loop for these, and takes the float32 one
NO_BFLOAT16 = {"argsort", "cumprod", "cumsum"}


def _as_cupy(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A function of NumPy whose result has CuPy's order and dtype."""

    def call(*inputs: Any, **options: Any) -> Any:
        bfloat16 = [x for x in inputs if isinstance(x, np.ndarray) and x.dtype.name == "bfloat16"]
        if bfloat16 and name in NO_BFLOAT16:
            raise TypeError(f"cupy: {name}() takes no bfloat16")
        if name in COMPARISONS or name == "where":
            _refuse_out_of_range(inputs)
        result = function(*inputs, **options)
        if not isinstance(result, np.ndarray) or result.base is not None or options.get("out") is not None:
            return result
        if bfloat16 and name in TO_FLOAT32:
            result = result.astype(np.float32)
        return result if name in AS_THE_INPUT else np.asarray(result, order="C")

    return function if function in (np.empty, np.empty_like) else call


def _refuse_out_of_range(inputs: Sequence[Any]) -> None:
    """CuPy takes a Python integer in the arrays' dtype. NumPy compares with any; before 2.5, its `where` wraps it."""
    kinds = [x.dtype for x in inputs if isinstance(x, np.ndarray) and x.dtype != bool]
    if kinds and all(kind.kind in "iu" for kind in kinds):
        held = np.iinfo(np.result_type(*kinds))
        for x in inputs:
            if isinstance(x, int) and not held.min <= x <= held.max:
                raise OverflowError(f"Python integer {x} out of bounds for {held.dtype}")


# Capture: what is done is noted, so that a graph can do it again into the same memory. A GPU does not do it while it is
# captured; so afterwards all memory that was there before is as it was.

_tape: list[Callable[[], Any]] | None = None
_alive: dict[int, Any] = {}  # every array there is
_of_host: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # by id: views share a base


def _do(function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    result = function(*inputs, **options)
    if isinstance(result, np.generic):
        result = np.asarray(result)
    if _tape is not None:
        into = result if isinstance(result, np.ndarray) and options.get("out") is None else None

        def again() -> None:
            if function in (np.empty, np.empty_like):  # memory stays what it is, and `into` stays in memory
                return
            value = function(*inputs, **options)
            if into is not None and not np.may_share_memory(into, value):
                into[...] = value

        _tape.append(again)
    return result


def _refuse_in_capture(what: str) -> None:
    if _tape is not None:
        raise RuntimeError(f"cudaErrorStreamCaptureUnsupported: {what}, while a stream is captured")


def _reads(method: Callable[..., Any]) -> Callable[..., Any]:
    """Of a method that waits for the device."""

    def call(self: "ndarray") -> Any:
        _refuse_in_capture(f"{method.__name__}, which waits for the device")
        return method(self)

    return call


def _memory(x: np.ndarray) -> np.ndarray:
    """The whole array that x is a part of."""
    while isinstance(x.base, np.ndarray):
        x = x.base
    return x


class Graph:
    """What was done between `begin_capture` and `end_capture`."""

    def __init__(self, tape: list[Callable[[], Any]]) -> None:
        self.tape = tape

    def launch(self, stream: Any = None) -> None:
        for again in self.tape:
            again()


class Stream:
    """Everything is done at once, whatever the stream."""

    ptr = 1 << 40

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        pass

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def begin_capture(self) -> None:
        global _tape
        arrays = [reference() for reference in list(_alive.values())]
        memory = {id(root): root for x in arrays if x is not None for root in [_memory(x._host)]}
        self.before = [(root, root.copy()) for root in memory.values() if root.flags.writeable]
        _tape = []

    def end_capture(self) -> Graph:
        global _tape
        assert _tape is not None
        graph, _tape = Graph(_tape), None
        for root, content in self.before:
            root[...] = content
        del self.before
        return graph

    def is_capturing(self) -> bool:
        return _tape is not None

    def wait_event(self, event: Any) -> None: ...

    def synchronize(self) -> None:
        _refuse_in_capture("synchronize")


class ndarray:  # noqa: N801 (CuPy's name)
    """An array on the device."""

    __hash__ = None  # type: ignore[assignment]
    __array_priority__ = 100

    def __init__(self, host: np.ndarray, device: int = 0) -> None:
        self._host, self.device = host, SimpleNamespace(id=device)
        key = id(self)
        _alive[key] = weakref.ref(self, lambda _: _alive.pop(key, None))
        self.base = None if host.base is None else _of_host.get(id(host.base))
        if self.base is None and host.base is not None:
            self.base = wrap(host.base)
        _of_host.setdefault(id(host), self)

    shape, dtype, ndim, size, strides, nbytes, itemsize, flags = (
        property(operator.attrgetter(f"_host.{name}"))
        for name in ("shape", "dtype", "ndim", "size", "strides", "nbytes", "itemsize", "flags")
    )

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self._host.ctypes.data)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self._host.__array_interface__

    @property
    def T(self) -> "ndarray":
        return wrap(self._host.T)

    @_reads
    def get(self) -> np.ndarray:
        return self._host.copy()

    @_reads
    def item(self) -> Any:
        return self._host.item()

    @_reads
    def tolist(self) -> Any:
        return self._host.tolist()

    def __array__(self, *arguments: Any, **options: Any) -> None:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if method != "__call__":
            return NotImplemented
        return _strict(ufunc, "out dtype", ufunc.__name__)(*inputs, **options)

    def __dlpack__(self, **options: Any) -> Any:
        return self._host.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._host.__dlpack_device__()

    def __getitem__(self, index: Any) -> "ndarray":
        return wrap(_do(_as_cupy(operator.getitem, "getitem"), self._host, _index(index)))

    def __setitem__(self, index: Any, value: Any) -> None:
        _do(operator.setitem, self._host, _index(index), unwrap(value))

    def set(self, host: np.ndarray) -> None:
        _refuse_in_capture("a copy from the host")
        self._host[...] = host

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Any:
        return (wrap(row) for row in self._host)

    @_reads
    def __bool__(self) -> bool:
        return bool(self._host)

    @_reads
    def __float__(self) -> float:
        return float(self._host)

    @_reads
    def __int__(self) -> int:
        return int(self._host)

    @_reads
    def __index__(self) -> int:
        return operator.index(self._host)

    def __abs__(self) -> "ndarray":
        return wrap(_do(_as_cupy(abs, "abs"), self._host))

    def __neg__(self) -> "ndarray":
        return wrap(_do(_as_cupy(operator.neg, "operator.neg"), self._host))

    def __invert__(self) -> "ndarray":
        return wrap(_do(_as_cupy(operator.invert, "operator.invert"), self._host))

    def __repr__(self) -> str:
        return repr(self._host)


def wrap(x: Any) -> Any:
    """Results of NumPy as arrays on the device; a scalar is one of no axes."""
    if isinstance(x, np.ndarray | np.generic):
        return ndarray(np.asarray(x))
    return type(x)(map(wrap, x)) if isinstance(x, list | tuple) else x


def unwrap(x: Any) -> Any:
    """Arrays on the device as NumPy's; NumPy's own are refused, as CuPy does."""
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}: CuPy takes no arrays of NumPy")
    return type(x)(map(unwrap, x)) if isinstance(x, list | tuple) else x


def _index(index: Any) -> Any:
    return tuple(map(unwrap, index)) if isinstance(index, tuple) else unwrap(index)


def _strict(function: Callable[..., Any], parameters: str, name: str, arrays: bool = True) -> Callable[..., Any]:
    allowed = set(parameters.split())
    function = _as_cupy(function, name)

    def call(*inputs: Any, **options: Any) -> Any:
        unknown = set(options) - allowed
        if unknown:
            raise TypeError(f"cupy: {name}() has no argument {', '.join(sorted(unknown))}")
        out = options.get("out")
        if isinstance(out, tuple):
            (out,) = out
        result = _do(function, *map(unwrap, inputs), **{key: unwrap(value) for key, value in options.items()})
        return out if out is not None else wrap(result)

    return call


def _operator(name: str) -> Callable[..., Any]:
    function = _as_cupy(getattr(operator, name + "_" if name in ("and", "or") else name), name)

    def forward(self: ndarray, other: Any) -> Any:
        return wrap(_do(function, self._host, unwrap(other)))

    return forward


def _reflected(name: str) -> Callable[..., Any]:
    function = _as_cupy(getattr(operator, name + "_" if name in ("and", "or") else name), name)

    def forward(self: ndarray, other: Any) -> Any:
        return wrap(_do(function, unwrap(other), self._host))

    return forward


def _in_place(name: str) -> Callable[..., Any]:
    function = getattr(operator, f"i{name}")

    def forward(self: ndarray, other: Any) -> Any:
        _do(function, self._host, unwrap(other))
        return self

    return forward


def _method(name: str) -> Callable[..., Any]:
    def call(self: ndarray, *arguments: Any, **options: Any) -> Any:
        return _strict(getattr(self._host, name), METHODS[name], name)(*arguments, **options)

    return call


for _name in OPERATORS:
    setattr(ndarray, f"__{_name}__", _operator(_name))
    setattr(ndarray, f"__r{_name}__", _reflected(_name))
    setattr(ndarray, f"__i{_name}__", _in_place(_name))
for _name in COMPARISONS:
    setattr(ndarray, f"__{_name}__", _operator(_name))
for _name in METHODS:
    setattr(ndarray, _name, _method(_name))


class HostBlas:
    """cublasGemmStridedBatchedEx from pointers, sizes and distances in memory; see minigrad/backend/cublas.py."""

    def gemm(self, m: int, n: int, k: int, A: Any, B: Any, C: Any, batch: int, data: int, compute: int) -> None:
        a, b, c = self.columns(m, n, k, A, B, C, batch, data)
        exact = np.float64 if data == 1 else np.float32

        def product() -> None:
            c[...] = a.astype(exact) @ b.astype(exact)

        _do(product)

    def columns(self, m: int, n: int, k: int, A: Any, B: Any, C: Any, batch: int, data: int) -> list[np.ndarray]:
        """op(A) (batch, m, k), op(B) (batch, k, n) and C (batch, m, n), where they are in memory."""
        parts = [
            self._matrices(x, number, batch, *(size[::-1] if x.op else size))
            for x, number, size in ((A, data, (m, k)), (B, data, (k, n)), (C, cublas.data_type(C), (m, n)))
        ]
        return [x.swapaxes(1, 2) if operand.op else x for x, operand in zip(parts, (A, B, C), strict=True)]

    def _matrices(self, x: Any, data: int, batch: int, rows: int, columns: int) -> np.ndarray:
        """(batch, rows, columns), each a matrix in columns."""
        dtype = next(as_dtype(name) for name, number in cublas.DATA_TYPES.items() if number == data)
        assert x.leading >= rows, "the leading dimension is at least the number of rows"
        numbers = (batch - 1) * x.stride + (columns - 1) * x.leading + rows
        memory = (ctypes.c_char * (numbers * dtype.itemsize)).from_address(x.array.data.ptr)
        strides = (x.stride * dtype.itemsize, dtype.itemsize, x.leading * dtype.itemsize)
        return np.ndarray((batch, rows, columns), dtype, memory, strides=strides)


class HostLt(HostBlas):
    """cublasLt's product and its epilogue, likewise; see minigrad/backend/cublas_lt.py."""

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

        _do(product)
        return True


SCATTERED = ("int32", "int64", "float16", "float32", "float64", "uint32", "uint64")


def asarray(x: Any, dtype: Any = None) -> ndarray:
    """To the device: the one place where NumPy's arrays may come in."""
    if isinstance(x, ndarray):
        return x if dtype in (None, x.dtype) else x.astype(dtype)
    _refuse_in_capture("a copy from the host")
    x = np.asarray(x, dtype)
    return ndarray(x.copy("F" if x.flags.f_contiguous and not x.flags.c_contiguous else "C"))


def scatter_add(target: ndarray, index: Any, source: Any) -> None:
    if target.dtype.name not in SCATTERED:
        raise TypeError(f"cupy.add.at only supports {', '.join(SCATTERED)} as data type, got {target.dtype}")
    _do(np.add.at, target._host, _index(index), unwrap(source))


_allocators: list[Any] = [None]


@contextmanager
def using_allocator(malloc: Any) -> Iterator[None]:
    """All memory is NumPy's; this is noted for who asks."""
    _allocators.append(malloc)
    try:
        yield
    finally:
        _allocators.pop()


class Kernels(CpuDevice):
    """Runs kernels, and notes them while a stream is captured."""

    def launch(self, kernel: Kernel, grid: Dim3, block: Dim3, args: Sequence[Any], shared: int) -> None:
        tables = capture.current()
        read = [t for t in tables.tables if any(t.memory is x for x in args)] if tables is not None else []
        for t in read:  # it is filled after the capture: what follows here needs what the kernel makes
            t.memory._host[...] = t.rows.view(np.uint64)
        _do(super().launch, kernel, grid, block, args, shared)
        for t in read:
            t.memory._host[...] = 0

    def owns(self, x: Any) -> bool:
        """Without a compiler there are no kernels: then every op runs as it is written."""
        return HAS_COMPILER and super().owns(x)


def module() -> ModuleType:
    """The stand-in for `import cupy`."""
    cupy: Any = ModuleType("cupy")
    cupy.__version__, cupy.ndarray, cupy.asarray, cupy.inf = "14.2.0", ndarray, asarray, np.inf
    for name, parameters in FUNCTIONS.items():
        setattr(cupy, name, _strict(getattr(np, name), parameters, name))
    cupy.from_dlpack = lambda x: wrap(np.from_dlpack(x))
    tricks = np.lib.stride_tricks
    cupy.lib = SimpleNamespace(
        stride_tricks=SimpleNamespace(
            as_strided=_strict(tricks.as_strided, "shape strides", "as_strided"),  # its other function waits
        )
    )
    cupy.cuda = SimpleNamespace(
        is_available=lambda: True, Stream=Stream, get_current_stream=Stream,
        Event=lambda **options: SimpleNamespace(record=lambda stream=None: None),
        MemoryPool=lambda: SimpleNamespace(malloc=object()), using_allocator=using_allocator,
        get_allocator=lambda: _allocators[-1],
    )  # fmt: skip
    return cupy


@contextmanager
def in_place_of_cupy() -> Iterator[None]:
    """Within the block, this is CuPy, `HostBlas` is cuBLAS and `HostLt` cublasLt."""
    cupyx: Any = ModuleType("cupyx")
    cupyx.scatter_add = scatter_add
    blas, lt = HostBlas(), HostLt()
    with (
        patch.dict(sys.modules, {"cupy": module(), "cupyx": cupyx}),
        cublas.use_blas(blas),
        use_device(Kernels(array=ndarray)),
        patch("minigrad.cuda_graph.direct_blas", lambda device, stream: blas),
        patch("minigrad.backend.cublas_lt.shared", lambda: lt),
        patch.dict(FAST_PATHS, {} if HAS_COMPILER else {Generator.words: (), Generator.uniform: ()}),
    ):
        yield
