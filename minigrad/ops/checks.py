"""L0: argument checks that several ops share. Messages name the requirement, the given value and the likely fix."""

from collections.abc import Sequence
from math import inf
from operator import index
from typing import Any

import numpy as np

from minigrad.backend.dtypes import is_floating, is_held


def integer(value: Any, name: str, op: str) -> int:
    """`value` as a Python integer; a float is a TypeError, since counts and sizes are not rounded."""
    try:
        number = index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be an integer, got {value!r}; convert it with int(...)")
    return number


def integers(values: Any, name: str, op: str) -> tuple[int, ...]:
    """`values`, an integer or a sequence of integers, as a tuple of Python integers."""
    return tuple(integer(value, name, op) for value in (values if isinstance(values, Sequence) else (values,)))


def listed(complaints: Sequence[str]) -> str:
    """`complaints` for an error message, one a line: at most 20, then the number left out."""
    shown = [*complaints[:20], *([f"and {len(complaints) - 20} more"] if len(complaints) > 20 else [])]
    return "\n  ".join(shown)


def one_axis(axis: Any, ndim: int, op: str) -> int:
    """`axis`, which may be negative, as an integer from 0 to ndim - 1. A 0-d array counts as 1-d, as in PyTorch."""
    size = max(ndim, 1)
    try:
        number = index(axis)
    except TypeError:
        raise TypeError(f"{op}: an axis must be an integer, got {axis!r}") from None
    if axis is True or axis is False:
        raise TypeError(f"{op}: an axis must be an integer, got {axis!r}")
    if not -size <= number < size:
        raise IndexError(f"{op}: axis {number} does not exist: with {ndim} axes it must be from {-size} to {size - 1}")
    return number % size


def axes(axis: int | Sequence[int] | None, ndim: int, op: str) -> tuple[int, ...]:
    """`axis`, one axis or several, as a tuple of distinct integers from 0 to ndim - 1; None means all axes."""
    if axis is None:
        return tuple(range(ndim))
    given = axis if isinstance(axis, Sequence) else (axis,)
    distinct = tuple(one_axis(a, ndim, op) for a in given)
    if len(set(distinct)) < len(distinct):
        raise ValueError(f"{op}: axes {tuple(given)} name the same axis twice")
    return () if ndim == 0 else distinct


def pair(value: Any, name: str, op: str, *, minimum: int) -> tuple[int, int]:
    """`value` as a pair of integers (height, width), each at least `minimum`; a single integer is used for both."""
    both: Any = (value, value) if isinstance(value, int | np.integer) else value
    if type(both) is tuple and len(both) == 2 and type(both[0]) is type(both[1]) is int and min(both) >= minimum:
        return both[0], both[1]  # the usual case, in a fifth of the time
    all_integers = isinstance(both, Sequence) and all(isinstance(v, int | np.integer) for v in both)
    if not all_integers or len(both) != 2 or any(isinstance(v, bool) for v in both):
        raise TypeError(f"{op}: {name} must be an integer or a pair (height, width), got {value!r}")
    if min(both) < minimum:
        raise ValueError(f"{op}: {name} must be at least {minimum}, got {value!r}")
    return int(both[0]), int(both[1])


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a size that has been checked: an integer for both, or a pair."""
    return (size[0], size[1]) if isinstance(size, Sequence) else (size, size)


def rank(x: Any, ndim: int, layout: str, op: str) -> None:
    """Check that `x` has `ndim` axes; `layout` names them in the message, as in "(N, C, H, W)"."""
    if x.ndim != ndim:
        hint = "; add the batch axis with x[None]" if x.ndim == ndim - 1 else ""
        raise ValueError(f"{op}: the input must be {layout}, {ndim}-D, got shape {x.shape}{hint}")


def floating(x: Any, op: str) -> None:
    """Check that the dtype of `x` is floating-point."""
    if not is_floating(x.dtype):
        raise TypeError(f"{op}: needs floating-point numbers, got {x.dtype}; convert first with x.float()")


def entry(value: Any, dtype: np.dtype, op: str) -> None:
    """Check that an integer `dtype` can hold the Python number `value`; every other dtype passes."""
    if dtype.kind in "iu" and not (is_held(value, dtype) and value == int(value)):
        raise ValueError(f"{op}: {dtype} cannot hold {value}; convert first, as with x.float()")


def affine(param: Any, shape: tuple[int, ...], name: str, op: str) -> None:
    """Check that a weight or bias, if given, has shape `shape`."""
    if param is not None and param.shape != shape:
        raise ValueError(f"{op}: {name} must have shape {shape} to fit the input, got {param.shape}")


def unambiguous(index: Any, op: str) -> None:
    """Check that an index is not uint8: PyTorch treats uint8 as a mask in some functions, NumPy as integers."""
    if index.dtype == np.uint8:
        raise TypeError(
            f"{op}: a uint8 index is ambiguous, a mask or positions: write index.astype(bool) for a mask, or "
            "index.astype(int) for positions (of a Tensor: index.to(dtype=bool))"
        )


def reduction(name: str, op: str) -> str:
    """Check `name`, the `reduction` argument of a loss, and return it."""
    if name not in ("mean", "sum", "none"):
        raise ValueError(f'{op}: reduction must be "mean", "sum" or "none", got {name!r}')
    return name


def scalar(value: Any, name: str, op: str) -> float:
    """`value`, a Python number or a one-element array or Tensor, as a Python float, which promotes no float array."""
    number = value.item() if hasattr(value, "item") else value
    if not hasattr(number, "__float__"):
        raise TypeError(f"{op}: {name} must be a number, got {value!r}")
    return float(number)


def not_negative(value: Any, name: str, op: str) -> float:
    """`value` as a Python float, checked to be finite and at least 0."""
    number = scalar(value, name, op)
    if not 0 <= number < inf:
        raise ValueError(f"{op}: {name} must not be negative, infinite or NaN, got {number}")
    return number


def ordered(low: Any, high: Any, op: str) -> None:
    """Raise ValueError unless `low` <= `high`, the bounds of an interval."""
    if not scalar(low, "the lower bound", op) <= scalar(high, "the upper bound", op):
        raise ValueError(f"{op}: the lower bound must not be above the upper bound, got {low} and {high}")


def probability(p: float, op: str) -> float:
    """Check that `p` is from 0 to 1 and return it."""
    if not 0 <= p <= 1:
        raise ValueError(f"{op}: a probability must be from 0 to 1, got {p}")
    return p


def norm_arguments(max_norm: Any, norm_type: Any) -> tuple[float, float]:
    """The arguments of `clip_grad_norm_` as floats; norm_type may be "inf". A ValueError unless both are above 0."""
    norm_type = inf if norm_type == "inf" else norm_type
    max_norm, norm_type = (
        scalar(x, name, "clip_grad_norm_") for x, name in ((max_norm, "max_norm"), (norm_type, "norm_type"))
    )
    if not max_norm > 0:
        raise ValueError(f"clip_grad_norm_: max_norm must be above 0, got {max_norm}")
    if not norm_type > 0:
        raise ValueError(f"clip_grad_norm_: norm_type must be above 0 or inf, got {norm_type}")
    return max_norm, norm_type
