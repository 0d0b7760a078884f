"""L2: indexing ops. Backward (except of `MaskedFill`) returns a `Partial`, the gradients of the selected elements."""

from typing import Any

import numpy as np

from minigrad.autograd.function import Function, Partial
from minigrad.backend import Array, array_module
from minigrad.ops import checks


class GetItem(Function):
    """y = x[index], with NumPy's rules: slices, integers, None, Ellipsis, boolean masks, arrays of integers.

    ∂x[index] = ∂y; an element that an index array selects several times has the sum of the gradients.
    Saves the index, without a copy: its arrays must not be written to until backward.
    """

    def forward(self, x: Array, *, index: Any) -> Array:
        self.index = index
        y = x[index]
        if isinstance(y, np.generic):  # NumPy returns a scalar for one element, but with an Ellipsis a 0-d view
            y = x[(*index, ...) if isinstance(index, tuple) else (index, ...)]
        return y

    @property
    def copies(self) -> bool:
        """True if y is a copy (an index with arrays), not a view of x."""
        return any(hasattr(part, "dtype") for part in (self.index if isinstance(self.index, tuple) else (self.index,)))

    def backward(self, grad_output: Array) -> Partial:
        parts = self.index if isinstance(self.index, tuple) else (self.index,)
        integers = [part for part in parts if getattr(part, "ndim", 0) and part.dtype != bool]
        return Partial(grad_output, self.index, repeats=bool(integers))


def steps(index: Any) -> list[Any]:
    """`index` as a list of indices to apply one after another: two if `index` has both integers and arrays, else one.

    If two, the first has the integers, slices and None, the second the arrays. This gives PyTorch's order of axes:
    NumPy broadcasts integers with index arrays, and then may put the axes of the arrays first.
    """
    parts = index if isinstance(index, tuple) else (index,)
    arrays = [getattr(part, "ndim", 0) > 0 for part in parts]
    integers = [isinstance(part, int | np.integer) and not isinstance(part, bool) for part in parts]
    if not (any(arrays) and any(integers)):
        return [index]
    first: list[Any] = []
    second: list[Any] = []
    for part, is_array, is_integer in zip(parts, arrays, integers, strict=True):
        if is_array:
            first += [slice(None)] * (part.ndim if part.dtype == bool else 1)  # a mask indexes as many axes as it has
            second.append(part)
        else:
            first.append(part)
            second += [] if is_integer else [part if part is Ellipsis else slice(None)]
    return [tuple(first), tuple(second)]


class Gather(Function):
    """y[i,j,..] = x[.., index[i,j,..], ..], with the index at position `axis`.  Saves the index.

    The index has as many axes as x, and each axis other than `axis` is at most as long as in x.
    """

    def forward(self, x: Array, *, axis: int, index: Array) -> Array:
        axis = checks.one_axis(axis, x.ndim, "gather")
        if index.size:  # PyTorch accepts an empty index of any dtype
            checks.unambiguous(index, "gather")
        if index.dtype.kind not in "iu":
            raise TypeError(f"gather: the index must hold integers, got {index.dtype}")
        longer = [a for a in range(min(x.ndim, index.ndim)) if a != axis and index.shape[a] > x.shape[a]]
        if index.ndim != x.ndim or longer:
            raise ValueError(
                f"gather: the index must have as many axes as x, and only axis {axis} may be longer than in x: "
                f"x has shape {x.shape}, the index {index.shape}"
            )
        _in_range(index, x.shape[axis] if x.ndim else 1, "gather")
        xp = array_module(x)
        grid = [xp.arange(n).reshape([-1 if a == b else 1 for b in range(x.ndim)]) for a, n in enumerate(index.shape)]
        if x.ndim:
            grid[axis] = index
        self.index = tuple(grid)
        return x[self.index]

    def backward(self, grad_output: Array) -> Partial:
        return Partial(grad_output, self.index, repeats=True)


class IndexSelect(Function):
    """y[.., k, ..] = x[.., index[k], ..]: the slices of x along `axis` at the positions of a 1-D index.

    Saves the index.
    """

    def forward(self, x: Array, *, axis: int, index: Array) -> Array:
        axis = checks.one_axis(axis, x.ndim, "index_select")
        checks.unambiguous(index, "index_select")
        if not x.ndim:
            raise ValueError("index_select: a 0-d tensor has no axis to select from; add one with x.reshape(1)")
        if index.ndim != 1 or index.dtype.kind not in "iu":
            raise TypeError(f"index_select: the index must be 1-D, of integers, got {index.shape} {index.dtype}")
        _in_range(index, x.shape[axis], "index_select")
        self.index = (slice(None),) * axis + (index,)
        return x[self.index]

    def backward(self, grad_output: Array) -> Partial:
        return Partial(grad_output, self.index, repeats=True)


class MaskedFill(Function):
    """y = value where the mask is True, else x;  ∂x = 0 where the mask is True, else ∂y.  Saves the mask."""

    def forward(self, x: Array, *, mask: Array, value: float) -> Array:
        if mask.dtype != bool:
            raise TypeError(f"masked_fill: the mask must be boolean, got {mask.dtype}; compare first, as in x > 0")
        checks.entry(value, x.dtype, "masked_fill")
        self.mask = mask
        xp = array_module(x)
        return xp.where(mask, xp.full((), value, x.dtype), x)

    def backward(self, grad_output: Array) -> Array:
        return array_module(grad_output).where(self.mask, grad_output.dtype.type(0), grad_output)


def _in_range(index: Array, size: int, op: str) -> None:
    """Check that indices are from 0 to `size` - 1: on the CPU only, since reading them synchronizes with a GPU."""
    if isinstance(index, np.ndarray) and index.size and not 0 <= index.min() <= index.max() < size:
        raise IndexError(f"{op}: indices must be from 0 to {size - 1}, got indices from {index.min()} to {index.max()}")
