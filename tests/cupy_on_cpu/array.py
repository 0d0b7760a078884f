"""CuPy's array: a NumPy array in a wrapper that is as strict as CuPy's."""

import operator
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.cupy_on_cpu.api import COMPARISONS, METHODS, OPERATORS, as_cupy
from tests.cupy_on_cpu.capture import alive, do, refuse_function_in_capture, refuse_in_capture

_of_host: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # by id: views share a base


def _reads(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method that synchronizes: the wrapper raises during capture."""

    def call(self: "ndarray") -> Any:
        refuse_in_capture("D2H transfers")
        return method(self)

    return call


class ndarray:  # noqa: N801 (CuPy's name)
    """An array on the device."""

    __hash__ = None  # type: ignore[assignment]
    __array_priority__ = 100

    def __init__(self, host: np.ndarray, device: int = 0) -> None:
        self._host, self.device = host, SimpleNamespace(id=device)
        key = id(self)
        alive[key] = weakref.ref(self, lambda _: alive.pop(key, None))
        base = host.base  # of as_strided: an object with the attribute base
        self.base = wrap(base if isinstance(base, np.ndarray) else getattr(base, "base", base))
        _of_host.setdefault(id(host), self)

    shape, dtype, ndim, size, strides, nbytes, itemsize = (
        property(operator.attrgetter(f"_host.{name}"))
        for name in ("shape", "dtype", "ndim", "size", "strides", "nbytes", "itemsize")
    )

    @property
    def flags(self) -> Any:
        """All flags that CuPy has: no array is read-only."""
        host = self._host.flags
        return SimpleNamespace(c_contiguous=host.c_contiguous, f_contiguous=host.f_contiguous, owndata=host.owndata)

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
        return strict(ufunc, "out dtype", ufunc.__name__)(*inputs, **options)

    def __dlpack__(self, **options: Any) -> Any:
        return self._host.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._host.__dlpack_device__()

    def __getitem__(self, index: Any) -> "ndarray":
        return wrap(do(as_cupy(_getitem, "getitem"), self._host, index_of(index)))

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, list | tuple | np.ndarray):
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")  # CuPy's message
        do(operator.setitem, self._host, index_of(index), unwrap(value))

    def set(self, host: np.ndarray) -> None:
        refuse_in_capture("H2D transfers")
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

    def __abs__(self) -> "ndarray":
        return wrap(do(as_cupy(abs, "abs"), self._host))

    def __neg__(self) -> "ndarray":
        return wrap(do(as_cupy(operator.neg, "operator.neg"), self._host))

    def __invert__(self) -> "ndarray":
        return wrap(do(as_cupy(operator.invert, "operator.invert"), self._host))

    @_reads
    def __repr__(self) -> str:
        return repr(self._host)


def _getitem(host: np.ndarray, index: Any) -> np.ndarray:
    """host[index]: one element, too, is a view."""
    found = host[index]
    return host[(*index, ...) if isinstance(index, tuple) else (index, ...)] if isinstance(found, np.generic) else found


def wrap(x: Any) -> Any:
    """NumPy's results as arrays on the device; a scalar becomes a 0-d array. An array has one wrapper."""
    if isinstance(x, np.ndarray | np.generic):
        known = _of_host.get(id(x))
        return ndarray(np.asarray(x)) if known is None else known
    return type(x)(map(wrap, x)) if isinstance(x, list | tuple) else x


def unwrap(x: Any) -> Any:
    """Arrays on the device as NumPy arrays. A NumPy array raises, as with CuPy."""
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}: CuPy takes no arrays of NumPy")
    return type(x)(map(unwrap, x)) if isinstance(x, list | tuple) else x


def index_of(index: Any) -> Any:
    """The index, for NumPy. Masks need the number of elements on the host; a list is copied to the device."""
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(part, ndarray) and part.dtype == bool for part in parts):
        refuse_in_capture("D2H transfers")
    if any(isinstance(part, list) for part in parts):
        refuse_in_capture("H2D transfers")
    return tuple(map(unwrap, index)) if isinstance(index, tuple) else unwrap(index)


def strict(function: Callable[..., Any], parameters: str, name: str, arrays: bool = True) -> Callable[..., Any]:
    allowed = set(parameters.split())
    function = as_cupy(function, name)

    def call(*inputs: Any, **options: Any) -> Any:
        unknown = set(options) - allowed
        if unknown:
            raise TypeError(f"cupy: {name}() has no argument {', '.join(sorted(unknown))}")
        refuse_function_in_capture(name)
        out = options.get("out")
        if isinstance(out, tuple):
            (out,) = out
        result = do(function, *map(unwrap, inputs), **{key: unwrap(value) for key, value in options.items()})
        return out if out is not None else wrap(result)

    return call


def _operand(x: Any) -> Any:
    if isinstance(x, list | tuple | str):
        raise TypeError(f"Unsupported type {type(x)}")
    return unwrap(x)


def _operator(name: str) -> Callable[..., Any]:
    function = as_cupy(getattr(operator, name + "_" if name in ("and", "or") else name), name)

    def forward(self: ndarray, other: Any) -> Any:
        refuse_function_in_capture(name)
        return wrap(do(function, self._host, _operand(other)))

    return forward


def _reflected(name: str) -> Callable[..., Any]:
    function = as_cupy(getattr(operator, name + "_" if name in ("and", "or") else name), name)

    def forward(self: ndarray, other: Any) -> Any:
        return wrap(do(function, _operand(other), self._host))

    return forward


def _in_place(name: str) -> Callable[..., Any]:
    function = getattr(operator, f"i{name}")

    def forward(self: ndarray, other: Any) -> Any:
        do(function, self._host, _operand(other))
        return self

    return forward


def _method(name: str) -> Callable[..., Any]:
    function = strict(getattr(np.ndarray, name), METHODS[name], name)

    def call(self: ndarray, *arguments: Any, **options: Any) -> Any:
        result = function(self, *arguments, **options)
        return self if name == "squeeze" and result.ndim == self.ndim else result

    return call


for _name in OPERATORS:
    setattr(ndarray, f"__{_name}__", _operator(_name))
    if _name != "matmul":
        setattr(ndarray, f"__r{_name}__", _reflected(_name))
        setattr(ndarray, f"__i{_name}__", _in_place(_name))
for _name in COMPARISONS:
    setattr(ndarray, f"__{_name}__", _operator(_name))
for _name in METHODS:
    setattr(ndarray, _name, _method(_name))
