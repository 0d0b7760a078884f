"""L4: activations and the softmax family."""

from typing import Literal

from minigrad._tensor import Tensor
from minigrad.ops.activation import GELU, GELUTanh, LogSoftmax, ReLU, SiLU, Softmax


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


def softmax(input: Tensor, dim: int) -> Tensor:
    """yᵢ = exp xᵢ / Σⱼ exp xⱼ along `dim`; floating-point. y has the shape of the input."""
    return Tensor.apply(Softmax, input, axis=dim)


def log_softmax(input: Tensor, dim: int) -> Tensor:
    """yᵢ = xᵢ - ln Σⱼ exp xⱼ along `dim`, more accurate than the logarithm of `softmax`; floating-point."""
    return Tensor.apply(LogSoftmax, input, axis=dim)
