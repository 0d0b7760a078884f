"""L2: indexing ops. Backward of ops that select elements returns a `Partial`, the gradients of these elements."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad.autograd.function import Function, Partial
from minigrad.backend import Array, array_module, promote, scatter_add
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
        _check_index(index, x, axis, "gather")
        self.index = positions(index, axis)
        return x[self.index]

    def backward(self, grad_output: Array) -> Partial:
        return Partial(grad_output, self.index, repeats=True)


def positions(index: Array, axis: int) -> tuple[Array, ...]:
    """The index arrays of `x[.., index[i,j,..], ..]`, with `index` at position `axis`, for x with as many axes."""
    xp, ndim = array_module(index), index.ndim
    grid = [xp.arange(n).reshape([-1 if a == b else 1 for b in range(ndim)]) for a, n in enumerate(index.shape)]
    if ndim:
        grid[axis] = index
    return tuple(grid)


class Scatter(Function):
    """y = x, but y[.., index[i,j,..], ..] = src[i,j,..], with the index at position `axis`.

        ∂x = ∂y, but 0 at the index;  ∂src[i,j,..] = ∂y[.., index[i,j,..], ..], and 0 beyond the shape of the index

    Of duplicates in the index, an arbitrary one is written, and ∂src is not the gradient.
    Shapes: as in `Gather`; src is on no axis shorter than the index, or is 0-d or a number.  Saves the index.
    """

    def forward(self, x: Array, src: Any, *, axis: int, index: Array) -> Array:
        y, source = self._prepare(x, src, axis, index, "scatter")
        y[self.index] = source
        return y

    def backward(self, grad_output: Array) -> tuple[Array, Array | None]:
        grad_x = grad_output.copy()
        grad_x[self.index] = 0
        return grad_x, self._grad_src(grad_output)

    def _prepare(self, x: Array, src: Any, axis: int, index: Array, op: str) -> tuple[Array, Array]:
        """A copy of x, and the values of src in the shape of the index."""
        axis = checks.one_axis(axis, x.ndim, op)
        _check_index(index, x, axis, op)
        if not hasattr(src, "dtype"):
            checks.entry(src, x.dtype, op)
            src = array_module(x).full((), src, x.dtype)
        if src.ndim and (src.ndim != index.ndim or any(n > m for n, m in zip(index.shape, src.shape, strict=True))):
            raise ValueError(f"{op}: the index must not be longer than src on any axis, got {index.shape}, {src.shape}")
        self.index, self.shape = positions(index, axis), src.shape
        self.used = tuple(slice(n) for n in index.shape) if src.ndim else ()
        return x.copy(), src[self.used]

    def _grad_src(self, grad_output: Array) -> Array | None:
        if not self.needs_input_grad[1]:
            return None
        grad_source = grad_output[self.index]
        if not self.shape or grad_source.shape == self.shape:
            return grad_source
        grad_src = array_module(grad_output).zeros(self.shape, grad_output.dtype)
        grad_src[self.used] = grad_source
        return grad_src


class ScatterAdd(Scatter):
    """y = x, with src[i,j,..] added to y[.., index[i,j,..], ..]; duplicates in the index add all their terms.

        ∂x = ∂y,  ∂src[i,j,..] = ∂y[.., index[i,j,..], ..], and 0 beyond the shape of the index

    Shapes: as in `Scatter`.  Saves the index.
    """

    def forward(self, x: Array, src: Any, *, axis: int, index: Array) -> Array:
        y, source = self._prepare(x, src, axis, index, "scatter_add")
        if x.dtype.kind in "iu":  # CuPy adds at an index in few integer dtypes only
            y, source = y.astype(np.int64), source.astype(np.int64)
        scatter_add(y, self.index, source)
        return y.astype(x.dtype, copy=False)

    def backward(self, grad_output: Array) -> tuple[Array, Array | None]:
        return grad_output, self._grad_src(grad_output)


def promote_source(xs: Sequence[Any]) -> list[Any]:
    """x and src promoted to one dtype; a number takes the dtype of x."""
    return promote(xs) if hasattr(xs[1], "dtype") else list(xs)


class Embedding(Function):
    """y[i,j,..] = weight[index[i,j,..]], a row of the weight for each index;  ∂weight[k] = Σ ∂y where the index is k.

    The row `padding_idx`, if not None, has the gradient 0.  Shapes: weight (V, D), index (...), y (..., D).
    Saves the index.
    """

    def forward(self, weight: Array, *, index: Array, padding_idx: int | None) -> Array:
        if weight.ndim != 2:
            raise ValueError(f"embedding: weight must be (number of rows, D), 2-D, got shape {weight.shape}")
        if index.dtype.kind not in "iu":
            raise TypeError(f"embedding: the input must hold integers, got {index.dtype}")
        in_range(index, weight.shape[0], "embedding")
        self.index, self.padding_idx = index.astype(np.int64), padding_idx
        return weight[self.index]

    def backward(self, grad_output: Array) -> Partial:
        if self.padding_idx is not None:
            grad_output = grad_output * (self.index != self.padding_idx)[..., None].astype(grad_output.dtype)
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
        in_range(index, x.shape[axis], "index_select")
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


def _check_index(index: Array, x: Array, axis: int, op: str) -> None:
    """Check the index of `Gather` and `Scatter`: integers in range, as many axes as x, longer only on `axis`."""
    if index.size:  # PyTorch accepts an empty index of any dtype
        checks.unambiguous(index, op)
    if index.dtype.kind not in "iu":
        raise TypeError(f"{op}: the index must hold integers, got {index.dtype}")
    longer = [a for a in range(min(x.ndim, index.ndim)) if a != axis and index.shape[a] > x.shape[a]]
    if index.ndim != x.ndim or longer:
        raise ValueError(
            f"{op}: the index must have as many axes as x, and only axis {axis} may be longer than in x: "
            f"x has shape {x.shape}, the index {index.shape}"
        )
    in_range(index, x.shape[axis] if x.ndim else 1, op)


def in_range(index: Array, size: int, op: str) -> None:
    """Check that indices are from 0 to `size` - 1: on the CPU only, since reading them synchronizes with a GPU."""
    if type(index) is np.ndarray and index.size and not 0 <= index.min() <= index.max() < size:
        raise IndexError(f"{op}: indices must be from 0 to {size - 1}, got indices from {index.min()} to {index.max()}")
