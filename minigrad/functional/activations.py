"""L4: activations and the softmax family."""

from typing import Any, Literal

from minigrad._tensor import Tensor
from minigrad.methods import numpy_names
from minigrad.ops.activation import (
    ELU,
    GELU,
    GELUTanh,
    Hardsigmoid,
    Hardswish,
    LeakyReLU,
    LogSoftmax,
    ReLU,
    SiLU,
    Softmax,
    Softplus,
)


def relu(input: Tensor) -> Tensor:
    """y = max(x, 0), elementwise."""
    return Tensor.apply(ReLU, input)


def gelu(input: Tensor, approximate: Literal["none", "tanh"] = "none") -> Tensor:
    """y = x · Φ(x), elementwise, Φ the standard normal distribution function; floating-point.

    approximate="tanh": y = ½ x (1 + tanh(√(2/π) (x + 0.044715 x³))), within 5e-4.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f'gelu: approximate must be "none" or "tanh", got {approximate!r}')
    return Tensor.apply(GELU if approximate == "none" else GELUTanh, input)


def silu(input: Tensor) -> Tensor:
    """y = x / (1 + e⁻ˣ), elementwise, also called swish; floating-point."""
    return Tensor.apply(SiLU, input)


def sigmoid(input: Tensor) -> Tensor:
    """y = 1 / (1 + e⁻ˣ), elementwise. Integers give float32."""
    return input.sigmoid()


def tanh(input: Tensor) -> Tensor:
    """y = tanh x, elementwise. Integers give float32."""
    return input.tanh()


def leaky_relu(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    """y = x where x > 0, else `negative_slope` · x, elementwise; floating-point."""
    return Tensor.apply(LeakyReLU, input, negative_slope=negative_slope)


def elu(input: Tensor, alpha: float = 1.0) -> Tensor:
    """y = x where x > 0, else `alpha` · (eˣ - 1), elementwise; floating-point."""
    return Tensor.apply(ELU, input, alpha=alpha)


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """y = ln(1 + e^(`beta` · x)) / `beta`, and x where `beta` · x > `threshold`, elementwise; floating-point."""
    return Tensor.apply(Softplus, input, beta=beta, threshold=threshold)


def hardsigmoid(input: Tensor) -> Tensor:
    """y = min(max(x + 3, 0), 6) / 6, elementwise; floating-point."""
    return Tensor.apply(Hardsigmoid, input)


def hardswish(input: Tensor) -> Tensor:
    """y = x · min(max(x + 3, 0), 6) / 6, elementwise; floating-point."""
    return Tensor.apply(Hardswish, input)


@numpy_names
def softmax(input: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """yᵢ = exp xᵢ / Σⱼ exp xⱼ along `dim`; floating-point. y has the shape of the input. dtype: convert x first."""
    return Tensor.apply(Softmax, input if dtype is None else input.to(dtype=dtype), axis=dim)


@numpy_names
def log_softmax(input: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """yᵢ = xᵢ - ln Σⱼ exp xⱼ along `dim`, more accurate than the logarithm of `softmax`; floating-point.

    dtype: convert x first.
    """
    return Tensor.apply(LogSoftmax, input if dtype is None else input.to(dtype=dtype), axis=dim)
