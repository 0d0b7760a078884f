"""L3: in-place methods of Tensor: `x.add_(y)` changes x itself, and returns x. The rules are those of `x += y`."""

from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad.backend import array_module
from minigrad.backend.dtypes import cast, finfo, is_floating
from minigrad.backend.random import Generator, default_generator
from minigrad.methods.base import Number
from minigrad.methods.products import Products
from minigrad.ops import checks
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
        checks.ordered(from_, to, "uniform_")
        u = (generator or default_generator()).uniform(self.shape, self.dtype, self.device)
        return self._in_place("uniform_", lambda x: x.constant(u) * (to - from_) + from_)

    def normal_(self, mean: Number = 0, std: Number = 1, generator: Generator | None = None) -> "Tensor":
        """x ← random values of a normal distribution."""
        checks.not_negative(std, "std", "normal_")
        z = (generator or default_generator()).normal(self.shape, self.dtype, self.device)
        return self._in_place("normal_", lambda x: x.constant(z) * std + mean)

    def random_(
        self, from_: int | None = None, to: int | None = None, *, generator: Generator | None = None
    ) -> "Tensor":
        """x ← uniform integers from `from_` to `to` - 1; `random_(to)`: from 0.

        By default, `to` is the number of integers from 0 on that the dtype represents exactly, at most 2**53.
        """
        low, high = (0, from_) if to is None else (from_ or 0, to)
        high = _integers(self.dtype) if high is None else high
        for bound in (low, high - 1):
            checks.entry(bound, self.dtype, "random_")
        values = (generator or default_generator()).integers(low, high, self.shape, self.device)
        return self._in_place("random_", lambda x: x.constant(cast(values, x.dtype)))

    def bernoulli_(self, p: float = 0.5, *, generator: Generator | None = None) -> "Tensor":
        """x ← 1 with probability `p`, else 0."""
        checks.probability(p, "bernoulli_")
        u = (generator or default_generator()).uniform(self.shape, np.float32, self.device)
        return self._in_place("bernoulli_", lambda x: x.constant((u < p).astype(x.dtype)))

    def lerp_(self, end: Any, weight: Any) -> "Tensor":
        """x ← x + `weight` · (`end` - x)."""
        return self._in_place("lerp_", lambda x: x.lerp(end, weight))

    def addcmul_(self, tensor1: Any, tensor2: Any, *, value: Number = 1) -> "Tensor":
        """x ← x + `value` · tensor1 · tensor2."""
        return self._in_place("addcmul_", lambda x: x.addcmul(tensor1, tensor2, value=value))

    def addcdiv_(self, tensor1: Any, tensor2: Any, *, value: Number = 1) -> "Tensor":
        """x ← x + `value` · tensor1 / tensor2."""
        return self._in_place("addcdiv_", lambda x: x.addcdiv(tensor1, tensor2, value=value))

    def scatter_(self, dim: int, index: Any, src: Any) -> "Tensor":
        """x ← `scatter`."""
        return self._in_place("scatter_", lambda x: x.scatter(dim, index, src))

    def scatter_add_(self, dim: int, index: Any, src: "Tensor") -> "Tensor":
        """x ← `scatter_add`."""
        return self._in_place("scatter_add_", lambda x: x.scatter_add(dim, index, src))

    def index_add_(self, dim: int, index: Any, source: "Tensor", *, alpha: Number = 1) -> "Tensor":
        """x ← `index_add`."""
        return self._in_place("index_add_", lambda x: x.index_add(dim, index, source, alpha=alpha))

    def index_copy_(self, dim: int, index: Any, source: "Tensor") -> "Tensor":
        """x ← `index_copy`."""
        return self._in_place("index_copy_", lambda x: x.index_copy(dim, index, source))

    def index_fill_(self, dim: int, index: Any, value: Any) -> "Tensor":
        """x ← `index_fill`."""
        return self._in_place("index_fill_", lambda x: x.index_fill(dim, index, value))

    def index_put_(self, indices: Any, values: Any, accumulate: bool = False) -> "Tensor":
        """`x[indices] = values`; with `accumulate`, add each value, so that values of equal indices are summed."""
        if accumulate:
            places = array_module(self.data).arange(self.numel()).reshape(self.shape)  # of elements in x.reshape(-1)
            at = self.constant(places)[tuple(indices)]
            source = values.expand(at.shape).reshape(-1)
            return self._in_place(
                "index_put_", lambda x: x.reshape(-1).index_add(0, at.reshape(-1), source).reshape(x.shape)
            )
        self[tuple(indices)] = values  # type: ignore[index]
        return self  # type: ignore[return-value]

    def fill_diagonal_(self, fill_value: Number) -> "Tensor":
        """x ← `fill_value` on the main diagonal of a matrix."""
        xp = array_module(self.data)
        return self._in_place("fill_diagonal_", lambda x: x.masked_fill(xp.eye(*x.shape, dtype=bool), fill_value))

    def relu_(self) -> "Tensor":
        """x ← max(x, 0)."""
        return self._in_place("relu_", lambda x: x.relu())

    def floor_(self) -> "Tensor":
        """x ← ⌊x⌋."""
        return self._in_place("floor_", lambda x: x.floor())

    def ceil_(self) -> "Tensor":
        """x ← ⌈x⌉."""
        return self._in_place("ceil_", lambda x: x.ceil())

    def round_(self) -> "Tensor":
        """x ← x rounded to integers, ties to even."""
        return self._in_place("round_", lambda x: x.round())

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


def _integers(dtype: np.dtype) -> int:
    """The number of integers 0, 1, .. that the dtype represents exactly, at most 2**53."""
    if dtype.kind == "b":
        return 2
    largest = 2 ** (finfo(dtype).nmant + 1) if is_floating(dtype) else int(np.iinfo(dtype).max)
    return min(1 + largest, 2**53)
