"""L4: creation of tensors, with PyTorch's names. Random values come from the generator that `manual_seed` seeds."""

from collections.abc import Sequence
from math import ceil, isfinite
from typing import Any

import numpy as np

from minigrad.backend.dtypes import as_dtype, is_floating
from minigrad.backend.random import default_generator
from minigrad.methods import sequence
from minigrad.ops import checks
from minigrad._tensor import Tensor


def full(
    size: Sequence[int], fill_value: Any, dtype: Any = None, device: str = "cpu", requires_grad: bool = False
) -> Tensor:
    """A tensor filled with `fill_value`; by default float32 for a float, int64 for an integer, bool for a bool."""
    dtype = Tensor(fill_value).dtype if dtype is None else as_dtype(dtype)
    if isinstance(fill_value, int | np.integer):
        checks.entry(fill_value, dtype, "full")
    return Tensor(np.full(size, fill_value, dtype), requires_grad, device=device)


def zeros(*size: Any, dtype: Any = np.float32, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A tensor filled with 0: `zeros(2, 3)` or `zeros((2, 3))`."""
    return full(sequence(size), 0, dtype, device, requires_grad)


def ones(*size: Any, dtype: Any = np.float32, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A tensor filled with 1: `ones(2, 3)` or `ones((2, 3))`."""
    return full(sequence(size), 1, dtype, device, requires_grad)


def full_like(input: Tensor, fill_value: Any, dtype: Any = None, device: str | None = None) -> Tensor:
    """A tensor of the shape of `input` filled with `fill_value`; dtype and device default to those of `input`."""
    return full(input.shape, fill_value, dtype or input.dtype, device or input.device)


def zeros_like(input: Tensor, dtype: Any = None, device: str | None = None) -> Tensor:
    """A tensor of the shape of `input` filled with 0; dtype and device default to those of `input`."""
    return full_like(input, 0, dtype, device)


def ones_like(input: Tensor, dtype: Any = None, device: str | None = None) -> Tensor:
    """A tensor of the shape of `input` filled with 1; dtype and device default to those of `input`."""
    return full_like(input, 1, dtype, device)


def arange(*bounds: int | float, dtype: Any = None, device: str = "cpu") -> Tensor:
    """Values from start (default 0) up to, but excluding, end: `arange(end)`, `arange(start, end, step=1)`.

    The default dtype is int64 if all bounds are integers, else float32. Value i is start + i · step, rounded once. As
    in PyTorch, an integer dtype truncates start, end and step to integers, and values out of its range wrap.
    """
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
        values = np.arange(start, end, step, dtype=np.int64 if dtype.kind in "iu" else dtype)
        return Tensor(values.astype(dtype, copy=False), device=device)
    count = max(ceil((end - start) / step), 0)
    return Tensor(start + step * np.arange(count, dtype=np.float64), dtype=dtype, device=device)


def rand(*size: Any, dtype: Any = np.float32, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """Random values from the uniform distribution on [0, 1)."""
    return Tensor(default_generator().uniform(sequence(size), as_dtype(dtype), device), requires_grad)


def randn(*size: Any, dtype: Any = np.float32, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """Random values from the standard normal distribution."""
    return Tensor(default_generator().normal(sequence(size), as_dtype(dtype), device), requires_grad)
