"""L2: rounding to integers, and division with remainder. At jumps, gradients are those beside the jump."""

from typing import Any

import numpy as np

from minigrad.autograd.function import Function
from minigrad.backend import Array, array_module
from minigrad.backend.dtypes import is_floating
from minigrad.ops import checks


class Floor(Function):
    """y = ⌊x⌋;  ∂x = 0.  Integers are unchanged.  Saves nothing."""

    def forward(self, x: Array) -> Array:
        if x.dtype == bool:
            raise TypeError(f"{self.op_name.lower()}: needs numbers, got bool; convert first, as with x.float()")
        return self.rounded(x) if is_floating(x.dtype) else x.copy()

    def rounded(self, x: Array) -> Array:
        return array_module(x).floor(x)

    def backward(self, grad_output: Array) -> Array:
        return array_module(grad_output).zeros_like(grad_output)


class Ceil(Floor):
    """y = ⌈x⌉;  ∂x = 0.  Integers are unchanged.  Saves nothing."""

    def rounded(self, x: Array) -> Array:
        return array_module(x).ceil(x)


class Trunc(Floor):
    """y = x rounded towards 0;  ∂x = 0.  Integers are unchanged.  Saves nothing."""

    def rounded(self, x: Array) -> Array:
        return array_module(x).trunc(x)


class Round(Floor):
    """y = x rounded to the nearest integer, ties to even;  ∂x = 0.  Integers are unchanged.  Saves nothing."""

    def rounded(self, x: Array) -> Array:
        return array_module(x).rint(x)


class RoundDecimals(Function):
    """y = x rounded to a multiple of 10⁻ᵈ, d = `decimals`, ties to even;  ∂x = 0.  Saves nothing."""

    def forward(self, x: Array, *, decimals: int) -> Array:
        checks.floating(x, "round")
        scale, xp = 10.0 ** abs(decimals), array_module(x)
        return xp.rint(x * scale) / scale if decimals > 0 else xp.rint(x / scale) * scale

    def backward(self, grad_output: Array) -> Array:
        return array_module(grad_output).zeros_like(grad_output)


class Sign(Floor):
    """y = 1 where x > 0, -1 where x < 0, else 0 (also where x is NaN);  ∂x = 0.  Saves nothing."""

    def forward(self, x: Array) -> Array:
        return x.copy() if x.dtype == bool else (x > 0).astype(x.dtype) - (x < 0).astype(x.dtype)


class Remainder(Function):
    """y = a - b · ⌊a / b⌋, with the sign of b;  ∂a = ∂y,  ∂b = -∂y · ⌊a / b⌋.  Saves ⌊a / b⌋ if ∂b is wanted.

    Integers divided by 0 raise ZeroDivisionError (CPU only); floats give NaN.
    """

    def forward(self, a: Any, b: Any) -> Array:
        a, b = _arrays(a, b, "remainder")
        if not is_floating(a.dtype):
            return a % b
        r, below = _fmod(a, b)
        self.quotient = _quotient(a, b, r, below) if self.needs_input_grad[1] else None
        return array_module(r).where(below, r + b, r)

    def backward(self, grad_output: Array) -> tuple[Array, Array | None]:
        return grad_output, None if self.quotient is None else -grad_output * self.quotient


class Fmod(Remainder):
    """y = a - b · trunc(a / b), with the sign of a;  ∂a = ∂y,  ∂b = -∂y · trunc(a / b).  Saves trunc(a / b) if ∂b is
    wanted.  Division by 0 as in `Remainder`.
    """

    def forward(self, a: Any, b: Any) -> Array:
        a, b = _arrays(a, b, "fmod")
        xp = array_module(a)
        if not is_floating(a.dtype):
            y = a % b  # with the sign of b; CuPy's fmod is for floats
            return xp.where((y != 0) & ((a < 0) != (b < 0)), y - b, y)
        y = xp.fmod(a, b)
        self.quotient = xp.trunc(a / b) if self.needs_input_grad[1] else None
        return y


class FloorDivide(Function):
    """y = ⌊a / b⌋;  ∂a = ∂b = 0.  Saves nothing.

    Of the exact quotient: in floating point, 1 / 0.1 rounds to 10, but ⌊1 / 0.1⌋ is 9, as the float 0.1 is above 1/10.
    Integers divided by 0 raise ZeroDivisionError (CPU only); floats give ±∞ or NaN.
    """

    def forward(self, a: Any, b: Any) -> Array:
        a, b = _arrays(a, b, "floor_divide")
        return _quotient(a, b, *_fmod(a, b)) if is_floating(a.dtype) else a // b

    def backward(self, grad_output: Array) -> tuple[Array, Array | None]:
        zeros = array_module(grad_output).zeros_like(grad_output)
        return zeros, zeros.copy() if self.needs_input_grad[1] else None


class TruncDivide(FloorDivide):
    """y = a / b rounded towards 0;  ∂a = ∂b = 0.  Saves nothing.  Division by 0 as in `FloorDivide`."""

    def forward(self, a: Any, b: Any) -> Array:
        a, b = _arrays(a, b, "div")
        xp = array_module(a)
        if is_floating(a.dtype):
            return xp.trunc(a / b)
        y = a // b
        return y + ((y < 0) & (y * b != a)).astype(y.dtype)


def _arrays(a: Any, b: Any, op: str) -> tuple[Array, Array]:
    """The dividend and the divisor, promoted to one dtype, as arrays; a Python number becomes a 0-d array."""
    array = a if hasattr(a, "dtype") else b
    if array.dtype == bool:
        raise TypeError(f"{op}: needs numbers, got bool; convert first, as with x.float()")
    a, b = (x if hasattr(x, "dtype") else array_module(array).full((), x, array.dtype) for x in (a, b))
    if type(b) is np.ndarray and not is_floating(b.dtype) and (b == 0).any():
        raise ZeroDivisionError(f"{op}: integers divided by 0; convert first, as with x.float(), for inf and nan")
    return a, b


def _fmod(a: Array, b: Array) -> tuple[Array, Array]:
    """r = a - b · trunc(a / b), exactly, with the sign of a; and where r has to be increased by b, as the signs of r
    and b differ."""
    r = array_module(a).fmod(a, b)
    return r, (r != 0) & ((r < 0) != (b < 0))


def _quotient(a: Array, b: Array, r: Array, below: Array) -> Array:
    """⌊a / b⌋ from the results of `_fmod`: (a - r) / b is an integer up to rounding."""
    xp = array_module(a)
    return xp.where(b == 0, a / b, xp.rint((a - r) / b) - below)
