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
from minigrad.ops.elementwise import Where


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """y = max(x, 0), elementwise. inplace: as `relu_`."""
    return input.relu_() if inplace else Tensor.apply(ReLU, input)


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """y = min(max(x, `min_val`), `max_val`), elementwise, with gradient 0 at both limits."""
    inside = (input > min_val) & (input < max_val)
    return Tensor.apply(Where, inside, input, input.detach().clamp(min_val, max_val))


def relu6(input: Tensor) -> Tensor:
    """y = min(max(x, 0), 6), elementwise."""
    return hardtanh(input, 0.0, 6.0)


def threshold(input: Tensor, threshold: float, value: float) -> Tensor:
    """y = x where x > `threshold`, else `value`, elementwise."""
    return Tensor.apply(Where, input <= threshold, value, input)


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """y = x where x > 0, else `weight` · x, elementwise. weight: (1,), or (C,) for x of shape (N, C, ...)."""
    slope = weight.reshape(-1, *(1,) * (input.ndim - 2)) if weight.data.size > 1 else weight
    return Tensor.apply(Where, input > 0, input, slope * input)


def hardshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """y = x where |x| > `lambd`, else 0, elementwise."""
    return Tensor.apply(Where, abs(input.detach()) <= lambd, 0.0, input)


def softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """y = x - `lambd` · sign x where |x| > `lambd`, else 0, elementwise."""
    return Tensor.apply(Where, abs(input.detach()) <= lambd, 0.0, input - input.detach().sign() * lambd)


def tanhshrink(input: Tensor) -> Tensor:
    """y = x - tanh x, elementwise."""
    return input - input.tanh()


def softsign(input: Tensor) -> Tensor:
    """y = x / (1 + |x|), elementwise."""
    return input / (1 + abs(input))


def mish(input: Tensor) -> Tensor:
    """y = x · tanh(ln(1 + eˣ)), elementwise; floating-point.  Misra 2019, arXiv:1908.08681."""
    return input * softplus(input).tanh()


def logsigmoid(input: Tensor) -> Tensor:
    """y = ln σ(x) = -ln(1 + e⁻ˣ), elementwise, σ the sigmoid; floating-point."""
    return -softplus(-input)


@numpy_names
def glu(input: Tensor, dim: int = -1) -> Tensor:
    """y = a · σ(b), σ the sigmoid, for the halves a and b of x along `dim`."""
    if input.size(dim) % 2:
        raise ValueError(f"glu: axis {dim} is halved, so its size must be even, got shape {input.shape}")
    a, b = input.chunk(2, dim)
    return a * b.sigmoid()


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


def selu(input: Tensor) -> Tensor:
    """y = λ x where x > 0, else λ α (eˣ - 1), elementwise, with λ ≈ 1.05 and α ≈ 1.67: samples of N(0, 1) keep mean 0
    and variance 1.  Klambauer et al. 2017, arXiv:1706.02515."""
    return elu(input, 1.6732632423543772) * 1.0507009873554805


def celu(input: Tensor, alpha: float = 1.0) -> Tensor:
    """y = x where x > 0, else `alpha` · (exp(x / `alpha`) - 1), elementwise."""
    return elu(input / alpha) * alpha


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


@numpy_names
def softmin(input: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """`softmax(-x)`."""
    return softmax(-input, dim, dtype)


def gumbel_softmax(logits: Tensor, tau: float = 1, hard: bool = False, *, dim: int = -1) -> Tensor:
    """y = softmax((x + g) / `tau`), with g Gumbel noise; hard: one-hot values, with the gradient of y.

    Jang, Gu, Poole 2017, arXiv:1611.01144.
    """
    u = logits.new_zeros(logits.shape).uniform_()
    y = softmax((logits - (-u.log()).log()) / tau, dim)
    if not hard:
        return y
    one_hot = y.detach().new_zeros(y.shape).scatter(dim, y.argmax(dim, True), 1.0)
    return one_hot - y.detach() + y
