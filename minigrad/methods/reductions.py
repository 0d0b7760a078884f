"""L3: methods of Tensor that reduce or scan axes."""

from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad.methods.base import Dim, Number, numpy_names
from minigrad.methods.logic import Logic
from minigrad.ops import activation, checks, reduction

if TYPE_CHECKING:
    from minigrad.methods.base import Tensor


class Reductions(Logic):
    """Sums, means, extrema, products."""

    __slots__ = ()

    @numpy_names
    def sum(self, dim: Dim = None, keepdim: bool = False, *, dtype: Any = None) -> "Tensor":
        """The sum over `dim`: one axis, several, or all (None). Integers and booleans are summed in int64.

        keepdim: keep the reduced axes with size 1. dtype: convert x first.
        """
        return self.apply(reduction.Sum, self._as(dtype), axis=dim, keepdims=keepdim)

    @numpy_names
    def mean(self, dim: Dim = None, keepdim: bool = False, *, dtype: Any = None) -> "Tensor":
        """The mean over `dim`, as in `sum`; NaN if there are no elements. Floating-point only."""
        return self.apply(reduction.Mean, self._as(dtype), axis=dim, keepdims=keepdim)

    @numpy_names
    def var(
        self, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *, correction: Number | None = None
    ) -> "Tensor":
        """The variance over `dim`, as in `sum`: Σ (xᵢ - μ)² / (n - correction), μ the mean; NaN if n ≤ correction.

        Floating-point only. The default correction is 1 in PyTorch, 0 in NumPy. unbiased, PyTorch's older argument,
        is a correction of 1 or 0, as in `x.var(False)` and `x.var(0, False)`.
        """
        dim, correction = _correction(dim, unbiased, correction)
        return self.apply(reduction.Var, self, axis=dim, keepdims=keepdim, correction=correction)

    @numpy_names
    def std(
        self, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *, correction: Number | None = None
    ) -> "Tensor":
        """The standard deviation over `dim`: the square root of `var`, with the same arguments."""
        dim, correction = _correction(dim, unbiased, correction)
        return self.apply(reduction.Std, self, axis=dim, keepdims=keepdim, correction=correction)

    @numpy_names
    def var_mean(
        self, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *, correction: Number | None = None
    ) -> tuple["Tensor", "Tensor"]:
        """(`var`, `mean`), with the arguments of `var`."""
        axes, correction = _correction(dim, unbiased, correction)
        return self.var(axes, keepdim=keepdim, correction=correction), self.mean(axes, keepdim)

    @numpy_names
    def std_mean(
        self, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *, correction: Number | None = None
    ) -> tuple["Tensor", "Tensor"]:
        """(`std`, `mean`), with the arguments of `std`."""
        axes, correction = _correction(dim, unbiased, correction)
        return self.std(axes, keepdim=keepdim, correction=correction), self.mean(axes, keepdim)

    @numpy_names
    def nansum(self, dim: Dim = None, keepdim: bool = False, *, dtype: Any = None) -> "Tensor":
        """`sum` without NaN."""
        return self.masked_fill(self.isnan(), 0).sum(dim, keepdim, dtype=dtype)

    @numpy_names
    def nanmean(self, dim: Dim = None, keepdim: bool = False, *, dtype: Any = None) -> "Tensor":
        """`mean` without NaN."""
        return self.nansum(dim, keepdim, dtype=dtype) / (~self.isnan()).sum(dim, keepdim)

    @numpy_names
    def count_nonzero(self, dim: Dim = None) -> "Tensor":
        """The number of elements that are not 0, over `dim`, as in `sum`."""
        return (self != 0).sum(dim)

    def trace(self) -> "Tensor":
        """The sum of the diagonal of a matrix."""
        if self.ndim != 2:
            raise RuntimeError(f"trace: expected a matrix, got shape {self.shape}")
        return self.diagonal().sum()

    @numpy_names
    def diff(self, n: int = 1, dim: int = -1) -> "Tensor":
        """yᵢ = xᵢ₊₁ - xᵢ along `dim`, `n` times."""
        if n == 0:
            return self  # type: ignore[return-value]
        length = self.shape[checks.one_axis(dim, self.ndim, "diff")]
        return (self.narrow(dim, 1, length - 1) - self.narrow(dim, 0, length - 1)).diff(n - 1, dim)

    def dist(self, other: "Tensor", p: float = 2) -> "Tensor":
        """The `norm` of x - other."""
        return (self - other).norm(p)

    @numpy_names
    def amax(self, dim: Dim = None, keepdim: bool = False) -> "Tensor":
        """The maximum over `dim`, as in `sum`. Elements equal to the maximum share the gradient evenly."""
        return self.apply(reduction.Amax, self, axis=dim, keepdims=keepdim)

    @numpy_names
    def amin(self, dim: Dim = None, keepdim: bool = False) -> "Tensor":
        """The minimum over `dim`, as in `sum`. Elements equal to the minimum share the gradient evenly."""
        return self.apply(reduction.Amin, self, axis=dim, keepdims=keepdim)

    @numpy_names
    def prod(self, dim: Dim = None, keepdim: bool = False, *, dtype: Any = None) -> "Tensor":
        """The product over `dim`, as in `sum`; of integers and booleans in int64."""
        return self.apply(reduction.Prod, self._as(dtype), axis=dim, keepdims=keepdim)

    @numpy_names
    def logsumexp(self, dim: Dim, keepdim: bool = False) -> "Tensor":
        """y = ln Σ exp xᵢ over `dim`, as in `sum`, without overflow. Floating-point only."""
        return self.apply(reduction.LogSumExp, self, axis=dim, keepdims=keepdim)

    @numpy_names
    def cumsum(self, dim: int, *, dtype: Any = None) -> "Tensor":
        """The cumulative sum along `dim`: yᵢ = x₀ + .. + xᵢ; of integers and booleans in int64."""
        return self.apply(reduction.CumSum, self._as(dtype), axis=dim)

    @numpy_names
    def cumprod(self, dim: int, *, dtype: Any = None) -> "Tensor":
        """The cumulative product along `dim`: yᵢ = x₀ · .. · xᵢ; of integers and booleans in int64."""
        return self.apply(reduction.CumProd, self._as(dtype), axis=dim)

    @numpy_names
    def norm(
        self, p: float | str | None = "fro", dim: Dim = None, keepdim: bool = False, dtype: Any = None
    ) -> "Tensor":
        """The vector norm over `dim`, as in `sum`: (Σ |xᵢ|ᵖ)^(1/p). Floating-point only.

        p: "fro" or None is 2; ∞ gives the maximum of |xᵢ|, -∞ the minimum, 0 the number of xᵢ that are not 0.
        dtype: convert x first.
        """
        x = self._as(dtype)
        checks.floating(x, "norm")
        if isinstance(p, str) and p != "fro":
            raise ValueError(f'norm: p must be a number or "fro", got {p!r}')
        order = 2.0 if p is None or isinstance(p, str) else float(p)
        if order == np.inf:
            return abs(x).amax(dim, keepdim)
        if order == -np.inf:
            return abs(x).amin(dim, keepdim)
        if order == 0:
            return x.sign().square().sum(dim, keepdim)  # with gradient 0
        return self.apply(reduction.Norm, x, p=order, axis=dim, keepdims=keepdim)

    @numpy_names
    def softmax(self, dim: int, dtype: Any = None) -> "Tensor":
        """yᵢ = exp xᵢ / Σⱼ exp xⱼ along `dim`; floating-point only. dtype: convert x first."""
        return self.apply(activation.Softmax, self._as(dtype), axis=dim)

    @numpy_names
    def log_softmax(self, dim: int, dtype: Any = None) -> "Tensor":
        """yᵢ = xᵢ - ln Σⱼ exp xⱼ along `dim`; floating-point only. dtype: convert x first."""
        return self.apply(activation.LogSoftmax, self._as(dtype), axis=dim)

    @numpy_names
    def argmax(self, dim: int | None = None, keepdim: bool = False) -> "Tensor":
        """The index of the maximum along `dim`, the first if several are equal, as int64.

        dim=None: the index in the flattened tensor. keepdim: keep `dim` with size 1. An empty `dim` is a ValueError.
        """
        return self._position("argmax", dim, keepdim)

    @numpy_names
    def argmin(self, dim: int | None = None, keepdim: bool = False) -> "Tensor":
        """The index of the minimum along `dim`, as in `argmax`."""
        return self._position("argmin", dim, keepdim)

    def _as(self, dtype: Any) -> "Tensor":
        """x in another dtype; None: x itself."""
        return self if dtype is None else self.to(dtype=dtype)  # type: ignore[return-value]

    def _position(self, name: str, dim: int | None, keepdim: bool) -> "Tensor":
        axis = None if dim is None else checks.one_axis(dim, self.ndim, name)
        if (self.data.size if axis is None or not self.ndim else self.shape[axis]) == 0:
            raise ValueError(f"{name}: needs at least one value, got dim {dim} of shape {self.shape}")
        return self.constant(getattr(self.data, name)(axis=axis if self.ndim else None, keepdims=keepdim))


def _correction(dim: Any, unbiased: bool | None, correction: Number | None) -> tuple[Dim, Number]:
    """The axes and the correction of `var`: `x.var(False)` passes `unbiased` in the place of `dim`."""
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    if unbiased is not None and correction is not None:
        raise TypeError("var, std: give either unbiased or correction")
    return dim, (1 if unbiased is None else int(unbiased)) if correction is None else correction
