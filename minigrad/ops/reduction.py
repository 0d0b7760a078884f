"""L2: reductions, cumulative sums and products. `axis` of a reduction is None (all axes), an integer or a sequence."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from minigrad.autograd.function import Function
from minigrad.backend import Array, array_module
from minigrad.backend.dtypes import cast, is_floating
from minigrad.backend.sums import cumulative_product, cumulative_sum, deviations, mean_over, sum_over
from minigrad.ops import checks

Axis = int | Sequence[int] | None
"""As in PyTorch, both None and () mean all axes."""


class _Reduction(Function):
    """Base of the reductions: the reduced axes, and reshaping between x and the output."""

    axes: tuple[int, ...]
    shape: tuple[int, ...]
    keepdims: bool

    def set_axes(self, x: Array, axis: Axis, keepdims: bool) -> int:
        """Save the axes and the shape of x; return n, the number of values that are reduced to one."""
        axis = None if isinstance(axis, Sequence) and not axis else axis
        self.axes = checks.axes(axis, x.ndim, type(self).__name__.lower())
        self.shape, self.keepdims = x.shape, keepdims
        return prod(x.shape[a] for a in self.axes)

    def with_axes(self, reduced: Array) -> Array:
        """`reduced` with the reduced axes inserted again, of size 1, so that it broadcasts against x."""
        return reduced if self.keepdims else array_module(reduced).expand_dims(reduced, self.axes)

    def without_axes(self, reduced: Array) -> Array:
        """The inverse of `with_axes`: the reduced axes, of size 1, removed unless `keepdims`."""
        shape = [size for a, size in enumerate(self.shape) if a not in self.axes]
        return reduced if self.keepdims else reduced.reshape(shape)

    def broadcast(self, reduced: Array) -> Array:
        """`reduced` broadcast to the shape of x, a view."""
        return array_module(reduced).broadcast_to(self.with_axes(reduced), self.shape)


def sum_dtype(x: Array) -> Any:
    """The dtype of sums and products of x: int64 for integers and booleans (NumPy: uint64 for uint8), else x's own."""
    return x.dtype if is_floating(x.dtype) else np.int64


class Sum(_Reduction):
    """y = Σᵢ xᵢ;  ∂xᵢ = ∂y.  Saves nothing but the shape."""

    def forward(self, x: Array, *, axis: Axis, keepdims: bool) -> Array:
        self.set_axes(x, axis, keepdims)
        if not is_floating(x.dtype):
            return x.sum(axis=self.axes, dtype=np.int64, keepdims=keepdims)
        return sum_over(x, self.axes, keepdims)

    def backward(self, grad_output: Array) -> Array:
        return self.broadcast(grad_output)


class Mean(_Reduction):
    """y = 1/n · Σᵢ xᵢ;  ∂xᵢ = ∂y / n.  NaN for n = 0.  Saves nothing but the shape."""

    def forward(self, x: Array, *, axis: Axis, keepdims: bool) -> Array:
        checks.floating(x, "mean")
        self.n = self.set_axes(x, axis, keepdims) or float("nan")
        return mean_over(x, self.axes, keepdims)

    def backward(self, grad_output: Array) -> Array:
        return self.broadcast(grad_output / self.n)


class Var(_Reduction):
    """y = Σᵢ (xᵢ - μ)² / (n - c), c = `correction`;  ∂xᵢ = ∂y · 2 (xᵢ - μ) / (n - c).  NaN where n ≤ c.

    The dependence of μ on xᵢ contributes nothing, since Σⱼ (xⱼ - μ) = 0. The squares are added in float64.
    Saves x - μ.
    """

    def forward(self, x: Array, *, axis: Axis, keepdims: bool, correction: float) -> Array:
        checks.floating(x, "var")
        n = self.set_axes(x, axis, keepdims)
        divisor = n - correction if n > correction else float("nan")
        self.scale = 1 / divisor
        _, self.centred = deviations(x, self.axes)
        squares = array_module(x).square(self.centred, dtype=np.float64)
        return cast(sum_over(squares, self.axes, keepdims) / divisor, x.dtype)

    def backward(self, grad_output: Array) -> Array:
        return self.with_axes(grad_output * (2 * self.scale)) * self.centred


class Std(Var):
    """y = √v, v as in Var;  ∂x = ∂x of Var for ∂v = ∂y / 2y.  Saves y and x - μ.

    Where all values are equal, y is 0 and the derivative of √v infinite: there ∂x is 0, as in PyTorch.
    """

    def forward(self, x: Array, *, axis: Axis, keepdims: bool, correction: float) -> Array:
        self.y = array_module(x).sqrt(super().forward(x, axis=axis, keepdims=keepdims, correction=correction))
        return self.y

    def backward(self, grad_output: Array) -> Array:
        xp = array_module(grad_output)
        zero = self.y == 0
        return super().backward(xp.where(zero, 0, grad_output / xp.where(zero, 1, 2 * self.y)))


class Amax(_Reduction):
    """y = maxᵢ xᵢ;  ∂xᵢ = ∂y / k where xᵢ is one of the k values equal to y, else 0.  Saves x and y."""

    def forward(self, x: Array, *, axis: Axis, keepdims: bool) -> Array:
        n = self.set_axes(x, axis, keepdims)
        if n == 0:
            name = type(self).__name__.lower()
            raise ValueError(f"{name}: needs at least one value, but axes {self.axes} of shape {x.shape} are empty")
        self.x, self.y = x, self.extreme(x)
        return self.without_axes(self.y)

    def extreme(self, x: Array) -> Array:
        return x.max(axis=self.axes, keepdims=True)

    def backward(self, grad_output: Array) -> Array:
        is_extreme = (self.x == self.y).astype(grad_output.dtype)
        return self.with_axes(grad_output) / sum_over(is_extreme, self.axes, keepdims=True) * is_extreme


class Amin(Amax):
    """y = minᵢ xᵢ;  ∂xᵢ = ∂y / k where xᵢ is one of the k values equal to y, else 0.  Saves x and y."""

    def extreme(self, x: Array) -> Array:
        return x.min(axis=self.axes, keepdims=True)


class LogSumExp(_Reduction):
    """y = ln Σᵢ exp xᵢ = m + ln Σᵢ exp(xᵢ - m), with m = maxᵢ xᵢ to avoid overflow;  ∂xᵢ = ∂y · exp(xᵢ - y).

    Where all xᵢ are -∞, y is -∞ and ∂x is 0.  Saves exp(xᵢ - m) and its sum.
    """

    def forward(self, x: Array, *, axis: Axis, keepdims: bool) -> Array:
        checks.floating(x, "logsumexp")
        xp = array_module(x)
        n = self.set_axes(x, axis, keepdims)
        m = x.max(axis=self.axes, keepdims=True) if n else xp.zeros_like(x.sum(axis=self.axes, keepdims=True))
        m = xp.where(xp.isfinite(m), m, xp.zeros_like(m))
        self.exps = xp.exp(x - m)
        self.total = sum_over(self.exps, self.axes, keepdims=True)
        with np.errstate(divide="ignore"):
            return self.without_axes(m + xp.log(self.total))

    def backward(self, grad_output: Array) -> Array:
        xp = array_module(grad_output)
        return self.with_axes(grad_output) / xp.where(self.total == 0, 1, self.total) * self.exps


class Prod(_Reduction):
    """y = Πᵢ xᵢ;  ∂xᵢ = ∂y · Π_{j≠i} xⱼ.

    Π_{j≠i} xⱼ is computed as the product of the xⱼ before i times the product of the xⱼ after i: unlike y / xᵢ, this is
    correct where x has zeros.  Saves x.
    """

    def forward(self, x: Array, *, axis: Axis, keepdims: bool) -> Array:
        self.set_axes(x, axis, keepdims)
        self.x = x
        return x.prod(axis=self.axes, dtype=sum_dtype(x), keepdims=keepdims)

    def backward(self, grad_output: Array) -> Array:
        xp = array_module(grad_output)
        kept = [a for a in range(self.x.ndim) if a not in self.axes]
        order = [*kept, *self.axes]
        moved = self.x.transpose(order)  # the reduced axes last
        n = prod(moved.shape[len(kept) :])
        rows = moved.reshape([*moved.shape[: len(kept)], n])  # (..kept.., n)
        ones = xp.ones_like(rows[..., :1])
        before = xp.concatenate([ones, rows[..., : max(n - 1, 0)]], axis=-1)[..., :n].cumprod(axis=-1)
        after = xp.concatenate([ones, rows[..., :0:-1]], axis=-1)[..., :n].cumprod(axis=-1)[..., ::-1]
        others = (before * after).reshape(moved.shape).transpose([order.index(a) for a in range(self.x.ndim)])
        return self.with_axes(grad_output) * others


class CumSum(Function):
    """yᵢ = Σ_{j≤i} xⱼ along one axis;  ∂xⱼ = Σ_{i≥j} ∂yᵢ, a running sum from the end.  Saves nothing."""

    def forward(self, x: Array, *, axis: int) -> Array:
        self.axis = checks.one_axis(axis, x.ndim, "cumsum")
        return cumulative_sum(x.astype(sum_dtype(x), copy=False), self.axis) if x.ndim else x.astype(sum_dtype(x))

    def backward(self, grad_output: Array) -> Array:
        return _sum_from_the_end(grad_output, self.axis) if grad_output.ndim else grad_output


def _sum_from_the_end(x: Array, axis: int) -> Array:
    """yⱼ = Σ_{i≥j} xᵢ along `axis`."""
    xp = array_module(x)
    return xp.flip(cumulative_sum(xp.flip(x, axis), axis), axis)


class CumProd(Function):
    """yᵢ = Π_{j≤i} xⱼ along one axis;  ∂xⱼ = Σ_{i≥j} ∂yᵢ · Π_{k≤i,k≠j} xₖ.  Saves x and y.

    ∂xⱼ = Σ_{i≥j} ∂yᵢ yᵢ / xⱼ     before the first zero of x, as yᵢ / xⱼ is the product without xⱼ
    ∂xⱼ = Σ_{i≥j} ∂yᵢ zᵢ          at the first zero, z the cumulative product with 1 in its place
    ∂xⱼ = 0                       after the first zero, which is a factor of every product
    """

    def forward(self, x: Array, *, axis: int) -> Array:
        self.axis = checks.one_axis(axis, x.ndim, "cumprod")
        x = x.astype(sum_dtype(x), copy=False)
        self.x, self.y = x, cumulative_product(x, self.axis) if x.ndim else x.copy()
        return self.y

    def backward(self, grad_output: Array) -> Array:
        if not grad_output.ndim:
            return grad_output
        x, axis, xp = self.x, self.axis, array_module(grad_output)
        is_zero = x == 0
        zeros = is_zero.astype(np.int64).cumsum(axis=axis)
        first = is_zero & (zeros == 1)
        z = cumulative_product(xp.where(first, 1, x), axis)
        before = _sum_from_the_end(grad_output * self.y, axis) / xp.where(is_zero, 1, x)
        return xp.where(zeros == 0, before, xp.where(first, _sum_from_the_end(grad_output * z, axis), 0))


class Norm(_Reduction):
    """y = (Σᵢ |xᵢ|ᵖ)^(1/p), p finite and not 0;  ∂xᵢ = ∂y · sign xᵢ · (|xᵢ| / y)ᵖ⁻¹.  Saves x and y.

    Where y is 0, ∂x is 0; for p < 1, also where xᵢ is 0 (there the derivative is infinite).
    """

    def forward(self, x: Array, *, p: float, axis: Axis, keepdims: bool) -> Array:
        checks.floating(x, "norm")
        self.set_axes(x, axis, keepdims)
        xp = array_module(x)
        powers = x * x if p == 2 else abs(x) if p == 1 else abs(x) ** p
        total = sum_over(powers, self.axes, keepdims=True)
        self.x, self.p, self.y = x, p, xp.sqrt(total) if p == 2 else total if p == 1 else total ** (1 / p)
        return self.without_axes(self.y)

    def backward(self, grad_output: Array) -> Array:
        xp, x, p = array_module(grad_output), self.x, self.p
        grad = xp.where(self.y == 0, 0, self.with_axes(grad_output))
        y = xp.where(self.y == 0, 1, self.y)
        if p == 2:
            return x * (grad / y)
        grad_x = grad * xp.sign(x)
        return grad_x if p == 1 else grad_x * (xp.where(x == 0, 1, abs(x)) / y) ** (p - 1)
