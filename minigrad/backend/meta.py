"""L0: meta arrays: a shape and a dtype without values, to run a model's shapes without its computation or memory.

A meta array, like a tensor on PyTorch's meta device, has only a shape and a dtype. The array is a view of one element,
with stride 0 along every axis. Reshaping, transposing and slicing change only shape and strides, so NumPy's
implementations are used. A function that would compute values returns a meta array of the result's shape and dtype. A
function that needs values, such as `bool(x)` or indexing by a boolean mask, raises TypeError.

For a meta array x, `array_module(x)` returns this module, so that `xp.empty` in an op also returns a meta array.
Names not defined here, such as `xp.exp`, are NumPy's. NumPy offers no hook for `np.asarray(x)` and for
`array[index] = x` on an ordinary array: both read x as zeros.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np

_ELEMENT = bytearray(16)  # the memory of all meta arrays
_BASIC = {int, slice, type(None), type(Ellipsis)}  # basic indexing: returns a view

Shape = tuple[int, ...]
Operand = tuple[Shape, Any]
"""The shape and dtype of an array, or () and the type of a Python number."""


class MetaArray(np.ndarray):
    """An array without values: `MetaArray((2, 3), np.float32)`."""

    def __new__(cls, shape: Sequence[int], dtype: Any = np.float64) -> "MetaArray":
        return super().__new__(cls, shape, dtype, _ELEMENT, 0, (0,) * len(shape))

    # Functions that compute values ----------------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = (None,), **options: Any) -> Any:
        """The result of ufuncs and their methods: `np.exp(x)`, `a + b`, `x.sum()`, `a @ b`, `x += y`."""
        if method == "at":  # writes into x
            return None
        shape, dtype = _result(ufunc, method, *map(_operand, inputs), **options)
        (target,) = out
        if target is None:
            return MetaArray(shape, dtype)
        if not isinstance(target, MetaArray):
            raise TypeError(f"{ufunc.__name__}: out must be a meta array, as a meta array has no values to write")
        if target.shape != shape:
            raise ValueError(f"{ufunc.__name__}: the result has shape {shape}, but out has shape {target.shape}")
        return target

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """The result of NumPy functions that are not ufuncs."""
        if func in _RULES:
            return _RULES[func](*args, **kwargs)
        if func not in _BUILT_ON_OTHERS:
            raise _unknown(func.__name__)
        result = super().__array_function__(func, types, args, kwargs)
        return _like(result) if isinstance(result, np.ndarray) else result

    def __getitem__(self, index: Any) -> "MetaArray":
        parts = index if isinstance(index, tuple) else (index,)
        if _BASIC.issuperset(map(type, parts)):
            result = super().__getitem__(index)
            return result if isinstance(result, MetaArray) else _like(result)  # 0-d: NumPy returns a scalar
        if any(isinstance(part, MetaArray) and part.dtype == bool for part in parts):
            raise _no_values()
        return _like(super().__getitem__(index))  # advanced indexing: NumPy returns a copy, freed at once

    def __setitem__(self, index: Any, value: Any) -> None:
        """Does nothing: a meta array has no values."""

    def astype(self, dtype: Any, *_: Any, **__: Any) -> "MetaArray":
        return MetaArray(self.shape, dtype)

    def argmax(self, axis: Any = None, *, keepdims: bool = False) -> "MetaArray":  # type: ignore[override]
        """The shape of the indices; `argmin` likewise."""
        return MetaArray(_result(np.maximum, "reduce", _operand(self), axis=axis, keepdims=keepdims)[0], np.int64)

    argmin = argmax  # type: ignore[assignment]

    def copy(self, *_: Any, **__: Any) -> "MetaArray":
        return _like(self)

    def __pow__(self, exponent: Any, modulo: None = None) -> Any:
        return np.power(self, exponent)  # ndarray.__pow__ of NumPy 2.0 reads the value of a 0-d exponent

    # Functions that need values ---------------------------------------------------------------------------------------

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise _no_values()

    __bool__ = __int__ = __float__ = __index__ = item = tolist = nonzero = _refuse

    def __repr__(self) -> str:
        return f"MetaArray({self.shape}, {self.dtype})"

    __str__ = __repr__


# Array creation, which NumPy does not dispatch to a subclass ----------------------------------------------------------


def empty(shape: Sequence[int] | int, dtype: Any = np.float64) -> MetaArray:
    """A meta array. `zeros` and `ones` are the same function, as there are no values."""
    return MetaArray((shape,) if isinstance(shape, int) else shape, dtype)


zeros = ones = empty


def full(shape: Sequence[int] | int, fill_value: Any, dtype: Any = None) -> MetaArray:
    """A meta array of the shape and dtype of `np.full`'s result."""
    return empty(shape, np.asarray(fill_value).dtype if dtype is None else dtype)


def asarray(x: Any, dtype: Any = None) -> np.ndarray:
    """As `np.asarray`, but a meta array stays a meta array: NumPy would return zeros."""
    if isinstance(x, MetaArray):
        return x if dtype is None else x.astype(dtype)
    return np.asarray(x, dtype)


ascontiguousarray = asarray
lib = SimpleNamespace(
    stride_tricks=SimpleNamespace(
        as_strided=lambda x, shape, strides: MetaArray(shape, x.dtype),
        sliding_window_view=np.lib.stride_tricks.sliding_window_view,
    )
)


def __getattr__(name: str) -> Any:
    return getattr(np, name)


# Shapes and dtypes ----------------------------------------------------------------------------------------------------


def _operand(x: Any) -> Operand:
    return (x.shape, x.dtype) if hasattr(x, "dtype") else ((), type(x))


@lru_cache(maxsize=4096)
def _result(
    ufunc: np.ufunc, method: str, *operands: Operand, axis: Any = 0, keepdims: bool = False, dtype: Any = None, **_: Any
) -> tuple[Shape, np.dtype]:
    """The shape and dtype of the result of a ufunc or of one of its methods."""
    shapes = [shape for shape, _ in operands]
    if ufunc is np.matmul:
        shape = _matmul_shape(*shapes)
    elif method == "__call__" and ufunc.signature is None and ufunc.nout == 1:
        shape = np.broadcast_shapes(*shapes)
    elif method == "reduce":
        (full,) = shapes
        reduced = range(len(full)) if axis is None else np.lib.array_utils.normalize_axis_tuple(axis, len(full))
        shape = tuple(1 if i in reduced else size for i, size in enumerate(full) if keepdims or i not in reduced)
    elif method == "accumulate":
        (shape,) = shapes
    else:
        raise _unknown(f"{ufunc.__name__}.{method}")
    return shape, _dtype(getattr(ufunc, method), operands, dtype)


def _matmul_shape(a: Shape, b: Shape) -> Shape:
    """(..., M, K), (..., K, N) -> (..., M, N). The M of a 1-D a and the N of a 1-D b are dropped."""
    rows, columns = a[-2:-1], b[-1:] if len(b) > 1 else ()
    if not a or not b or a[-1] != b[-2:][0]:
        raise ValueError(f"matmul: the last axis of a must match the second-last of b, got shapes {a} and {b}")
    return np.broadcast_shapes(a[:-2], b[:-2]) + rows + columns


def _dtype(function: Any, operands: Sequence[Operand], dtype: Any = None) -> np.dtype:
    """The dtype of the function's result, found by a call with one-element arrays."""
    ones = [kind(1) if isinstance(kind, type) else np.ones(1, kind) for _, kind in operands]
    found: np.dtype = (function(*ones) if dtype is None else function(*ones, dtype=dtype)).dtype
    return found


def _like(x: Any, *_: Any, dtype: Any = None) -> MetaArray:
    return MetaArray(x.shape, x.dtype if dtype is None else dtype)


def _where(*three: Any) -> MetaArray:
    operands = [_operand(x) for x in three]
    return MetaArray(np.broadcast_shapes(*(shape for shape, _ in operands)), _dtype(np.where, operands))


def _concatenate(arrays: Sequence[Any], axis: int = 0, **_: Any) -> MetaArray:
    shape = list(arrays[0].shape)
    shape[axis] = sum(x.shape[axis] for x in arrays)
    return MetaArray(shape, np.result_type(*(x.dtype for x in arrays)))


_RULES: dict[Any, Callable[..., Any]] = {
    np.argsort: lambda x, **_: MetaArray(x.shape, np.int64),
    np.array2string: lambda x, **_: repr(x),
    np.concatenate: _concatenate,
    np.empty_like: _like,
    np.ones_like: _like,
    np.take: lambda x, indices, axis: x[(slice(None),) * axis + (indices,)],
    np.where: _where,
    np.zeros_like: _like,
}
_BUILT_ON_OTHERS = {  # NumPy implements these by views and the functions above
    np.array_split, np.broadcast_to, np.clip, np.expand_dims, np.flip, np.isneginf, np.moveaxis, np.roll, np.split,
    np.stack, np.swapaxes, np.lib.stride_tricks.sliding_window_view,
}  # fmt: skip


def _unknown(function: str) -> TypeError:
    return TypeError(
        f"meta arrays do not support np.{function}; if the result's shape depends on no values, add it to {__name__}"
    )


def _no_values() -> TypeError:
    return TypeError("a meta array has a shape and a dtype but no values, and this operation needs values")
