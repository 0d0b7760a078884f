"""L2: ops that fold an axis: sums, means, variances, maxima, products. `axis` is None (all), a number or several."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from minigrad.autograd.function import Function
from minigrad.backend import Array, array_module
from minigrad.backend.dtypes import cast, is_floating
from minigrad.backend.sums import cumulative_sum, deviations, mean_over, sum_over
from minigrad.ops import checks

Axis = int | Sequence[int] | None
"""None and () both name all axes, as in PyTorch."""


class _Reduction(Function):
    """What the ops here share: which axes go, and how a reduced array is stretched over them again."""

    axes: tuple[int, ...]
    shape: tuple[int, ...]
    keepdims: bool

    def reduces(self, x: Array, axis: Axis, keepdims: bool) -> int:
        """Note the axes and the shape; the number of values that are folded into one."""
        named = None if isinstance(axis, Sequence) and not axis else axis
        self.axes = checks.axes(named, x.ndim, type(self).__name__.lower())
        self.shape, self.keepdims = x.shape, keepdims
        return prod(x.shape[a] for a in self.axes)

    def lifted(self, reduced: Array) -> Array:
        """`reduced` with its axes of size 1 back in place, so that it broadcasts against x."""
        return reduced if self.keepdims else array_module(reduced).expand_dims(reduced, self.axes)

    def lowered(self, reduced: Array) -> Array:
        """The opposite of `lifted`: `reduced`, which has the folded axes in size 1, as the caller wants it."""
        kept = [size for a, size in enumerate(self.shape) if a not in self.axes]
        return reduced if self.keepdims else reduced.reshape(kept)

    def stretched(self, reduced: Array) -> Array:
        """`reduced` repeated over the axes that were folded: a view of the shape of x."""
        return array_module(reduced).broadcast_to(self.lifted(reduced), self.shape)


def sum_dtype(x: Array) -> Any:
    """What sums and products of x are held in: int64 for all integers and booleans (NumPy has uint64 for uint8)."""
    return x.dtype if is_floating(x.dtype) else np.int64


class Sum(_Reduction):
    """y = Σᵢ xᵢ;  ∂xᵢ = ∂y.  Saves nothing but the shape."""

    def forward(self, x: Array, *, axis: Axis, keepdims: bool) -> Array:
        self.reduces(x, axis, keepdims)
        if not is_floating(x.dtype):
            return x.sum(axis=self.axes, dtype=np.int64, keepdims=keepdims)
        return sum_over(x, self.axes, keepdims)

    def backward(self, grad_output: Array) -> Array:
        return self.stretched(grad_output)


class Mean(_Reduction):
    """y = 1/n · Σᵢ xᵢ;  ∂xᵢ = ∂y / n.  Of no values: NaN.  Saves nothing but the shape."""

    def forward(self, x: Array, *, axis: Axis, keepdims: bool) -> Array:
        checks.floating(x, "mean")
        self.n = self.reduces(x, axis, keepdims) or float("nan")
        return mean_over(x, self.axes, keepdims)

    def backward(self, grad_output: Array) -> Array:
        return self.stretched(grad_output / self.n)


class Var(_Reduction):
    """y = Σᵢ (xᵢ - μ)² / (n - c), c = `correction`;  ∂xᵢ = ∂y · 2 (xᵢ - μ) / (n - c).  NaN where n ≤ c.

    The mean's own dependence on xᵢ drops out, since Σⱼ (xⱼ - μ) = 0. The squares are added in float64.  Saves x - μ.
    """

    def forward(self, x: Array, *, axis: Axis, keepdims: bool, correction: float) -> Array:
        checks.floating(x, "var")
        n = self.reduces(x, axis, keepdims)
        divisor = n - correction if n > correction else float("nan")
        self.scale = 1 / divisor
        _, self.centred = deviations(x, self.axes)
        squares = array_module(x).square(self.centred, dtype=np.float64)
        return cast(sum_over(squares, self.axes, keepdims) / divisor, x.dtype)

    def backward(self, grad_output: Array) -> Array:
        return self.lifted(grad_output * (2 * self.scale)) * self.centred


class Std(Var):
    """y = √v, v as in Var;  ∂x = ∂x of Var for ∂v = ∂y / 2y.  Saves y besides what Var saves.

    Where all values are equal, y is 0 and the root infinitely steep: ∂x is set to 0 there, as in PyTorch.
    """

    def forward(self, x: Array, *, axis: Axis, keepdims: bool, correction: float) -> Array:
        self.y = array_module(x).sqrt(super().forward(x, axis=axis, keepdims=keepdims, correction=correction))
        return self.y

    def backward(self, grad_output: Array) -> Array:
        xp = array_module(grad_output)
        flat = self.y == 0
        return super().backward(xp.where(flat, 0, grad_output / xp.where(flat, 1, 2 * self.y)))


class Amax(_Reduction):
    """y = maxᵢ xᵢ;  ∂xᵢ = ∂y / k where xᵢ is one of the k values equal to y, else 0.  Saves x and y."""

    def forward(self, x: Array, *, axis: Axis, keepdims: bool) -> Array:
        n = self.reduces(x, axis, keepdims)
        if n == 0:
            name = type(self).__name__.lower()
            raise ValueError(f"{name}: no extreme value among none: axes {self.axes} of shape {x.shape} are empty")
        self.x, self.y = x, self.extreme(x)
        return self.lowered(self.y)

    def extreme(self, x: Array) -> Array:
        return x.max(axis=self.axes, keepdims=True)

    def backward(self, grad_output: Array) -> Array:
        reached = (self.x == self.y).astype(grad_output.dtype)
        return self.lifted(grad_output) / sum_over(reached, self.axes, keepdims=True) * reached


class Amin(Amax):
    """y = minᵢ xᵢ;  the gradient as in Amax."""

    def extreme(self, x: Array) -> Array:
        return x.min(axis=self.axes, keepdims=True)


class LogSumExp(_Reduction):
    """y = ln Σᵢ exp xᵢ = m + ln Σᵢ exp(xᵢ - m), with m = maxᵢ xᵢ against overflow;  ∂xᵢ = ∂y · exp(xᵢ - y).

    Where all xᵢ are -∞, y is -∞ and ∂x is 0.  Saves exp(xᵢ - m) and its sum.
    """

    def forward(self, x: Array, *, axis: Axis, keepdims: bool) -> Array:
        checks.floating(x, "logsumexp")
        xp = array_module(x)
        n = self.reduces(x, axis, keepdims)
        m = x.max(axis=self.axes, keepdims=True) if n else xp.zeros_like(x.sum(axis=self.axes, keepdims=True))
        m = xp.where(xp.isfinite(m), m, xp.zeros_like(m))
        self.share = xp.exp(x - m)
        self.total = sum_over(self.share, self.axes, keepdims=True)
        with np.errstate(divide="ignore"):
            return self.lowered(m + xp.log(self.total))

    def backward(self, grad_output: Array) -> Array:
        xp = array_module(grad_output)
        return self.lifted(grad_output) / xp.where(self.total == 0, 1, self.total) * self.share


class Prod(_Reduction):
    """y = Πᵢ xᵢ;  ∂xᵢ = ∂y · Π_{j≠i} xⱼ.

    The product of the others is the product of those before i and of those behind: right even where x has zeros,
    where y / xᵢ is not.  Saves x.
    """

    def forward(self, x: Array, *, axis: Axis, keepdims: bool) -> Array:
        self.reduces(x, axis, keepdims)
        self.x = x
        return x.prod(axis=self.axes, dtype=sum_dtype(x), keepdims=keepdims)

    def backward(self, grad_output: Array) -> Array:
        xp = array_module(grad_output)
        kept = [a for a in range(self.x.ndim) if a not in self.axes]
        n = prod(self.x.shape[a] for a in self.axes)
        rows = self.x.transpose(*kept, *self.axes).reshape([self.x.shape[a] for a in kept] + [n])  # (..kept.., n)
        ones = xp.ones_like(rows[..., :1])
        before = xp.concatenate([ones, rows[..., : max(n - 1, 0)]], axis=-1)[..., :n].cumprod(axis=-1)
        behind = xp.concatenate([ones, rows[..., :0:-1]], axis=-1)[..., :n].cumprod(axis=-1)[..., ::-1]
        others = (before * behind).reshape([self.x.shape[a] for a in (*kept, *self.axes)])
        order = [(*kept, *self.axes).index(a) for a in range(self.x.ndim)]  # (..kept.., ..axes..) -> the axes of x
        return self.lifted(grad_output) * others.transpose(order)


class CumSum(Function):
    """yᵢ = Σ_{j≤i} xⱼ along one axis;  ∂xⱼ = Σ_{i≥j} ∂yᵢ, a running sum from the end.  Saves nothing."""

    def forward(self, x: Array, *, axis: int) -> Array:
        self.axis = checks.one_axis(axis, x.ndim, "cumsum")
        return cumulative_sum(x.astype(sum_dtype(x), copy=False), self.axis) if x.ndim else x.astype(sum_dtype(x))

    def backward(self, grad_output: Array) -> Array:
        if not grad_output.ndim:
            return grad_output
        xp = array_module(grad_output)
        return xp.flip(cumulative_sum(xp.flip(grad_output, self.axis), self.axis), self.axis)
