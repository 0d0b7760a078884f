"""L3: methods of Tensor that sort or select by size. A gradient goes to the selected element."""

from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minigrad.backend import Array, array_module, to_device, to_device_of
from minigrad.backend.dtypes import FLOAT32, cast, is_half, upcast
from minigrad.methods.base import TensorBase, numpy_names
from minigrad.methods.reductions import Reductions
from minigrad.ops import checks

if TYPE_CHECKING:
    from minigrad.methods.base import Tensor


class ValuesAndIndices(NamedTuple):
    """The selected values along an axis, and their indices on this axis, as int64."""

    values: "Tensor"
    indices: "Tensor"


class Sorting(Reductions):
    """Extrema with indices, sorting, and the indices of elements that are not 0."""

    __slots__ = ()

    @numpy_names
    def max(self, dim: Any = None, keepdim: bool = False) -> Any:
        """The maximum: of all elements, along an axis with its index, or of two tensors elementwise.

        x.max()          as `amax`: equal maxima share the gradient
        x.max(dim)       (values, indices): the index of the maximum, the first if several are equal
        x.max(other)     as `maximum`
        """
        if dim is None:
            return self.amax()
        if isinstance(dim, TensorBase):
            return self.maximum(dim)
        return self._selected(self.argmax(dim, True), dim, keepdim)

    @numpy_names
    def min(self, dim: Any = None, keepdim: bool = False) -> Any:
        """The minimum: of all elements, along an axis with its index, or of two tensors, as in `max`."""
        if dim is None:
            return self.amin()
        if isinstance(dim, TensorBase):
            return self.minimum(dim)
        return self._selected(self.argmin(dim, True), dim, keepdim)

    @numpy_names
    def sort(self, dim: int = -1, descending: bool = False, stable: bool = False) -> ValuesAndIndices:
        """The elements in ascending or descending order along `dim`, and their indices. NaN counts as the maximum.

        stable: keep the order of equal elements, which is always done.
        """
        return self._selected(self.argsort(dim, descending, stable), dim, True)

    @numpy_names
    def argsort(self, dim: int = -1, descending: bool = False, stable: bool = False) -> "Tensor":
        """The indices of `sort`, as int64."""
        return self.constant(_order(self.data, checks.one_axis(dim, self.ndim, "argsort"), descending))

    @numpy_names
    def topk(self, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> ValuesAndIndices:
        """The `k` largest elements along `dim`, in descending order, and their indices; or the smallest, ascending.

        sorted: in order, which is always done.
        """
        axis, k = checks.one_axis(dim, self.ndim, "topk"), checks.integer(k, "k", "topk")
        if not 0 <= k <= (self.shape[axis] if self.ndim else 1):
            raise ValueError(f"topk: k must be from 0 to the size of axis {axis}, got {k} and shape {self.shape}")
        order = _order(self.data, axis, largest)
        first = order[(slice(None),) * axis + (slice(k),)] if self.ndim else order
        return self._selected(self.constant(first), dim, True)

    @numpy_names
    def kthvalue(self, k: int, dim: int = -1, keepdim: bool = False) -> ValuesAndIndices:
        """The `k`-th smallest element along `dim`, k from 1, and its index."""
        return self._selected(self.argsort(dim).narrow(dim, k - 1, 1), dim, keepdim)

    @numpy_names
    def median(self, dim: int | None = None, keepdim: bool = False) -> Any:
        """The median, of two in the middle the lower: of all elements, or along an axis with its index.

        NaN if an element is NaN.
        """
        if dim is None:
            return self.reshape(-1).median(0).values
        length = self.shape[checks.one_axis(dim, self.ndim, "median")]
        middle = self.argsort(dim).narrow(dim, (length - 1) // 2, 1)
        nan = self.isnan().any(dim, True)
        return self._selected(self.argmax(dim, True).where(nan, middle), dim, keepdim)

    @numpy_names
    def quantile(self, q: Any, dim: int | None = None, keepdim: bool = False) -> "Tensor":
        """The quantiles `q`, from 0 to 1, along `dim` (None: of all elements), interpolated linearly.

        Shapes: y has a leading axis for a 1-D tensor `q`. NaN if an element is NaN. Floating-point only.
        """
        checks.floating(self, "quantile")
        fractions = np.asarray(q.tolist() if hasattr(q, "tolist") else q, np.float64)
        if not ((fractions >= 0) & (fractions <= 1)).all():
            raise RuntimeError(f"quantile: q must be from 0 to 1, got {q}")
        x = self.reshape(-1) if dim is None else self.movedim(dim, -1)
        at = fractions * (x.shape[-1] - 1)
        ordered, low = x.sort(-1).values, np.floor(at)
        weight = self.new_tensor(at - low)
        below, above = (to_device_of(end.astype(np.int64), x.data) for end in (low, np.ceil(at)))
        y = ordered[..., below].lerp(ordered[..., above], weight)  # (..) or (.., Q)
        y = y.masked_fill(x.isnan().any(-1, keepdim=fractions.ndim > 0), np.nan)
        y = y if not fractions.ndim else y.movedim(-1, 0)
        if keepdim:
            return y.reshape(*fractions.shape, *(1 if dim is None or i == dim % self.ndim else n
                                                 for i, n in enumerate(self.shape)))  # fmt: skip
        return y

    def unique(self, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False,
               dim: int | None = None) -> Any:  # fmt: skip
        """The distinct elements, or slices along `dim`, in ascending order; then, if wanted, for each element of x the
        index of its value, and for each value the number of its elements. Every NaN is distinct."""
        (x,) = upcast([self.data])  # CuPy sorts no bfloat16
        x = x if dim is None else to_device(x, "cpu")  # along an axis, CuPy reads back each comparison of two slices
        values, inverse, counts = array_module(x).unique(
            x, return_inverse=True, return_counts=True, axis=dim, equal_nan=False
        )
        found = [
            cast(values, self.dtype),
            *[inverse.reshape(self.shape if dim is None else -1)] * return_inverse,
            *[counts] * return_counts,
        ]
        tensors = tuple(self.constant(to_device(array, self.device)) for array in found)
        return tensors if len(tensors) > 1 else tensors[0]

    def unique_consecutive(self, return_inverse: bool = False, return_counts: bool = False,
                           dim: int | None = None) -> Any:  # fmt: skip
        """As `unique`, but without sorting: the first of each run of equal elements, or of equal slices along `dim`."""
        xp = array_module(self.data)
        x = self.data.reshape(-1) if dim is None else xp.moveaxis(self.data, dim, 0)
        rows = x.reshape(x.shape[0], prod(x.shape[1:]))
        first = xp.ones(x.shape[0], np.bool_)
        first[1:] = (rows[1:] != rows[:-1]).any(1)
        starts = first.nonzero()[0]
        found = [
            x[first] if dim is None else xp.moveaxis(x[first], 0, dim),
            *[(first.cumsum(dtype=np.int64) - 1).reshape(self.shape if dim is None else -1)] * return_inverse,
            *[xp.concatenate([starts[1:], xp.full(1, x.shape[0])]) - starts] * return_counts,
        ]
        tensors = tuple(map(self.constant, found))
        return tensors if len(tensors) > 1 else tensors[0]

    def bincount(self, weights: "Tensor | None" = None, minlength: int = 0) -> "Tensor":
        """The number of each of the integers 0, 1, .. in a 1-D tensor, or the sum of the weights of its elements."""
        xp = array_module(self.data)
        if weights is None:
            return self.constant(xp.bincount(self.data, minlength=minlength))
        sums = xp.bincount(self.data, weights.data, minlength)
        return self.constant(sums.astype(np.float32 if weights.dtype == FLOAT32 else np.float64))

    def histc(self, bins: int = 100, min: float = 0, max: float = 0) -> "Tensor":
        """The number of elements in each of `bins` equal intervals from min to max, or if equal, of all elements."""
        (x,) = upcast([self.data])  # the edges of the intervals have the dtype of x
        limits = (min, max) if min != max else (float(x.min()), float(x.max()))
        return self.constant(array_module(x).histogram(x, bins, limits)[0].astype(self.dtype))

    @numpy_names
    def cummax(self, dim: int) -> ValuesAndIndices:
        """The cumulative maximum along `dim`, and its index, the last if several are equal."""
        return self._cumulative(np.maximum, dim, "cummax")

    @numpy_names
    def cummin(self, dim: int) -> ValuesAndIndices:
        """The cumulative minimum along `dim`, and its index, the last if several are equal."""
        return self._cumulative(np.minimum, dim, "cummin")

    def _cumulative(self, extremum: np.ufunc, dim: int, op: str) -> ValuesAndIndices:
        """On the host: CuPy has no `accumulate`."""
        axis, x = checks.one_axis(dim, self.ndim, op), to_device(self.data, "cpu")
        found = extremum.accumulate(x, axis)
        place = np.arange(x.shape[axis]).reshape(-1, *(1,) * (x.ndim - axis - 1))
        indices = np.maximum.accumulate(np.where((x == found) | (x != x), place, 0), axis)
        return self._selected(self.constant(to_device(indices, self.device)), dim, True)

    def nonzero(self, as_tuple: bool = False) -> Any:
        """The indices of the elements that are not 0: (number of elements, number of axes), as int64.

        as_tuple: a 1-D tensor for each axis, so that x[x.nonzero(as_tuple=True)] are the elements.
        """
        indices = (self.data if self.ndim else self.data.reshape(1)).nonzero()
        if as_tuple:
            return tuple(map(self.constant, indices))
        stacked = array_module(self.data).stack(indices, axis=1)
        return self.constant(stacked if self.ndim else stacked[:, :0])

    argwhere = nonzero

    def _selected(self, indices: "Tensor", dim: int, keepdim: bool) -> ValuesAndIndices:
        """The elements at `indices` along `dim`."""
        values = self.gather(dim, indices)
        return ValuesAndIndices(*((values, indices) if keepdim else (values.squeeze(dim), indices.squeeze(dim))))


def _order(x: Array, axis: int, descending: bool) -> Array:
    """The indices that sort x along `axis`; of equal elements, the first is first."""
    xp = array_module(x)
    if not x.ndim:
        return xp.zeros((), np.int64)
    x = cast(x, FLOAT32) if is_half(x.dtype) else x  # CuPy does not sort bfloat16
    if not descending:
        return xp.argsort(x, axis=axis, kind="stable")
    # Sort the reversed axis ascending, and reverse the result: the largest is first, and of equal elements the first.
    order = xp.argsort(xp.flip(x, axis), axis=axis, kind="stable")
    return x.shape[axis] - 1 - xp.flip(order, axis)
