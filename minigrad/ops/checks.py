"""L0: the checks that several ops share. Every message says what must hold, what came, and the likely fix."""

from collections.abc import Sequence
from math import inf
from operator import index
from typing import Any

import numpy as np

from minigrad.backend.dtypes import is_floating, is_held


def integer(value: Any, name: str, op: str) -> int:
    """`value` as a Python integer: counts and sizes are not rounded."""
    try:
        number = index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be an integer, got {value!r}; write int(...) if it is a whole number")
    return number


def integers(values: Any, name: str, op: str) -> tuple[int, ...]:
    """`values`, a single integer or a sequence, as Python integers."""
    return tuple(integer(value, name, op) for value in (values if isinstance(values, Sequence) else (values,)))


def listed(complaints: Sequence[str]) -> str:
    """Complaints for a message, a line each; of more than 20 the first 20 and the number of the others."""
    shown = [*complaints[:20], *([f"and {len(complaints) - 20} more"] if len(complaints) > 20 else [])]
    return "\n  ".join(shown)


def one_axis(axis: Any, ndim: int, op: str) -> int:
    """`axis` as a number from 0 to ndim - 1 (a 0-d array counts as 1-d, as in PyTorch)."""
    size = max(ndim, 1)
    try:
        number = index(axis)
    except TypeError:
        raise TypeError(f"{op}: an axis is an integer, got {axis!r}") from None
    if axis is True or axis is False:
        raise TypeError(f"{op}: an axis is an integer, got {axis!r}")
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
    integers = isinstance(both, Sequence) and all(isinstance(v, int | np.integer) for v in both)
    if not integers or len(both) != 2 or any(isinstance(v, bool) for v in both):
        raise TypeError(f"{op}: {name} is an integer or a pair (height, width), got {value!r}")
    if min(both) < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {value!r}")
    return int(both[0]), int(both[1])


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of a size that has been checked: one number for both, or a pair."""
    return (size[0], size[1]) if isinstance(size, Sequence) else (size, size)


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


def unambiguous(index: Any, op: str) -> None:
    """An index does not hold uint8, which PyTorch takes for a mask in some places, and NumPy for indices."""
    if index.dtype == np.uint8:
        raise TypeError(
            f"{op}: an index of uint8 may mean a mask or positions: write index.astype(bool) for a mask, or "
            "index.astype(int) for positions (of a Tensor: index.to(dtype=bool))"
        )


def reduction(name: str, op: str) -> str:
    """How a loss is folded into one number."""
    if name not in ("mean", "sum", "none"):
        raise ValueError(f'{op}: reduction must be "mean", "sum" or "none", got {name!r}')
    return name


def scalar(value: Any, name: str, op: str) -> float:
    """A number, or a NumPy scalar, array or Tensor of one element, as a Python float, which widens no array."""
    number = value.item() if hasattr(value, "item") else value
    if not hasattr(number, "__float__"):
        raise TypeError(f"{op}: {name} must be a number, got {value!r}")
    return float(number)


def not_negative(value: Any, name: str, op: str) -> float:
    """`scalar`, from 0 on and finite."""
    number = scalar(value, name, op)
    if not 0 <= number < inf:
        raise ValueError(f"{op}: {name} must not be negative, infinite or NaN, got {number}")
    return number


def probability(p: float, op: str) -> float:
    """A probability."""
    if not 0 <= p <= 1:
        raise ValueError(f"{op}: a probability must be from 0 to 1, got {p}")
    return p
