"""L3: methods of Tensor that sort or select by size. A gradient goes to the selected element."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minigrad.backend import Array, array_module
from minigrad.backend.dtypes import FLOAT32, cast, is_half
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

    def nonzero(self, as_tuple: bool = False) -> Any:
        """The indices of the elements that are not 0: (number of elements, number of axes), as int64.

        as_tuple: a 1-D tensor for each axis, so that x[x.nonzero(as_tuple=True)] are the elements.
        """
        indices = (self.data if self.ndim else self.data.reshape(1)).nonzero()
        if as_tuple:
            return tuple(map(self.constant, indices))
        stacked = array_module(self.data).stack(indices, axis=1)
        return self.constant(stacked if self.ndim else stacked[:, :0])

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
