"""L3: methods of Tensor that select elements."""

from types import EllipsisType
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad.backend import array_module, plain, to_device_of
from minigrad.methods.base import Number, TensorBase, numpy_names, raw, raw_array
from minigrad.methods.conversion import Conversion
from minigrad.ops import checks, indexing

if TYPE_CHECKING:
    from minigrad.methods.base import Tensor


class Indexing(Conversion):
    """Indexing by slices, masks and arrays of integers."""

    __slots__ = ()

    def __getitem__(self, index: Any) -> "Tensor":
        """Index by slices, integers, None, Ellipsis, boolean masks and integer arrays, by NumPy's rules except one.

        An index with both integers and arrays applies the integers first, as in PyTorch: `x[0, :, [0, 1]]` is
        `x[0][:, [0, 1]]`. (NumPy would put the axis of the array first.)
        """
        steps = indexing.steps(raw_index(index, self.data))
        return self.apply(indexing.GetItem, self if len(steps) == 1 else self[steps[0]], index=steps[-1])

    @numpy_names
    def gather(self, dim: int, index: Any) -> "Tensor":
        """y[i, j, ..] = x[.., index[i, j, ..], ..], with the index at position `dim`.

        index: a tensor of integers with as many axes as x, no longer than x on any axis except `dim`. An index out of
        range is an IndexError (CPU only).
        """
        index = raw_array(index, "index", "gather")
        if self.ndim + index.ndim == 1:  # as in PyTorch, a 0-d tensor counts as 1-d
            y = (self if self.ndim else self[None]).gather(dim, index.reshape(-1))
            return y if index.ndim else y[0]
        return self.apply(indexing.Gather, self, axis=dim, index=index)

    @numpy_names
    def scatter(self, dim: int, index: Any, src: "Number | Tensor") -> "Tensor":
        """y = x, but y[.., index[i, j, ..], ..] = src[i, j, ..], with the index at position `dim`.

        index: as in `gather`; of duplicates, an arbitrary one is written.
        src: a number, or a tensor that is on no axis shorter than the index.
        """
        return self.apply(indexing.Scatter, self, src, axis=dim, index=raw_array(index, "index", "scatter"))

    @numpy_names
    def scatter_add(self, dim: int, index: Any, src: "Tensor") -> "Tensor":
        """y = x, with src[i, j, ..] added to y[.., index[i, j, ..], ..]; duplicates in the index add all their terms.

        index, src: as in `scatter`.
        """
        return self.apply(indexing.ScatterAdd, self, src, axis=dim, index=raw_array(index, "index", "scatter_add"))

    @numpy_names
    def index_select(self, dim: int, index: Any) -> "Tensor":
        """The slices along `dim` at the positions `index`, a 1-D tensor of integers.

        An index out of range is an IndexError (CPU only).
        """
        return self.apply(indexing.IndexSelect, self, axis=dim, index=raw_array(index, "index", "index_select"))

    @numpy_names
    def index_add(self, dim: int, index: Any, source: "Tensor", *, alpha: Number = 1) -> "Tensor":
        """y = x, with alpha · slice i of `source` along `dim` added to slice index[i] of y, also for duplicates."""
        source = source if alpha == 1 else source * alpha
        return self.scatter_add(dim, self._slices(dim, index, source.shape, "index_add"), source)

    @numpy_names
    def index_copy(self, dim: int, index: Any, source: "Tensor") -> "Tensor":
        """y = x, but slice index[i] of y along `dim` is slice i of `source`."""
        return self.scatter(dim, self._slices(dim, index, source.shape, "index_copy"), source)

    @numpy_names
    def index_fill(self, dim: int, index: Any, value: "Number | Tensor") -> "Tensor":
        """y = x, but the slices of y along `dim` at the positions `index`, a 1-D tensor, are `value`."""
        axis = checks.one_axis(dim, self.ndim, "index_fill")
        shape = (*self.shape[:axis], raw_array(index, "index", "index_fill").size, *self.shape[axis + 1 :])
        return self.scatter(dim, self._slices(dim, index, shape, "index_fill"), value)

    def _slices(self, dim: int, index: Any, shape: tuple[int, ...], op: str) -> Any:
        """A 1-D index of slices along `dim` as an index of elements, broadcast to `shape`."""
        array, axis = raw_array(index, "index", op).reshape(-1), checks.one_axis(dim, self.ndim, op)
        if len(shape) != self.ndim or shape[axis] != len(array):
            raise ValueError(f"{op}: needs a slice for each of {len(array)} indices along axis {axis}, got {shape}")
        return array_module(array).broadcast_to(array.reshape(-1, *(1,) * (self.ndim - axis - 1)), shape)


_BASIC = {int, slice, type(None), EllipsisType}


def raw_index(index: Any, x: Any) -> Any:
    """The index of the array x, in the form for the op GetItem: Tensors replaced by arrays, on the device of x.

    Arrays are copied, since the graph saves the index, and lists become arrays. A 0-d integer array becomes an integer,
    as in PyTorch.
    """
    if isinstance(index, tuple):
        parts = tuple(_raw_part(list(part) if isinstance(part, tuple) else part, x) for part in index)
        return _one_ellipsis(parts, x.ndim) if [type(part) for part in parts].count(EllipsisType) > 1 else parts
    return _raw_part(index, x)


def _raw_part(part: Any, x: Any) -> Any:
    if type(part) in _BASIC:
        return part
    if isinstance(part, list):
        array = np.array(plain(part), dtype=None if part else np.intp)
        positions = array.dtype == np.uint8 and all(isinstance(value, np.generic) for value in part)
        part = array.astype(np.intp) if positions else array  # a list of np.uint8 scalars is not a mask
    if not isinstance(part, TensorBase | np.ndarray) and not hasattr(part, "__cuda_array_interface__"):
        return part
    array = raw(part)
    checks.unambiguous(array, "x[index]")
    if not array.ndim and array.dtype.kind in "iu":
        return array.item()
    return array.copy() if type(x) is np.ndarray or type(array) is not np.ndarray else to_device_of(array, x)


def _one_ellipsis(parts: tuple[Any, ...], ndim: int) -> tuple[Any, ...]:
    """Remove every Ellipsis but the first, which as in PyTorch covers all remaining axes."""
    indexed = sum(
        (part.ndim if part.dtype == bool else 1) if hasattr(part, "dtype") else not isinstance(part, bool)
        for part in parts if part is not None and part is not Ellipsis
    )  # fmt: skip
    first, *others = (i for i, part in enumerate(parts) if part is Ellipsis)
    if indexed < ndim and any(part is not Ellipsis for part in parts[others[0] :]):
        raise IndexError(f"x[index]: the first Ellipsis covers all remaining axes, got {parts}; write `...` only once")
    return tuple(part for i, part in enumerate(parts) if i == first or part is not Ellipsis)
