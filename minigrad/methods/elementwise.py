"""L3: elementwise methods of Tensor."""

from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad.methods.base import Number, TensorBase, raw, raw_array
from minigrad.methods.shapes import Shapes
from minigrad.ops import elementwise as pointwise
from minigrad.ops import indexing

if TYPE_CHECKING:
    from minigrad.methods.base import Tensor


class Elementwise(Shapes):
    """Functions of each element."""

    __slots__ = ()

    def exp(self) -> "Tensor":
        """y = eˣ, elementwise. Integers give float32."""
        return self.apply(pointwise.Exp, self)

    def log(self) -> "Tensor":
        """y = ln x, the natural logarithm, elementwise. Integers give float32."""
        return self.apply(pointwise.Log, self)

    def sqrt(self) -> "Tensor":
        """y = √x, elementwise. Integers give float32."""
        return self.apply(pointwise.Sqrt, self)

    def tanh(self) -> "Tensor":
        """y = tanh x, elementwise. Integers give float32."""
        return self.apply(pointwise.Tanh, self)

    def sigmoid(self) -> "Tensor":
        """y = 1 / (1 + e⁻ˣ), elementwise. Integers give float32."""
        return self.apply(pointwise.Sigmoid, self)

    def erf(self) -> "Tensor":
        """The error function y = 2/√π · ∫₀ˣ exp(-t²) dt, elementwise. Integers give float32."""
        return self.apply(pointwise.Erf, self)

    def maximum(self, other: Any) -> "Tensor":
        """y = max(x, other), elementwise; NaN if either is NaN. Equal elements share the gradient."""
        return self.apply(pointwise.Maximum, self, other)

    def minimum(self, other: Any) -> "Tensor":
        """y = min(x, other), elementwise; NaN if either is NaN. Equal elements share the gradient."""
        return self.apply(pointwise.Minimum, self, other)

    def clamp(self, min: Number | None = None, max: Number | None = None) -> "Tensor":
        """y = min(max(x, `min`), `max`), elementwise. None: no limit; give `min`, `max` or both."""
        if isinstance(min, TensorBase) or isinstance(max, TensorBase):
            raise TypeError("clamp: min and max must be numbers; for tensors write x.maximum(low).minimum(high)")
        return self.apply(pointwise.Clamp, self, min=min, max=max)

    def masked_fill(self, mask: Any, value: "Number | Tensor") -> "Tensor":
        """y = `value` where `mask` (bool, broadcasts) is True, else x.

        The dtype of x must hold a number; a Tensor `value` promotes the dtype.
        """
        if isinstance(value, TensorBase):  # Where has a gradient for the value
            return self.apply(pointwise.Where, raw(mask), value, self)
        return self.apply(indexing.MaskedFill, self, mask=raw_array(mask, "mask", "masked_fill"), value=value)

    def isfinite(self) -> "Tensor":
        """True where an element is neither infinite nor NaN, as bool."""
        return self.constant(abs(self.data) < np.inf)
