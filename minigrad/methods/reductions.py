"""L3: methods of Tensor that reduce or scan axes."""

from typing import TYPE_CHECKING

from minigrad.methods.base import Dim, Number
from minigrad.methods.elementwise import Elementwise
from minigrad.ops import checks, reduction

if TYPE_CHECKING:
    from minigrad.methods.base import Tensor


class Reductions(Elementwise):
    """Sums, means, extrema, products."""

    __slots__ = ()

    def sum(self, dim: Dim = None, keepdim: bool = False) -> "Tensor":
        """The sum over `dim`: one axis, several, or all (None). Integers and booleans are summed in int64.

        keepdim: keep the reduced axes with size 1.
        """
        return self.apply(reduction.Sum, self, axis=dim, keepdims=keepdim)

    def mean(self, dim: Dim = None, keepdim: bool = False) -> "Tensor":
        """The mean over `dim`, as in `sum`; NaN if there are no elements. Floating-point only."""
        return self.apply(reduction.Mean, self, axis=dim, keepdims=keepdim)

    def var(self, dim: Dim = None, *, correction: Number = 1, keepdim: bool = False) -> "Tensor":
        """The variance over `dim`, as in `sum`: Σ (xᵢ - μ)² / (n - correction); NaN if n ≤ correction.

        Floating-point only. The default correction is 1 in PyTorch, 0 in NumPy.
        """
        return self.apply(reduction.Var, self, axis=dim, keepdims=keepdim, correction=correction)

    def std(self, dim: Dim = None, *, correction: Number = 1, keepdim: bool = False) -> "Tensor":
        """The standard deviation over `dim`: the square root of `var`, with the same arguments."""
        return self.apply(reduction.Std, self, axis=dim, keepdims=keepdim, correction=correction)

    def amax(self, dim: Dim = None, keepdim: bool = False) -> "Tensor":
        """The maximum over `dim`, as in `sum`. Elements equal to the maximum share the gradient evenly."""
        return self.apply(reduction.Amax, self, axis=dim, keepdims=keepdim)

    def amin(self, dim: Dim = None, keepdim: bool = False) -> "Tensor":
        """The minimum over `dim`, as in `sum`. Elements equal to the minimum share the gradient evenly."""
        return self.apply(reduction.Amin, self, axis=dim, keepdims=keepdim)

    def prod(self, dim: Dim = None, keepdim: bool = False) -> "Tensor":
        """The product over `dim`, as in `sum`; of integers and booleans in int64."""
        return self.apply(reduction.Prod, self, axis=dim, keepdims=keepdim)

    def logsumexp(self, dim: Dim, keepdim: bool = False) -> "Tensor":
        """y = ln Σ exp xᵢ over `dim`, as in `sum`, without overflow. Floating-point only."""
        return self.apply(reduction.LogSumExp, self, axis=dim, keepdims=keepdim)

    def cumsum(self, dim: int) -> "Tensor":
        """The cumulative sum along `dim`: yᵢ = x₀ + .. + xᵢ; of integers and booleans in int64."""
        return self.apply(reduction.CumSum, self, axis=dim)

    def argmax(self, dim: int | None = None, keepdim: bool = False) -> "Tensor":
        """The index of the maximum along `dim`, the first if several are equal, as int64.

        dim=None: the index in the flattened tensor. keepdim: keep `dim` with size 1. An empty `dim` is a ValueError.
        """
        axis = None if dim is None else checks.one_axis(dim, self.ndim, "argmax")
        if (self.data.size if axis is None or not self.ndim else self.shape[axis]) == 0:
            raise ValueError(f"argmax: needs at least one value, got dim {dim} of shape {self.shape}")
        return self.constant(self.data.argmax(axis=axis if self.ndim else None, keepdims=keepdim))
