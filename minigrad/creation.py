"""L4: tensors from nothing, with PyTorch's names. The random ones draw from `minigrad.manual_seed`'s stream."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad.methods import sequence
from minigrad.random import default_generator
from minigrad.tensor import Tensor


def full(
    size: Sequence[int], fill_value: Any, dtype: Any = None, device: str = "cpu", requires_grad: bool = False
) -> Tensor:
    """A tensor of one number, repeated. By default float32 for a float, int64 for an integer, bool for a boolean."""
    return Tensor(np.full(size, fill_value, dtype or Tensor(fill_value).dtype), requires_grad, device=device)


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

    By default int64 for whole bounds, else float32.
    """
    if dtype is None:
        dtype = np.int64 if all(isinstance(bound, int | np.integer) for bound in bounds) else np.float32
    return Tensor(np.arange(*bounds, dtype=dtype), device=device)


def rand(*size: Any, dtype: Any = np.float32, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """Uniform random numbers from 0 to 1, 1 excluded."""
    return Tensor(default_generator().uniform(sequence(size), dtype, device), requires_grad)


def randn(*size: Any, dtype: Any = np.float32, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """Standard normal random numbers."""
    return Tensor(default_generator().normal(sequence(size), dtype, device), requires_grad)
