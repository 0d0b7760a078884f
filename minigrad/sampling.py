"""L4: creation of random tensors, with PyTorch's names.

Values come from `generator`, by default the one that `manual_seed` seeds. On the same seed, the values of a GPU are
those of a CPU, bit for bit; PyTorch's differ from both.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad._tensor import Tensor
from minigrad.backend import to_device
from minigrad.backend.dtypes import FLOAT32, as_dtype
from minigrad.backend.random import Generator, default_generator
from minigrad.methods import sequence
from minigrad.ops import checks


def rand(
    *sizes: Any, size: Any = None, generator: Generator | None = None,
    dtype: Any = None, device: str | None = None, requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Values of the uniform distribution on [0, 1)."""
    draw = (generator or default_generator()).uniform
    size = sequence(sizes, size)
    return Tensor(draw(size, as_dtype(dtype or FLOAT32), device or "cpu"), requires_grad)


def randn(
    *sizes: Any, size: Any = None, generator: Generator | None = None,
    dtype: Any = None, device: str | None = None, requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Values of the standard normal distribution."""
    draw = (generator or default_generator()).normal
    size = sequence(sizes, size)
    return Tensor(draw(size, as_dtype(dtype or FLOAT32), device or "cpu"), requires_grad)


def rand_like(input: Tensor, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """`rand` of the shape, dtype and device of `input`."""
    return rand(input.shape, dtype=dtype or input.dtype, device=device or input.device, requires_grad=requires_grad)


def randn_like(input: Tensor, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """`randn` of the shape, dtype and device of `input`."""
    return randn(input.shape, dtype=dtype or input.dtype, device=device or input.device, requires_grad=requires_grad)


def randint(
    *arguments: Any, generator: Generator | None = None,
    dtype: Any = None, device: str | None = None, low: int | None = None, high: int | None = None, size: Any = None,
) -> Tensor:  # fmt: skip
    """Uniform integers from low (default 0) to high - 1: `randint(high, size)` or `randint(low, high, size)`.

    The default dtype is int64.
    """
    given = list(arguments)
    size = given.pop() if size is None else size
    high = given.pop() if high is None else high
    low = (given.pop() if given else 0) if low is None else low
    if given or not isinstance(size, Sequence):
        raise TypeError(
            "randint: takes (high, size) or (low, high, size), with size a tuple, as in randint(10, (2, 3))"
        )
    values = (generator or default_generator()).integers(low, high, tuple(size))
    return Tensor(values, dtype=as_dtype(dtype or np.int64), device=device or "cpu")


def randint_like(input: Tensor, *bounds: int, dtype: Any = None, device: str | None = None) -> Tensor:
    """`randint(high)` or `randint(low, high)` of the shape, dtype and device of `input`."""
    return randint(*bounds, input.shape, dtype=dtype or input.dtype, device=device or input.device)


def randperm(n: int, *, generator: Generator | None = None, dtype: Any = None, device: str | None = None) -> Tensor:
    """A random permutation of 0 to n - 1, int64 by default."""
    order = (generator or default_generator()).permutation(n)
    return Tensor(to_device(order, device or "cpu"), dtype=as_dtype(dtype or np.int64))


def bernoulli(input: Tensor, *, generator: Generator | None = None) -> Tensor:
    """1 with probability `input`, else 0, elementwise, in the dtype of `input`."""
    p = input.data
    if not bool(((p >= 0) & (p <= 1)).all()):
        raise RuntimeError("bernoulli: expected all probabilities p in the range 0 <= p <= 1")
    u = (generator or default_generator()).uniform(input.shape, np.float32, input.device)
    return Tensor((u < p).astype(input.dtype))


def normal(
    mean: Any = 0.0, std: Any = 1.0, size: Sequence[int] | None = None, *, generator: Generator | None = None
) -> Tensor:
    """Values of the normal distribution with this mean and standard deviation: numbers with a `size`, or Tensors."""
    if isinstance(std, Tensor):
        if bool((std.data < 0).any()):
            raise ValueError("normal: std must not be negative")
    else:
        checks.not_negative(std, "std", "normal")
    if size is None:
        like = mean if isinstance(mean, Tensor) else std
        if not isinstance(like, Tensor):
            raise TypeError("normal: two numbers need a size: normal(mean, std, size)")
        size = np.broadcast_shapes(np.shape(getattr(mean, "data", mean)), np.shape(getattr(std, "data", std)))
        return randn(*size, generator=generator, dtype=like.dtype, device=like.device) * std + mean
    return randn(*size, generator=generator) * std + mean


def multinomial(
    input: Tensor, num_samples: int, replacement: bool = False, *, generator: Generator | None = None
) -> Tensor:
    """Indices drawn with the probabilities in each row of `input`, (K,) or (N, K), not necessarily of sum 1.

    With replacement by the inverse of the cumulative sum; without, the `num_samples` largest of log p + Gumbel noise.
    (Kool, van Hoof, Welling 2019, "Stochastic Beams and Where to Find Them", section 2.)

    Raises:
        RuntimeError: an entry is negative or infinite, a row has sum 0, or fewer entries than samples.
    """
    p = np.atleast_2d(np.asarray(input.cpu().data, np.float64))
    if not (np.isfinite(p).all() and (p >= 0).all() and (p.sum(-1) > 0).all()):
        raise RuntimeError("multinomial: probability tensor contains either inf, nan or element < 0, or a row of sum 0")
    draw = (generator or default_generator()).uniform
    if replacement:
        sums = np.cumsum(p, axis=-1)
        u = draw((len(p), num_samples), np.float64) * sums[:, -1:]
        index = np.stack([np.searchsorted(row, values, side="right") for row, values in zip(sums, u, strict=True)])
    else:
        if num_samples > p.shape[-1]:
            raise RuntimeError("multinomial: cannot sample n_sample > prob_dist.size(-1) samples without replacement")
        with np.errstate(divide="ignore"):
            keys = np.log(p) - np.log(-np.log1p(-draw(p.shape, np.float64)))
        index = np.argsort(-keys, axis=-1, kind="stable")[:, :num_samples]
    index = index if input.ndim > 1 else index[0]
    return Tensor(index.astype(np.int64), device=input.device)
