"""L4: creation of tensors, with PyTorch's names. Random tensors: `sampling.py`.

By default `dtype` is float32, unless a function says otherwise, `device` "cpu" and `requires_grad` False.
"""

from collections.abc import Sequence
from math import ceil, isfinite
from typing import Any

import numpy as np

from minigrad._tensor import Tensor
from minigrad.backend.dtypes import FLOAT32, as_dtype, is_floating
from minigrad.methods import sequence
from minigrad.ops import checks

# From data ------------------------------------------------------------------------------------------------------------


def tensor(data: Any, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """A leaf with a copy of `data`: a number, nested lists, an array or a Tensor.

    dtype: by default that of an array or Tensor; float32 for Python floats, int64 for integers, bool for booleans.
    """
    made = Tensor(data, dtype=dtype, device=device)
    shared = isinstance(data, Tensor) or hasattr(data, "dtype")
    return Tensor(made.data.copy() if shared and made.ndim + made.data.size else made.data, requires_grad)


def as_tensor(data: Any, dtype: Any = None, device: str | None = None) -> Tensor:
    """`data` itself if it is a Tensor of this dtype and device; else a Tensor, which shares the memory of an array."""
    return data.to(dtype=dtype, device=device) if isinstance(data, Tensor) else Tensor(data, dtype=dtype, device=device)


def from_numpy(ndarray: np.ndarray) -> Tensor:
    """A Tensor that shares the memory of a NumPy array."""
    if not isinstance(ndarray, np.ndarray):
        raise TypeError(f"expected np.ndarray (got {type(ndarray).__name__}); use tensor(data)")
    return Tensor(ndarray)


# Constants ------------------------------------------------------------------------------------------------------------


def full(
    size: Sequence[int], fill_value: Any, dtype: Any = None, device: str | None = None, requires_grad: bool = False
) -> Tensor:
    """A tensor filled with `fill_value`; by default float32 for a float, int64 for an integer, bool for a bool."""
    dtype = Tensor(fill_value).dtype if dtype is None else as_dtype(dtype)
    if isinstance(fill_value, int | np.integer):
        checks.entry(fill_value, dtype, "full")
    return Tensor(np.full(size, fill_value, dtype), requires_grad, device=device or "cpu")


def zeros(
    *sizes: Any, size: Any = None, dtype: Any = None, device: str | None = None, requires_grad: bool = False
) -> Tensor:
    """A tensor filled with 0: `zeros(2, 3)`, `zeros((2, 3))` or `zeros(size=(2, 3))`."""
    return full(sequence(sizes, size), 0, FLOAT32 if dtype is None else dtype, device, requires_grad)


def ones(
    *sizes: Any, size: Any = None, dtype: Any = None, device: str | None = None, requires_grad: bool = False
) -> Tensor:
    """A tensor filled with 1: `ones(2, 3)`, `ones((2, 3))` or `ones(size=(2, 3))`."""
    return full(sequence(sizes, size), 1, FLOAT32 if dtype is None else dtype, device, requires_grad)


def empty(
    *sizes: Any, size: Any = None, dtype: Any = None, device: str | None = None, requires_grad: bool = False
) -> Tensor:
    """A tensor of this size whose values are to be overwritten; here they are 0."""
    return zeros(*sizes, size=size, dtype=dtype, device=device, requires_grad=requires_grad)


def eye(
    n: int, m: int | None = None, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False
) -> Tensor:
    """The matrix (n, m) with 1 on the diagonal and 0 elsewhere; m defaults to n."""
    return Tensor(np.eye(n, m, dtype=as_dtype(dtype or FLOAT32)), requires_grad, device=device or "cpu")


def full_like(
    input: Tensor, fill_value: Any, dtype: Any = None, device: str | None = None, requires_grad: bool = False
) -> Tensor:
    """A tensor of the shape of `input` filled with `fill_value`; dtype and device default to those of `input`."""
    return full(input.shape, fill_value, dtype or input.dtype, device or input.device, requires_grad)


def zeros_like(input: Tensor, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """A tensor of the shape of `input` filled with 0; dtype and device default to those of `input`."""
    return full_like(input, 0, dtype, device, requires_grad)


def ones_like(input: Tensor, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """A tensor of the shape of `input` filled with 1; dtype and device default to those of `input`."""
    return full_like(input, 1, dtype, device, requires_grad)


empty_like = zeros_like


# Ranges and grids -----------------------------------------------------------------------------------------------------


def arange(
    *bounds: Any, start: Any = None, end: Any = None, step: Any = None,
    dtype: Any = None, device: str | None = None, requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Values from start (default 0) up to, but excluding, end: `arange(end)`, `arange(start, end, step=1)`.

    The default dtype is int64 if all bounds are integers, else float32. Value i is start + i · step, rounded once. As
    in PyTorch, an integer dtype truncates start, end and step to integers, and values out of its range wrap.
    """
    if (bounds and start is not None) or (len(bounds) > 1 and end is not None):
        raise TypeError(f"arange: start or end is given twice, as {start} and {end}, and in {bounds}")
    if end is not None:
        bounds = (*(bounds or (start or 0,)), end)
    elif start is not None:
        raise TypeError("arange: needs end, where to stop")
    if step is not None:
        bounds = (*((0, *bounds) if len(bounds) == 1 else bounds), step)
    if not 1 <= len(bounds) <= 3:
        raise TypeError(f"arange: takes end, or start and end, or start, end and step, got {bounds}")
    if not all(isfinite(bound) for bound in bounds):
        raise ValueError(f"arange: start, end and step must be finite, got {bounds}")
    if dtype is None:
        dtype = np.int64 if all(isinstance(bound, int | np.integer) for bound in bounds) else np.float32
    dtype = as_dtype(dtype)
    is_integer = not is_floating(dtype)
    start, end, step, *_ = (0, *bounds, 1) if len(bounds) == 1 else (*bounds, 1)
    if is_integer:
        start, end, step = int(start), int(end), int(step)
    if step == 0:
        raise ValueError(f"arange: step must not be 0 when cast to {dtype}")
    if is_integer:
        values = np.arange(start, end, step, dtype=np.int64 if dtype.kind in "iu" else dtype).astype(dtype, copy=False)
    else:
        values = start + step * np.arange(max(ceil((end - start) / step), 0), dtype=np.float64)
    return Tensor(values, requires_grad, dtype, device or "cpu")


def linspace(
    start: float, end: float, steps: int, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False
) -> Tensor:
    """`steps` values from `start` to `end`, both included, at equal distances; computed in float64, rounded once."""
    values = np.linspace(start, end, steps, dtype=np.float64)
    return Tensor(values, requires_grad, as_dtype(dtype or FLOAT32), device or "cpu")


def logspace(
    start: float, end: float, steps: int, base: float = 10.0,
    *, dtype: Any = None, device: str | None = None, requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """base ** `linspace(start, end, steps)`."""
    values = np.logspace(start, end, steps, base=base, dtype=np.float64)
    return Tensor(values, requires_grad, as_dtype(dtype or FLOAT32), device or "cpu")


def meshgrid(*tensors: Any, indexing: str = "ij") -> tuple[Tensor, ...]:
    """Coordinates of a grid: result k has the values of the 1-D tensor k along axis k, as a view without a copy.

    indexing: "ij", or "xy": the first two axes are exchanged.
    """
    xs: Sequence[Tensor] = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], Sequence) else tensors
    if indexing not in ("ij", "xy"):
        raise RuntimeError(f'meshgrid: indexing must be one of "xy" or "ij", got {indexing!r}')
    if any(x.ndim > 1 for x in xs):
        raise RuntimeError(f"meshgrid: tensors must be 0-d or 1-d, got shapes {[x.shape for x in xs]}")
    shape = [x.data.size for x in xs]
    grids = [
        x.reshape(*(-1 if i == k else 1 for i in range(len(xs)))).expand(*shape) for k, x in enumerate(xs)
    ]  # (N_k,) -> (1, .., N_k, .., 1) -> (N_0, .., N_k, ..)
    return tuple(grid.transpose(0, 1) if indexing == "xy" and len(xs) > 1 else grid for grid in grids)


def tril_indices(row: int, col: int, offset: int = 0, *, dtype: Any = None, device: str | None = None) -> Tensor:
    """The indices (2, ·) of the lower triangle of a matrix (row, col), row by row; int64 by default."""
    return Tensor(np.stack(np.tril_indices(row, offset, col)), dtype=as_dtype(dtype or np.int64), device=device)


def triu_indices(row: int, col: int, offset: int = 0, *, dtype: Any = None, device: str | None = None) -> Tensor:
    """The indices (2, ·) of the upper triangle of a matrix (row, col), row by row; int64 by default."""
    return Tensor(np.stack(np.triu_indices(row, offset, col)), dtype=as_dtype(dtype or np.int64), device=device)
