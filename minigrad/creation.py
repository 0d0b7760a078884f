"""L4: tensors from nothing, with PyTorch's names. The random ones draw from `minigrad.manual_seed`'s stream."""

from collections.abc import Sequence
from math import ceil, isfinite
from typing import Any

import numpy as np

from minigrad.backend.dtypes import as_dtype, is_floating
from minigrad.backend.random import default_generator
from minigrad.methods import sequence
from minigrad.ops import checks
from minigrad.tensor import Tensor


def full(
    size: Sequence[int], fill_value: Any, dtype: Any = None, device: str = "cpu", requires_grad: bool = False
) -> Tensor:
    """A tensor of one number, repeated. By default float32 for a float, int64 for an integer, bool for a boolean."""
    dtype = Tensor(fill_value).dtype if dtype is None else as_dtype(dtype)
    if isinstance(fill_value, int | np.integer):
        checks.entry(fill_value, dtype, "full")
    return Tensor(np.full(size, fill_value, dtype), requires_grad, device=device)


def zeros(*size: Any, dtype: Any = np.float32, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A tensor of zeros: `zeros(2, 3)` or `zeros((2, 3))`."""
    return full(sequence(size), 0, dtype, device, requires_grad)


def ones(*size: Any, dtype: Any = np.float32, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A tensor of ones."""
    return full(sequence(size), 1, dtype, device, requires_grad)


def full_like(input: Tensor, fill_value: Any, dtype: Any = None, device: str | None = None) -> Tensor:
    """One number in the shape of `input`, and in its dtype and on its device unless others are named."""
    return full(input.shape, fill_value, dtype or input.dtype, device or input.device)


def zeros_like(input: Tensor, dtype: Any = None, device: str | None = None) -> Tensor:
    """Zeros in the shape of `input`, and in its dtype and on its device unless others are named."""
    return full_like(input, 0, dtype, device)


def ones_like(input: Tensor, dtype: Any = None, device: str | None = None) -> Tensor:
    """Ones in the shape of `input`, and in its dtype and on its device unless others are named."""
    return full_like(input, 1, dtype, device)


def arange(*bounds: int | float, dtype: Any = None, device: str = "cpu") -> Tensor:
    """The numbers from start (0) to before end, by step (1): `arange(end)`, `arange(start, end, step)`.

    By default int64 for whole bounds, else float32. Each number is start + i · step, rounded once. For an integer type
    start, end and step lose their fractions first, and numbers beyond its range wrap, as in PyTorch.
    """
    if not 1 <= len(bounds) <= 3:
        raise TypeError(f"arange: takes end, or start and end, or start, end and step, got {bounds}")
    if not all(isfinite(bound) for bound in bounds):
        raise ValueError(f"arange: start, end and step must be finite, got {bounds}")
    if dtype is None:
        dtype = np.int64 if all(isinstance(bound, int | np.integer) for bound in bounds) else np.float32
    dtype = as_dtype(dtype)
    whole = not is_floating(dtype)
    start, end, step, *_ = (0, *bounds, 1) if len(bounds) == 1 else (*bounds, 1)
    if whole:
        start, end, step = int(start), int(end), int(step)
    if step == 0:
        raise ValueError(f"arange: the step must not be 0, as {dtype}")
    if whole:
        numbers = np.arange(start, end, step, dtype=np.int64 if dtype.kind in "iu" else dtype)
        return Tensor(numbers.astype(dtype, copy=False), device=device)
    count = max(ceil((end - start) / step), 0)
    return Tensor(start + step * np.arange(count, dtype=np.float64), dtype=dtype, device=device)


def rand(*size: Any, dtype: Any = np.float32, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """Uniform random numbers from 0 to 1, 1 excluded."""
    return Tensor(default_generator().uniform(sequence(size), as_dtype(dtype), device), requires_grad)


def randn(*size: Any, dtype: Any = np.float32, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """Standard normal random numbers."""
    return Tensor(default_generator().normal(sequence(size), as_dtype(dtype), device), requires_grad)
