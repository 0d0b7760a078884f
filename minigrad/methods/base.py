"""L3: what all methods of Tensor use: `apply`, and the arrays and sizes among the arguments."""

import operator
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from minigrad.backend import plain

if TYPE_CHECKING:
    from minigrad._tensor import Tensor as Tensor

Dim = int | Sequence[int] | None
Number = int | float
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def numpy_names(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let callers write NumPy's `axis=` and `keepdims=` for `dim=` and `keepdim=`, as in PyTorch."""

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        if "axis" in options or "keepdims" in options:
            options = {_PYTORCH_NAMES.get(name, name): value for name, value in _distinct(function, options).items()}
        return function(*args, **options)

    return call


_PYTORCH_NAMES = {"axis": "dim", "keepdims": "keepdim"}


def _distinct(function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """`options`, if none is given under both names; else TypeError."""
    for numpy_name, name in _PYTORCH_NAMES.items():
        if numpy_name in options and name in options:
            raise TypeError(f"{function.__name__}: {numpy_name}= is another name of {name}=: give one of them")
    return options


class TensorBase:
    """The attributes of Tensor that its methods use."""

    __slots__ = ()

    apply: Callable[..., "Tensor"]
    constant: Callable[[Any], "Tensor"]
    _in_place: Callable[..., "Tensor"]
    data: Any
    shape: Any
    ndim: Any
    dtype: Any
    device: Any


def raw(x: Any) -> Any:
    """The array of a Tensor; a NumPy scalar as a Python number, which never promotes an array; others by `plain`."""
    return x.data if isinstance(x, TensorBase) else x.item() if isinstance(x, np.generic) else plain(x)


def raw_array(x: Any, name: str, op: str) -> Any:
    """The array of a Tensor, or `x` itself if `x` is an array; else TypeError."""
    array = raw(x)
    if not hasattr(array, "dtype"):
        raise TypeError(f"{op}: {name} must be a Tensor or an array, got {type(x).__name__}; convert with Tensor(...)")
    return array


def sequence(sizes: tuple[Any, ...], size: Any = None) -> tuple[int, ...]:
    """The sizes or axes of a call `f(2, 3)`, `f((2, 3))` or `f(size=(2, 3))`, as a tuple of integers."""
    sizes = sizes if size is None else (*sizes, size)
    sizes = tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], Sequence) else sizes
    try:
        return tuple(map(operator.index, sizes))
    except TypeError:
        raise TypeError(f"sizes and axes must be integers, got {sizes}") from None
