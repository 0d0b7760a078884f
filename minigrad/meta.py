"""L0: arrays with a shape and a dtype but no numbers, to see what a model would do without doing it.

A meta array (PyTorch has a meta device) is a view of a single number, repeated along every axis by strides of 0. So
reshaping, transposing and slicing, which only rearrange strides, are NumPy's own and cost nothing. What would compute
numbers is answered here instead: with the shape and the dtype that the result would have. What would need the numbers,
such as `bool(x)` or a mask as an index, is an error.

This module is also the `xp` of such arrays: `array_module(x)` returns it, so that the scratch that an op makes by
`xp.empty` has no numbers either. What is not here, such as `xp.exp`, is NumPy's own. Two ways out cannot be closed:
`np.asarray(x)` and `numbers[index] = x` see zeros.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np

_NUMBER = bytearray(16)  # the memory of all meta arrays
_BASIC = {int, slice, type(None), type(Ellipsis)}  # an index of these makes a view

Shape = tuple[int, ...]
Operand = tuple[Shape, Any]
"""What is known of an operand: its shape, and its dtype or, of a Python number, the type."""


class MetaArray(np.ndarray):
    """An array without numbers: `MetaArray((2, 3), np.float32)`."""

    def __new__(cls, shape: Sequence[int], dtype: Any = np.float64) -> "MetaArray":
        return super().__new__(cls, shape, dtype, _NUMBER, 0, (0,) * len(shape))

    # What computes --------------------------------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = (None,), **options: Any) -> Any:
        """The result of `np.exp(x)`, `a + b`, `x.sum()`, `a @ b`, `x += y` and their like."""
        shape, dtype = _result(ufunc, method, *map(_operand, inputs), **options)
        (target,) = out
        if target is None:
            return MetaArray(shape, dtype)
        if not isinstance(target, MetaArray):
            raise TypeError(f"{ufunc.__name__}: a meta array has no numbers to write into an array that has some")
        if target.shape != shape:
            raise ValueError(f"{ufunc.__name__}: a result of shape {shape} does not fit into one of {target.shape}")
        return target

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """The result of NumPy's functions that are no ufuncs."""
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
            return result if isinstance(result, MetaArray) else _like(result)  # one entry: NumPy makes it a scalar
        if any(isinstance(part, MetaArray) and part.dtype == bool for part in parts):
            raise _no_numbers()
        return _like(super().__getitem__(index))  # arrays pick entries: NumPy makes a copy, which goes at once

    def __setitem__(self, index: Any, value: Any) -> None:
        """Nothing happens: there is no place for numbers."""

    def astype(self, dtype: Any, *_: Any, **__: Any) -> "MetaArray":
        return MetaArray(self.shape, dtype)

    def copy(self, *_: Any, **__: Any) -> "MetaArray":
        return _like(self)

    def __pow__(self, exponent: Any, modulo: None = None) -> Any:
        return np.power(self, exponent)  # NumPy 2.0's own reads the value of an exponent without axes

    # What needs numbers ---------------------------------------------------------------------------------------------

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise _no_numbers()

    __bool__ = __int__ = __float__ = __index__ = item = tolist = argmax = argmin = nonzero = _refuse

    def __repr__(self) -> str:
        return f"MetaArray({self.shape}, {self.dtype})"

    __str__ = __repr__


# The functions that make arrays, which NumPy does not ask an argument about -------------------------------------------


def empty(shape: Sequence[int] | int, dtype: Any = np.float64) -> MetaArray:
    """No numbers, and so no others: this is also `zeros` and `ones`."""
    return MetaArray((shape,) if isinstance(shape, int) else shape, dtype)


zeros = ones = empty


def full(shape: Sequence[int] | int, fill_value: Any, dtype: Any = None) -> MetaArray:
    """As NumPy's, without the number."""
    return empty(shape, np.asarray(fill_value).dtype if dtype is None else dtype)


def asarray(x: Any, dtype: Any = None) -> np.ndarray:
    """As NumPy's, which would make of a meta array one of zeros. What has numbers keeps them."""
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
    """Shape and dtype of what a ufunc, or a method of it, makes."""
    shapes = [shape for shape, _ in operands]
    if ufunc is np.matmul:
        shape = _matmul_shape(*shapes)
    elif method == "__call__" and ufunc.signature is None and ufunc.nout == 1:
        shape = np.broadcast_shapes(*shapes)
    elif method == "reduce":
        (whole,) = shapes
        gone = range(len(whole)) if axis is None else np.lib.array_utils.normalize_axis_tuple(axis, len(whole))
        shape = tuple(1 if i in gone else size for i, size in enumerate(whole) if keepdims or i not in gone)
    elif method == "accumulate":
        (shape,) = shapes
    else:
        raise _unknown(f"{ufunc.__name__}.{method}")
    return shape, _dtype(getattr(ufunc, method), operands, dtype)


def _matmul_shape(a: Shape, b: Shape) -> Shape:
    """(..., M, K) and (..., K, N) to (..., M, N); a 1-D operand is one row or one column, and that axis goes again."""
    rows, columns = a[-2:-1], b[-1:] if len(b) > 1 else ()
    if not a or not b or a[-1] != b[-2:][0]:
        raise ValueError(f"matmul: shapes {a} and {b} do not fit")
    return np.broadcast_shapes(a[:-2], b[:-2]) + rows + columns


def _dtype(function: Any, operands: Sequence[Operand], dtype: Any = None) -> np.dtype:
    """The dtype of a result: found by doing it, on ones."""
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
    np.array2string: lambda x, **_: repr(x),
    np.concatenate: _concatenate,
    np.empty_like: _like,
    np.ones_like: _like,
    np.take: lambda x, indices, axis: x[(slice(None),) * axis + (indices,)],
    np.where: _where,
    np.zeros_like: _like,
}
_BUILT_ON_OTHERS = {  # NumPy makes these of views and of what is above
    np.array_split, np.broadcast_to, np.clip, np.expand_dims, np.flip, np.isneginf, np.moveaxis, np.roll, np.split,
    np.stack, np.swapaxes, np.lib.stride_tricks.sliding_window_view,
}  # fmt: skip


def _unknown(function: str) -> TypeError:
    return TypeError(f"meta arrays do not know np.{function}; if its shape depends on no numbers, add it to {__name__}")


def _no_numbers() -> TypeError:
    return TypeError("a meta array has a shape and a dtype but no numbers, and this would need them")
