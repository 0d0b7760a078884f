"""L3: in-place methods of Tensor: `x.add_(y)` changes x itself, and returns x. The rules are those of `x += y`."""

from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad.backend import array_module
from minigrad.backend.random import Generator, default_generator
from minigrad.methods.base import Number
from minigrad.methods.products import Products
from minigrad.ops import elementwise as pointwise

if TYPE_CHECKING:
    from minigrad.methods.base import Tensor


class InPlace(Products):
    """The methods whose names end with an underscore.

    Raises:
        RuntimeError: x is a leaf that requires a gradient, outside `no_grad()`; the result has another shape or a dtype
            of a higher category (bool < integers < floating point); or several elements of x share memory.
    """

    __slots__ = ()

    def add_(self, other: Any, *, alpha: Number = 1) -> "Tensor":
        """x ← x + alpha · other."""
        return self._in_place("add_", lambda x: x + (other if alpha == 1 else other * alpha))

    def sub_(self, other: Any, *, alpha: Number = 1) -> "Tensor":
        """x ← x - alpha · other."""
        return self._in_place("sub_", lambda x: x - (other if alpha == 1 else other * alpha))

    def mul_(self, other: Any) -> "Tensor":
        """x ← x · other."""
        return self._in_place("mul_", lambda x: x * other)

    def div_(self, other: Any) -> "Tensor":
        """x ← x / other."""
        return self._in_place("div_", lambda x: x / other)

    def pow_(self, exponent: Any) -> "Tensor":
        """x ← x ** exponent."""
        return self._in_place("pow_", lambda x: x**exponent)

    def clamp_(self, min: Any = None, max: Any = None) -> "Tensor":
        """x ← x limited to the range from `min` to `max`."""
        return self._in_place("clamp_", lambda x: x.clamp(min, max))

    clip_ = clamp_

    def masked_fill_(self, mask: Any, value: Any) -> "Tensor":
        """x ← `value` where `mask` is True."""
        return self._in_place("masked_fill_", lambda x: x.masked_fill(mask, value))

    def copy_(self, src: Any) -> "Tensor":
        """x ← src, broadcast to the shape of x and cast to its dtype."""
        src = src.to(self.dtype).to(self.device) if hasattr(src, "to") else src
        everywhere = array_module(self.data).ones((), np.bool_)
        return self._in_place("copy_", lambda x: x.apply(pointwise.Where, everywhere, src, x))

    def fill_(self, value: Any) -> "Tensor":
        """x ← value, everywhere."""
        everywhere = array_module(self.data).ones((), np.bool_)
        return self._in_place("fill_", lambda x: x.masked_fill(everywhere, value))

    def zero_(self) -> "Tensor":
        """x ← 0."""
        return self.fill_(0)

    def uniform_(self, from_: Number = 0, to: Number = 1, generator: Generator | None = None) -> "Tensor":
        """x ← random values, uniform in [from_, to)."""
        u = (generator or default_generator()).uniform(self.shape, self.dtype, self.device)
        return self._in_place("uniform_", lambda x: x.constant(u) * (to - from_) + from_)

    def normal_(self, mean: Number = 0, std: Number = 1, generator: Generator | None = None) -> "Tensor":
        """x ← random values of a normal distribution."""
        z = (generator or default_generator()).normal(self.shape, self.dtype, self.device)
        return self._in_place("normal_", lambda x: x.constant(z) * std + mean)

    def abs_(self) -> "Tensor":
        """x ← |x|."""
        return self._in_place("abs_", lambda x: x.abs())

    def neg_(self) -> "Tensor":
        """x ← -x."""
        return self._in_place("neg_", lambda x: -x)

    def exp_(self) -> "Tensor":
        """x ← eˣ."""
        return self._in_place("exp_", lambda x: x.exp())

    def log_(self) -> "Tensor":
        """x ← ln x."""
        return self._in_place("log_", lambda x: x.log())

    def sqrt_(self) -> "Tensor":
        """x ← √x."""
        return self._in_place("sqrt_", lambda x: x.sqrt())

    def sigmoid_(self) -> "Tensor":
        """x ← 1 / (1 + e⁻ˣ)."""
        return self._in_place("sigmoid_", lambda x: x.sigmoid())

    def tanh_(self) -> "Tensor":
        """x ← tanh x."""
        return self._in_place("tanh_", lambda x: x.tanh())
