"""L5: initialisers. Each fills a Tensor in place; random values come from the generator that `manual_seed` seeds.

A weight has shape (out, in, ...): fan_in is the number of inputs per output, fan_out the number of outputs per input.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import erf, prod, sqrt
from typing import Literal

import numpy as np

from minigrad._tensor import Tensor
from minigrad.autograd import writes
from minigrad.backend import Array, to_device
from minigrad.backend.meta import MetaArray
from minigrad.backend.random import default_generator
from minigrad.ops import checks


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """fan_in and fan_out of a weight (out, in, ...)."""
    if len(shape) < 2:
        raise ValueError(f"fans: the weight must have at least two axes, (out, in, ...), got shape {shape}")
    receptive = prod(shape[2:])
    return shape[1] * receptive, shape[0] * receptive


def zeros_(*tensors: Tensor | None) -> Tensor | None:
    """Fill tensors with 0, and return the first. None, such as an absent bias, is skipped."""
    for tensor in tensors:
        if tensor is not None:
            _fill(tensor, partial(np.zeros, tensor.shape))
    return tensors[0] if tensors else None


def ones_(tensor: Tensor) -> Tensor:
    """Fill with 1."""
    return constant_(tensor, 1.0)


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Fill with the number `val`."""
    return _fill(tensor, lambda: np.full(tensor.shape, val))


def eye_(tensor: Tensor) -> Tensor:
    """Fill a matrix with 1 on the diagonal and 0 elsewhere."""
    return _fill(tensor, lambda: np.eye(tensor.shape[0], tensor.shape[1]))


def orthogonal_(tensor: Tensor, gain: float = 1) -> Tensor:
    """Fill with `gain` times a random matrix (out, in · ...) of orthonormal rows, or columns.  Saxe et al. 2014."""
    rows, columns = tensor.shape[0], prod(tensor.shape[1:])

    def draw() -> Array:
        values = default_generator().normal((max(rows, columns), min(rows, columns)), np.float64)
        q, r = np.linalg.qr(values)
        q = q * np.sign(np.diag(r))  # uniform among the orthogonal matrices
        return gain * (q if rows >= columns else q.T).reshape(tensor.shape)

    return _fill(tensor, draw)


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    """Fill with values of the uniform distribution on [a, b)."""
    checks.ordered(a, b, "uniform_")
    return _fill(tensor, lambda: default_generator().uniform(tensor.shape, np.float64) * (b - a) + a)


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Fill with values of the normal distribution N(mean, std²)."""
    checks.not_negative(std, "std", "normal_")
    return _fill(tensor, lambda: default_generator().normal(tensor.shape, np.float64) * std + mean)


def trunc_normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Tensor:
    """Fill with values of N(mean, std²) truncated to [a, b]: values outside are drawn again.

    As in PyTorch, a and b are values, not multiples of std: with std=.02, the default bounds have almost no effect.
    """
    if not a < b or not std > 0:
        raise ValueError(f"trunc_normal_: needs a < b and std > 0, got a={a}, b={b}, std={std}")
    inside = 0.5 * (erf((b - mean) / (std * sqrt(2))) - erf((a - mean) / (std * sqrt(2))))
    if inside < 0.01:
        raise ValueError(f"trunc_normal_: only {inside:.1e} of N({mean}, {std}²) lies in [{a}, {b}]: widen the bounds")

    def draw() -> Array:
        values = default_generator().normal(tensor.shape, np.float64) * std + mean
        while (outside := (values < a) | (values > b)).any():
            values[outside] = default_generator().normal((int(outside.sum()),), np.float64) * std + mean
        return values

    return _fill(tensor, draw)


def xavier_uniform_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Fill with values uniform on ±gain · √(6 / (fan_in + fan_out)).  Glorot and Bengio 2010."""
    bound = gain * sqrt(6 / max(sum(fans(tensor.shape)), 1))
    return uniform_(tensor, -bound, bound)


def xavier_normal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Fill with normal values of std gain · √(2 / (fan_in + fan_out)).  Glorot and Bengio 2010."""
    return normal_(tensor, 0, gain * sqrt(2 / max(sum(fans(tensor.shape)), 1)))


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor by which weights compensate for the nonlinearity that follows the layer.

    param: the negative slope of "leaky_relu", by default 0.01.
    """
    gains = {"tanh": 5 / 3, "relu": sqrt(2), "selu": 3 / 4} | dict.fromkeys(
        ("linear", "conv1d", "conv2d", "sigmoid"), 1.0
    )
    if nonlinearity == "leaky_relu":
        return sqrt(2 / (1 + (0.01 if param is None else param) ** 2))
    if nonlinearity not in gains:
        raise ValueError(
            f"calculate_gain: unknown nonlinearity {nonlinearity!r}; known: leaky_relu, {', '.join(gains)}"
        )
    return gains[nonlinearity]


def kaiming_normal_(
    tensor: Tensor, a: float = 0.0, mode: Literal["fan_in", "fan_out"] = "fan_in", nonlinearity: str = "leaky_relu"
) -> Tensor:
    """Fill with normal values of std gain / √fan, for a layer followed by a leaky ReLU of negative slope `a`.

    By default the nonlinearity is a ReLU: gain = √2.  He et al. 2015, arXiv:1502.01852.
    """
    return normal_(tensor, 0, _kaiming_std(tensor, a, mode, nonlinearity, "kaiming_normal_"))


def kaiming_uniform_(
    tensor: Tensor, a: float = 0.0, mode: Literal["fan_in", "fan_out"] = "fan_in", nonlinearity: str = "leaky_relu"
) -> Tensor:
    """Fill with uniform values of the std of `kaiming_normal_`."""
    bound = sqrt(3) * _kaiming_std(tensor, a, mode, nonlinearity, "kaiming_uniform_")
    return uniform_(tensor, -bound, bound)


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str, name: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f'{name}: mode must be "fan_in" or "fan_out", got {mode!r}')
    fan_in, fan_out = fans(tensor.shape)
    return calculate_gain(nonlinearity, a) / sqrt(fan_in if mode == "fan_in" else fan_out)


def lecun_normal_(tensor: Tensor) -> Tensor:
    """Fill with normal values truncated at two std, of variance 1 / fan_in after truncation.  LeCun et al. 1998."""
    std = sqrt(1 / fans(tensor.shape)[0]) / 0.87962566103423978  # the std of N(0, 1) truncated to ±2
    return trunc_normal_(tensor, 0, std, -2 * std, 2 * std)


def torch_default_(weight: Tensor, bias: Tensor | None) -> None:
    """PyTorch's default for weight and bias of Linear and Conv2d: uniform on ±1 / √fan_in."""
    bound = 1 / sqrt(max(fans(weight.shape)[0], 1))
    uniform_(weight, -bound, bound)
    if bias is not None:
        uniform_(bias, -bound, bound)


@contextmanager
def skip_init() -> Iterator[None]:
    """Within the block, initialisers do nothing, which saves time if weights are loaded afterwards."""
    previous, _state.skip = _state.skip, True
    try:
        yield
    finally:
        _state.skip = previous


@contextmanager
def meta_init() -> Iterator[None]:
    """Within the block, parameters and buffers are created as meta arrays, without values (`minigrad/backend/meta.py`).

    A model of meta arrays uses no memory. For a Tensor of a `MetaArray`, its output has only a shape and a dtype.
    """
    previous, _state.meta = _state.meta, True
    try:
        yield
    finally:
        _state.meta = previous


def is_meta() -> bool:
    """True within `meta_init` in this thread."""
    return _state.meta


class _State(threading.local):
    skip: bool = False
    meta: bool = False


_state = _State()


def _fill(tensor: Tensor, draw: Callable[[], Array]) -> Tensor:
    if not (_state.skip or isinstance(tensor.data, MetaArray)):
        tensor.data[...] = to_device(draw().astype(tensor.dtype), tensor.device)
        writes.note([tensor.data])
    return tensor
