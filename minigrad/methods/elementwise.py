"""L3: elementwise methods of Tensor."""

from math import pi
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad.backend.dtypes import finfo
from minigrad.methods.base import Number, TensorBase, raw, raw_array
from minigrad.methods.shapes import Shapes
from minigrad.ops import activation, checks, indexing, rounding
from minigrad.ops import elementwise as pointwise

if TYPE_CHECKING:
    from minigrad.methods.base import Tensor


class Elementwise(Shapes):
    """Functions of each element."""

    __slots__ = ()

    def exp(self) -> "Tensor":
        """y = eˣ, elementwise. Integers give float32."""
        return self.apply(pointwise.Exp, self)

    def expm1(self) -> "Tensor":
        """y = eˣ - 1, elementwise, accurate near x = 0. Integers give float32."""
        return self.apply(pointwise.Expm1, self)

    def log(self) -> "Tensor":
        """y = ln x, the natural logarithm, elementwise. Integers give float32."""
        return self.apply(pointwise.Log, self)

    def log1p(self) -> "Tensor":
        """y = ln(1 + x), elementwise, accurate near x = 0. Integers give float32."""
        return self.apply(pointwise.Log1p, self)

    def sin(self) -> "Tensor":
        """y = sin x, elementwise. Integers give float32."""
        return self.apply(pointwise.Sin, self)

    def cos(self) -> "Tensor":
        """y = cos x, elementwise. Integers give float32."""
        return self.apply(pointwise.Cos, self)

    def tan(self) -> "Tensor":
        """y = tan x, elementwise. Integers give float32."""
        return self.apply(pointwise.Tan, self)

    def asin(self) -> "Tensor":
        """y = arcsin x, elementwise. Integers give float32."""
        return self.apply(pointwise.Asin, self)

    def acos(self) -> "Tensor":
        """y = arccos x, elementwise. Integers give float32."""
        return self.apply(pointwise.Acos, self)

    def atan(self) -> "Tensor":
        """y = arctan x, elementwise. Integers give float32."""
        return self.apply(pointwise.Atan, self)

    def atan2(self, other: Any) -> "Tensor":
        """y = the angle of the point (`other`, x), from -π to π, elementwise. Integers give float32."""
        return self.apply(pointwise.Atan2, self, other)

    def sinh(self) -> "Tensor":
        """y = sinh x, elementwise. Integers give float32."""
        return self.apply(pointwise.Sinh, self)

    def cosh(self) -> "Tensor":
        """y = cosh x, elementwise. Integers give float32."""
        return self.apply(pointwise.Cosh, self)

    def log2(self) -> "Tensor":
        """y = log₂ x, elementwise. Integers give float32."""
        return self.apply(pointwise.Log2, self)

    def log10(self) -> "Tensor":
        """y = log₁₀ x, elementwise. Integers give float32."""
        return self.apply(pointwise.Log10, self)

    def exp2(self) -> "Tensor":
        """y = 2ˣ, elementwise. Integers give float32."""
        return 2.0**self

    arcsin, arccos, arctan, arctan2 = asin, acos, atan, atan2

    def square(self) -> "Tensor":
        """y = x², elementwise."""
        return self**2

    def reciprocal(self) -> "Tensor":
        """y = 1 / x, elementwise. Integers give float32."""
        return 1 / self

    def deg2rad(self) -> "Tensor":
        """y = x · π / 180, elementwise."""
        return self * (pi / 180)

    def rad2deg(self) -> "Tensor":
        """y = x · 180 / π, elementwise."""
        return self * (180 / pi)

    def logit(self, eps: float | None = None) -> "Tensor":
        """y = ln(x / (1 - x)), elementwise; eps: x is limited to the range from eps to 1 - eps."""
        x = self if eps is None else self.clamp(eps, 1 - eps)
        return (x / (1 - x)).log()

    def sqrt(self) -> "Tensor":
        """y = √x, elementwise. Integers give float32."""
        return self.apply(pointwise.Sqrt, self)

    def rsqrt(self) -> "Tensor":
        """y = 1 / √x, elementwise. Integers give float32."""
        return self.apply(pointwise.Rsqrt, self)

    def tanh(self) -> "Tensor":
        """y = tanh x, elementwise. Integers give float32."""
        return self.apply(pointwise.Tanh, self)

    def sigmoid(self) -> "Tensor":
        """y = 1 / (1 + e⁻ˣ), elementwise. Integers give float32."""
        return self.apply(pointwise.Sigmoid, self)

    def erf(self) -> "Tensor":
        """The error function y = 2/√π · ∫₀ˣ exp(-t²) dt, elementwise. Integers give float32."""
        return self.apply(pointwise.Erf, self)

    def relu(self) -> "Tensor":
        """y = max(x, 0), elementwise."""
        return self.apply(activation.ReLU, self)

    def floor(self) -> "Tensor":
        """y = ⌊x⌋, elementwise, with gradient 0."""
        return self.apply(rounding.Floor, self)

    def ceil(self) -> "Tensor":
        """y = ⌈x⌉, elementwise, with gradient 0."""
        return self.apply(rounding.Ceil, self)

    def trunc(self) -> "Tensor":
        """y = x rounded towards 0, elementwise, with gradient 0."""
        return self.apply(rounding.Trunc, self)

    def round(self, *, decimals: int = 0) -> "Tensor":
        """y = x rounded to `decimals` decimal places, ties to even, elementwise, with gradient 0."""
        decimals = checks.integer(decimals, "decimals", "round")
        if decimals:
            return self.apply(rounding.RoundDecimals, self, decimals=decimals)
        return self.apply(rounding.Round, self)

    def frac(self) -> "Tensor":
        """y = x - `trunc(x)`, elementwise."""
        return self - self.trunc()

    def sign(self) -> "Tensor":
        """y = 1, 0 or -1, elementwise, with gradient 0; 0 for NaN."""
        return self.apply(rounding.Sign, self)

    fix, sgn = trunc, sign

    def lerp(self, end: Any, weight: Any) -> "Tensor":
        """y = x + `weight` · (`end` - x), elementwise: exactly `end` for weight 1. Floating-point only."""
        checks.floating(self, "lerp")
        step = end - self
        if isinstance(weight, int | float):
            return self + step * weight if abs(weight) < 0.5 else end - step * (1 - weight)
        near = self.constant(abs(raw(weight)) < 0.5)
        return self.apply(pointwise.Where, near, self + weight * step, end - step * (1 - weight))

    def maximum(self, other: Any) -> "Tensor":
        """y = max(x, other), elementwise; NaN if either is NaN. Equal elements share the gradient."""
        return self.apply(pointwise.Maximum, self, other)

    def minimum(self, other: Any) -> "Tensor":
        """y = min(x, other), elementwise; NaN if either is NaN. Equal elements share the gradient."""
        return self.apply(pointwise.Minimum, self, other)

    def clamp(self, min: "Number | Tensor | None" = None, max: "Number | Tensor | None" = None) -> "Tensor":
        """y = min(max(x, `min`), `max`), elementwise. None: no limit; give `min`, `max` or both.

        A limit is a number, or a tensor that broadcasts: it has the gradient where y is the limit, but not x. NaN in a
        limit gives NaN.
        """
        if not isinstance(min, TensorBase) and not isinstance(max, TensorBase):
            return self.apply(pointwise.Clamp, self, min=min, max=max)
        y: Any = self
        if min is not None:
            y = self.apply(pointwise.Where, (y < min) | (min != min), min, y)
        if max is not None:
            y = self.apply(pointwise.Where, (y > max) | (max != max), max, y)
        return y

    clip = clamp

    def clamp_min(self, min: Any) -> "Tensor":
        """`clamp(min=min)`."""
        return self.clamp(min=min)

    def clamp_max(self, max: Any) -> "Tensor":
        """`clamp(max=max)`."""
        return self.clamp(max=max)

    def addcmul(self, tensor1: Any, tensor2: Any, *, value: Number = 1) -> "Tensor":
        """y = x + `value` · tensor1 · tensor2, elementwise."""
        return self + tensor1 * tensor2 * value

    def addcdiv(self, tensor1: Any, tensor2: Any, *, value: Number = 1) -> "Tensor":
        """y = x + `value` · tensor1 / tensor2, elementwise."""
        return self + tensor1 / tensor2 * value

    def where(self, condition: "Tensor", other: Any) -> "Tensor":
        """y = x where `condition` (bool, broadcasts) is True, else `other`, elementwise."""
        return self.apply(pointwise.Where, condition, self, other)

    def nan_to_num(self, nan: Number = 0.0, posinf: Number | None = None, neginf: Number | None = None) -> "Tensor":
        """y = x, with NaN and ±∞ replaced by these numbers; None: the largest or lowest finite value of the dtype."""
        if not self.is_floating_point():
            return self.clone()
        high = float(finfo(self.dtype).max)
        x = self.masked_fill(self != self, nan)
        x = x.masked_fill(self == np.inf, high if posinf is None else posinf)
        return x.masked_fill(self == -np.inf, -high if neginf is None else neginf)

    def masked_fill(self, mask: Any, value: "Number | Tensor") -> "Tensor":
        """y = `value` where `mask` (bool, broadcasts) is True, else x.

        The dtype of x must hold a number; a Tensor `value` promotes the dtype.
        """
        if isinstance(value, TensorBase):  # Where has a gradient for the value
            return self.apply(pointwise.Where, raw(mask), value, self)
        return self.apply(indexing.MaskedFill, self, mask=raw_array(mask, "mask", "masked_fill"), value=value)
