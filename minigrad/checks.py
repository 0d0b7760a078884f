"""L0: the checks that several ops share. Every message says what must hold, what came, and the likely fix."""

from collections.abc import Sequence
from operator import index
from typing import Any

import numpy as np

from minigrad.dtypes import is_floating, is_held


def one_axis(axis: Any, ndim: int, op: str) -> int:
    """`axis` as a number from 0 to ndim - 1 (a 0-d array counts as 1-d, as in PyTorch)."""
    size = max(ndim, 1)
    try:
        number = index(axis)
    except TypeError:
        raise TypeError(f"{op}: an axis is an integer, got {axis!r}") from None
    if not -size <= number < size:
        raise IndexError(f"{op}: axis {number} does not exist: with {ndim} axes it must be from {-size} to {size - 1}")
    return number % size


def axes(axis: int | Sequence[int] | None, ndim: int, op: str) -> tuple[int, ...]:
    """`axis` as a tuple of distinct numbers from 0 to ndim - 1; None means all of them."""
    if axis is None:
        return tuple(range(ndim))
    names = axis if isinstance(axis, Sequence) else (axis,)
    numbers = tuple(one_axis(a, ndim, op) for a in names)
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{op}: axes {tuple(names)} name the same axis twice")
    return () if ndim == 0 else numbers


def pair(value: Any, name: str, op: str, *, least: int) -> tuple[int, int]:
    """`value` as two integers (height, width); a single integer stands for both."""
    both = (value, value) if isinstance(value, int | np.integer) else value
    if not (isinstance(both, Sequence) and len(both) == 2 and all(isinstance(v, int | np.integer) for v in both)):
        raise TypeError(f"{op}: {name} is an integer or a pair (height, width), got {value!r}")
    if min(both) < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {value!r}")
    return int(both[0]), int(both[1])


def rank(x: Any, ndim: int, layout: str, op: str) -> None:
    """`x` has `ndim` axes, laid out as `layout` says."""
    if x.ndim != ndim:
        hint = "; add the batch axis with x[None]" if x.ndim == ndim - 1 else ""
        raise ValueError(f"{op}: the input must be {layout}, {ndim}-D, got shape {x.shape}{hint}")


def floating(x: Any, op: str) -> None:
    """`x` holds floating-point numbers."""
    if not is_floating(x.dtype):
        raise TypeError(f"{op}: needs floating-point numbers, got {x.dtype}; convert first with x.float()")


def entry(value: Any, dtype: np.dtype, op: str) -> None:
    """A Python number that becomes an entry of an array of this dtype fits into it, if it is an integer type."""
    if dtype.kind in "iu" and not (is_held(value, dtype) and value == int(value)):
        raise ValueError(f"{op}: {dtype} cannot hold {value}; convert first, as with x.float()")


def affine(param: Any, shape: tuple[int, ...], name: str, op: str) -> None:
    """A weight or bias, where there is one, has the shape the op scales by."""
    if param is not None and param.shape != shape:
        raise ValueError(f"{op}: {name} must have shape {shape} to fit the input, got {param.shape}")


def reduction(name: str, op: str) -> str:
    """How a loss is folded into one number."""
    if name not in ("mean", "sum", "none"):
        raise ValueError(f'{op}: reduction must be "mean", "sum" or "none", got {name!r}')
    return name


def probability(p: float, op: str) -> float:
    """A probability."""
    if not 0 <= p <= 1:
        raise ValueError(f"{op}: a probability must be from 0 to 1, got {p}")
    return p
