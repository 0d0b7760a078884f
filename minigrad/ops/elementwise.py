"""L2: elementwise ops. Inputs broadcast; the engine sums the gradient over the broadcast axes."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from minigrad.autograd.function import Function
from minigrad.backend import Array, array_module, device_of, plus, promote, promote_and_wrap, to_device
from minigrad.backend.dtypes import cast
from minigrad.ops import checks, special


class Add(Function):
    """y = a + b;  ∂a = ∂y,  ∂b = ∂y.  Saves nothing."""

    def forward(self, a: Array, b: Array) -> Array:
        return plus(a, b)

    def backward(self, grad_output: Array) -> tuple[Array, Array]:
        return grad_output, grad_output


class Sub(Function):
    """y = a - b;  ∂a = ∂y,  ∂b = -∂y.  Saves nothing."""

    def forward(self, a: Array, b: Array) -> Array:
        return a - b

    def backward(self, grad_output: Array) -> tuple[Array, Array | None]:
        return grad_output, -grad_output if self.needs_input_grad[1] else None


class Mul(Function):
    """y = a · b;  ∂a = ∂y · b,  ∂b = ∂y · a.  Saves b if ∂a is wanted, a if ∂b is."""

    a: Array | None = None
    b: Array | None = None

    def forward(self, a: Array, b: Array) -> Array:
        want_a, want_b = self.needs_input_grad
        if want_a:
            self.b = b
        if want_b:
            self.a = a
        return a * b

    def backward(self, grad_output: Array) -> tuple[Array | None, Array | None]:
        return (
            None if self.b is None else grad_output * self.b,
            None if self.a is None else grad_output * self.a,
        )


class Div(Function):
    """y = a / b;  ∂a = ∂y / b,  ∂b = -∂y · y / b.  Saves b, and y if ∂b is wanted."""

    def forward(self, a: Array, b: Array) -> Array:
        y = a / b
        self.b, self.y = b, y if self.needs_input_grad[1] else None
        return y

    def backward(self, grad_output: Array) -> tuple[Array, Array | None]:
        grad_a = grad_output / self.b
        return grad_a, None if self.y is None else -grad_a * self.y


class Neg(Function):
    """y = -x;  ∂x = -∂y.  Saves nothing."""

    def forward(self, x: Array) -> Array:
        return -x

    def backward(self, grad_output: Array) -> Array:
        return -grad_output


class Pow(Function):
    """y = aᵇ;  ∂a = ∂y · b · aᵇ⁻¹ (0 where b = 0),  ∂b = ∂y · y · ln a (0 where a = 0 and b ≥ 0).

    Saves a and b, and y if ∂b is wanted.
    """

    def forward(self, a: Array, b: Array) -> Array:
        y = a**b
        self.a, self.b, self.y = a, b, y if self.needs_input_grad[1] else None
        return y

    def backward(self, grad_output: Array) -> tuple[Array | None, Array | None]:
        a, b, xp = self.a, self.b, array_module(grad_output)
        grad_a = grad_b = None
        if self.needs_input_grad[0]:
            if isinstance(b, int | float):
                grad_a = grad_output * (b * a ** (b - 1)) if b else xp.zeros_like(grad_output)
            else:
                grad_a = grad_output * xp.where(b == 0, 0, b * a ** xp.where(b == 0, 1, b - 1))
        if self.y is not None:
            at_zero = (a == 0) & (b >= 0)
            grad_b = grad_output * xp.where(at_zero, 0, self.y * xp.log(xp.where(at_zero, xp.ones_like(b), a)))
        return grad_a, grad_b


class Exp(Function):
    """y = eˣ;  ∂x = ∂y · y.  Saves y."""

    def forward(self, x: Array) -> Array:
        self.y = array_module(x).exp(x)
        return self.y

    def backward(self, grad_output: Array) -> Array:
        return grad_output * self.y


class Log(Function):
    """y = ln x;  ∂x = ∂y / x.  Saves x."""

    def forward(self, x: Array) -> Array:
        self.x = x
        return array_module(x).log(x)

    def backward(self, grad_output: Array) -> Array:
        return grad_output / self.x


class Expm1(Function):
    """y = eˣ - 1, accurate near x = 0;  ∂x = ∂y · (y + 1).  Saves y."""

    def forward(self, x: Array) -> Array:
        self.y = array_module(x).expm1(x)
        return self.y

    def backward(self, grad_output: Array) -> Array:
        return grad_output * (self.y + 1)


class Log1p(Function):
    """y = ln(1 + x), accurate near x = 0;  ∂x = ∂y / (1 + x).  Saves x."""

    def forward(self, x: Array) -> Array:
        self.x = x
        return array_module(x).log1p(x)

    def backward(self, grad_output: Array) -> Array:
        return grad_output / (1 + self.x)


class Sin(Function):
    """y = sin x;  ∂x = ∂y · cos x.  Saves x."""

    def forward(self, x: Array) -> Array:
        self.x = x
        return array_module(x).sin(x)

    def backward(self, grad_output: Array) -> Array:
        return grad_output * array_module(grad_output).cos(self.x)


class Cos(Function):
    """y = cos x;  ∂x = -∂y · sin x.  Saves x."""

    def forward(self, x: Array) -> Array:
        self.x = x
        return array_module(x).cos(x)

    def backward(self, grad_output: Array) -> Array:
        return -grad_output * array_module(grad_output).sin(self.x)


class Tan(Function):
    """y = tan x;  ∂x = ∂y · (1 + y²).  Saves y."""

    def forward(self, x: Array) -> Array:
        self.y = array_module(x).tan(x)
        return self.y

    def backward(self, grad_output: Array) -> Array:
        return grad_output * (1 + self.y * self.y)


class Asin(Function):
    """y = arcsin x;  ∂x = ∂y / √(1 - x²).  Saves x."""

    def forward(self, x: Array) -> Array:
        self.x = x
        return array_module(x).arcsin(x)

    def backward(self, grad_output: Array) -> Array:
        return grad_output / array_module(grad_output).sqrt(1 - self.x * self.x)


class Acos(Function):
    """y = arccos x;  ∂x = -∂y / √(1 - x²).  Saves x."""

    def forward(self, x: Array) -> Array:
        self.x = x
        return array_module(x).arccos(x)

    def backward(self, grad_output: Array) -> Array:
        return -grad_output / array_module(grad_output).sqrt(1 - self.x * self.x)


class Atan(Function):
    """y = arctan x;  ∂x = ∂y / (1 + x²).  Saves x."""

    def forward(self, x: Array) -> Array:
        self.x = x
        return array_module(x).arctan(x)

    def backward(self, grad_output: Array) -> Array:
        return grad_output / (1 + self.x * self.x)


class Atan2(Function):
    """y = the angle of the point (b, a);  ∂a = ∂y · b / (a² + b²),  ∂b = -∂y · a / (a² + b²).  Saves a and b."""

    def forward(self, a: Array, b: Array) -> Array:
        self.a, self.b = a, b
        return _module(a, b).arctan2(a, b)

    def backward(self, grad_output: Array) -> tuple[Array, Array]:
        share = grad_output / (self.a * self.a + self.b * self.b)
        return share * self.b, -share * self.a


class Sinh(Function):
    """y = sinh x;  ∂x = ∂y · cosh x.  Saves x."""

    def forward(self, x: Array) -> Array:
        self.x = x
        return array_module(x).sinh(x)

    def backward(self, grad_output: Array) -> Array:
        return grad_output * array_module(grad_output).cosh(self.x)


class Cosh(Function):
    """y = cosh x;  ∂x = ∂y · sinh x.  Saves x."""

    def forward(self, x: Array) -> Array:
        self.x = x
        return array_module(x).cosh(x)

    def backward(self, grad_output: Array) -> Array:
        return grad_output * array_module(grad_output).sinh(self.x)


class Log2(Function):
    """y = log₂ x;  ∂x = ∂y / (x ln 2).  Saves x."""

    def forward(self, x: Array) -> Array:
        self.x = x
        return array_module(x).log2(x)

    def backward(self, grad_output: Array) -> Array:
        return grad_output / (self.x * float(np.log(2)))


class Log10(Function):
    """y = log₁₀ x;  ∂x = ∂y / (x ln 10).  Saves x."""

    def forward(self, x: Array) -> Array:
        self.x = x
        return array_module(x).log10(x)

    def backward(self, grad_output: Array) -> Array:
        return grad_output / (self.x * float(np.log(10)))


class Sqrt(Function):
    """y = √x;  ∂x = ∂y / 2y (infinite at 0).  Saves y."""

    def forward(self, x: Array) -> Array:
        self.y = array_module(x).sqrt(x)
        return self.y

    def backward(self, grad_output: Array) -> Array:
        return grad_output / (2 * self.y)


class Rsqrt(Function):
    """y = 1 / √x;  ∂x = -½ ∂y · y³.  Saves y."""

    def forward(self, x: Array) -> Array:
        self.y = 1 / array_module(x).sqrt(x)
        return self.y

    def backward(self, grad_output: Array) -> Array:
        return -0.5 * grad_output * (self.y * self.y * self.y)


class Abs(Function):
    """y = |x|;  ∂x = ∂y · sign x (0 at 0).  Saves x."""

    def forward(self, x: Array) -> Array:
        self.x = x
        return abs(x)

    def backward(self, grad_output: Array) -> Array:
        return grad_output * array_module(grad_output).sign(self.x)


class Tanh(Function):
    """y = tanh x;  ∂x = ∂y · (1 - y²).  Saves y."""

    def forward(self, x: Array) -> Array:
        self.y = array_module(x).tanh(x)
        return self.y

    def backward(self, grad_output: Array) -> Array:
        return grad_output * (1 - self.y * self.y)


class Sigmoid(Function):
    """y = σ(x) = 1 / (1 + e⁻ˣ);  ∂x = ∂y · y · (1 - y).  Saves y."""

    def forward(self, x: Array) -> Array:
        self.y = special.sigmoid(x)
        return self.y

    def backward(self, grad_output: Array) -> Array:
        return grad_output * (self.y * (1 - self.y))


class Erf(Function):
    """y = erf x = 2/√π · ∫₀ˣ exp(-t²) dt;  ∂x = ∂y · 2/√π · exp(-x²).  Saves x."""

    def forward(self, x: Array) -> Array:
        self.x = x
        return special.erf(x)

    def backward(self, grad_output: Array) -> Array:
        return grad_output * (2 / np.pi**0.5 * array_module(grad_output).exp(-self.x * self.x))


class Maximum(Function):
    """y = max(a, b);  ∂a = ∂y where a > b, ∂y / 2 where a = b, 0 where a < b;  ∂b likewise.

    If either input is NaN, y is NaN, and ∂a = ∂b = ∂y.  Saves the masks a < b, a > b and a = b.
    """

    def forward(self, a: Array, b: Array) -> Array:
        self.no_grad_a, self.no_grad_b, self.tie = a < b, a > b, a == b
        return _module(a, b).maximum(a, b)

    def backward(self, grad_output: Array) -> tuple[Array, Array]:
        xp = array_module(grad_output)
        grad = xp.where(self.tie, grad_output / 2, grad_output)
        return xp.where(self.no_grad_a, 0, grad), xp.where(self.no_grad_b, 0, grad)


class Minimum(Maximum):
    """y = min(a, b);  ∂a = ∂y where a < b, ∂y / 2 where a = b, 0 where a > b;  ∂b likewise.

    NaN as in Maximum.  Saves the masks a > b, a < b and a = b.
    """

    def forward(self, a: Array, b: Array) -> Array:
        self.no_grad_a, self.no_grad_b, self.tie = a > b, a < b, a == b
        return _module(a, b).minimum(a, b)


def promote_power(xs: Sequence[Any]) -> list[Any]:
    """Base and exponent promoted to one dtype. In an n-bit integer dtype, a Python base wraps modulo 2ⁿ, and a Python
    exponent must be in range. Booleans to the power of a Python integer are int64."""
    a, b = promote(xs)
    if getattr(a, "dtype", None) == np.dtype(bool) and isinstance(b, int) and not isinstance(b, bool):
        a = a.astype(np.int64)
    return _check_range([a, b], "pow") if hasattr(a, "dtype") else promote_and_wrap([a, b])


def promote_entries(xs: Sequence[Any], op: str) -> list[Any]:
    """The operands promoted to one dtype. A Python number that an integer dtype cannot hold is a ValueError."""
    return _check_range(promote(xs), op)


def promote_branches(xs: Sequence[Any]) -> list[Any]:
    """The condition of `where`, unchanged, and its two other operands promoted to one dtype."""
    return [xs[0], *promote_entries(xs[1:], "where")]


def _check_range(xs: list[Any], op: str) -> list[Any]:
    """Check that the dtype of the arrays in `xs` can hold the Python numbers in `xs`; return `xs`."""
    dtype = next((x.dtype for x in xs if hasattr(x, "dtype")), np.dtype(np.float32))
    for x in xs:
        if isinstance(x, int | float):
            checks.entry(x, dtype, op)
    return xs


def _module(a: Any, b: Any) -> ModuleType:
    return array_module(a if hasattr(a, "dtype") else b)


class Clamp(Function):
    """y = min(max(x, min), max);  ∂x = ∂y where min ≤ x ≤ max, else 0.  Saves the mask min ≤ x ≤ max."""

    def forward(self, x: Array, *, min: Any, max: Any) -> Array:
        if min is None and max is None:
            raise ValueError("clamp: needs a min, a max, or both")
        x = promote([x, min, max])[0]
        if x.dtype.kind in "iu":
            lowest, highest = np.iinfo(x.dtype).min, np.iinfo(x.dtype).max  # a limit beyond the range has no effect
            min = lowest if min is None or min < lowest else min
            max = highest if max is None or max > highest else max
            _check_range([x, min, max], "clamp")
        inside = True if min is None else x >= min
        self.inside = inside if max is None else inside & (x <= max)
        return array_module(x).clip(x, min, max)

    def backward(self, grad_output: Array) -> Array:
        return array_module(grad_output).where(self.inside, grad_output, 0)


class Where(Function):
    """y = a where the condition holds, else b;  ∂a = ∂y where it holds, else 0;  ∂b = 0 where it holds, else ∂y.

    Saves the condition.
    """

    def forward(self, condition: Array, a: Array, b: Array) -> Array:
        kind = getattr(condition, "dtype", None)
        if kind != np.dtype(bool):
            kind = kind or type(condition).__name__
            raise TypeError(f"where: the condition must be a Tensor of bool, got {kind}; compare first, as in x > 0")
        self.condition = condition
        y = array_module(condition).where(condition, a, b)
        any_array = hasattr(a, "dtype") or hasattr(b, "dtype")
        return y if any_array or y.dtype.kind != "f" else y.astype(np.float32)  # Python floats are float32

    def backward(self, grad_output: Array) -> tuple[None, Array, Array]:
        xp = array_module(grad_output)
        return None, xp.where(self.condition, grad_output, 0), xp.where(self.condition, 0, grad_output)


class Cast(Function):
    """y = x in another dtype or on another device;  ∂x = ∂y, converted back.  Saves the device of x."""

    def forward(self, x: Array, *, dtype: np.dtype, device: str) -> Array:
        self.device = device_of(x)
        return cast(to_device(x, device), dtype)

    def backward(self, grad_output: Array) -> Array:
        return to_device(grad_output, self.device)  # the engine casts to the dtype of x
