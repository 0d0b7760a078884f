"""L3: methods of Tensor that rearrange elements."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad.backend import array_module
from minigrad.backend.cublas import pointer
from minigrad.methods.base import Dim, numpy_names, sequence
from minigrad.methods.indexing import Indexing
from minigrad.ops import checks, indexing
from minigrad.ops import shape as shapes

if TYPE_CHECKING:
    from minigrad.methods.base import Tensor


class Shapes(Indexing):
    """Reshaping, permuting and splitting."""

    __slots__ = ()

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the size of the axis `dim`."""
        return self.shape if dim is None else self.shape[checks.one_axis(dim, self.ndim, "size")]

    def dim(self) -> int:
        """The number of axes, as `ndim`."""
        return int(self.ndim)

    ndimension = dim

    def element_size(self) -> int:
        """The number of bytes of an element."""
        return int(self.data.itemsize)

    def numel(self) -> int:
        """The number of elements."""
        return int(self.data.size)

    nelement = numel

    def stride(self, dim: int | None = None) -> Any:
        """For each axis, or for the axis `dim`, the distance in memory of adjacent elements, in elements."""
        strides = tuple(step // self.data.itemsize for step in self.data.strides)
        return strides if dim is None else strides[checks.one_axis(dim, self.ndim, "stride")]

    def is_contiguous(self) -> bool:
        """True if the elements are adjacent in memory, the last axis first (C order)."""
        return bool(self.data.flags.c_contiguous)

    def contiguous(self) -> "Tensor":
        """Self if its memory is in C order, else a copy that is."""
        return self if self.is_contiguous() else self.apply(shapes.Clone, self, contiguous=True)  # type: ignore[return-value]

    def clone(self) -> "Tensor":
        """A copy in new memory, recorded as an op: gradients of the copy reach self."""
        return self.apply(shapes.Clone, self, contiguous=False)

    def view(self, *shape: Any) -> "Tensor":
        """`reshape` without a copy: the result shares memory with self.

        Raises:
            RuntimeError: the memory layout allows no such view; use `reshape`.
        """
        y = self.reshape(*shape)
        if self.data.size and pointer(y.data) != pointer(self.data):
            raise RuntimeError(
                "view size is not compatible with input tensor's size and stride: the elements of shape "
                f"{self.shape}, strides {self.stride()} are not in the order of {y.shape}; use reshape(), which copies"
            )
        return y

    def view_as(self, other: "Tensor") -> "Tensor":
        """`view(other.shape)`."""
        return self.view(other.shape)

    def reshape_as(self, other: "Tensor") -> "Tensor":
        """`reshape(other.shape)`."""
        return self.reshape(other.shape)

    def reshape(self, *shape: Any) -> "Tensor":
        """The same elements, in the same order, in another shape, `x.reshape(2, 3)` or `x.reshape((2, 3))`.

        One size may be -1: it is inferred from the number of elements.
        """
        return self.apply(shapes.Reshape, self, shape=sequence(shape))

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> "Tensor":
        """Merge the axes from `start_dim` to `end_dim`, both included, into one."""
        first = checks.one_axis(start_dim, self.ndim, "flatten")
        last = checks.one_axis(end_dim, self.ndim, "flatten")
        if first > last:
            raise ValueError(f"flatten: start_dim must not be greater than end_dim, got {start_dim} and {end_dim}")
        merged = int(np.prod(self.shape[first : last + 1]))
        return self.reshape(*self.shape[:first], merged, *self.shape[last + 1 :])

    def unflatten(self, dim: int, sizes: Sequence[int]) -> "Tensor":
        """Split the axis `dim` into axes of these `sizes`; one size may be -1. The inverse of `flatten`."""
        dim = checks.one_axis(dim, self.ndim, "unflatten")
        return self.reshape(*self.shape[:dim], *sizes, *self.shape[dim + 1 :])

    def ravel(self) -> "Tensor":
        """`reshape(-1)`."""
        return self.reshape(-1)

    def permute(self, *axes: Any, dims: Any = ()) -> "Tensor":
        """Permute the axes, as a view, `x.permute(1, 0)` or `x.permute(dims=(1, 0))`: axis i is axis `dims[i]` of x."""
        return self.apply(shapes.Permute, self, axes=sequence(axes or (dims,)))

    def transpose(self, dim0: int, dim1: int) -> "Tensor":
        """Exchange the axes `dim0` and `dim1`, as a view."""
        order = list(range(self.ndim))
        first, second = (checks.one_axis(dim, self.ndim, "transpose") for dim in (dim0, dim1))
        if order:
            order[first], order[second] = second, first
        return self.permute(*order)

    def movedim(self, source: int | Sequence[int], destination: int | Sequence[int]) -> "Tensor":
        """Move the axes `source` to the positions `destination`, as a view; the other axes keep their order."""
        old, new = (checks.axes(dims, self.ndim, "movedim") for dims in (source, destination))
        if len(old) != len(new):
            raise ValueError(f"movedim: source and destination must have one length, got {source} and {destination}")
        order = [dim for dim in range(self.ndim) if dim not in old]
        for to, dim in sorted(zip(new, old, strict=True)):
            order.insert(to, dim)
        return self.permute(*order)

    @property
    def T(self) -> "Tensor":  # noqa: N802 (PyTorch's name)
        """The transpose of a matrix, as a view. Only for 2-D tensors."""
        if self.ndim != 2:
            raise ValueError(f".T is only for matrices, got shape {self.shape}; use transpose(dim0, dim1)")
        return self.permute(1, 0)

    @property
    def mT(self) -> "Tensor":  # noqa: N802 (PyTorch's name)
        """The last two axes exchanged, as a view."""
        return self.transpose(-2, -1)

    def t(self) -> "Tensor":
        """The transpose of a matrix, as a view; a tensor of fewer axes unchanged."""
        if self.ndim > 2:
            raise RuntimeError(f"t() expects a tensor with <= 2 dimensions, but self is {self.ndim}D")
        return self.permute(*reversed(range(self.ndim)))

    swapaxes = swapdims = transpose
    moveaxis = movedim

    def expand_as(self, other: "Tensor") -> "Tensor":
        """`expand(other.shape)`."""
        return self.expand(*other.shape)

    def repeat(self, *sizes: Any) -> "Tensor":
        """Copies side by side, `sizes[i]` along axis i: (N, C) by (2, 3) -> (2 N, 3 C). More sizes than axes: the first
        are of new axes (NumPy: `tile`)."""
        repeats = sequence(sizes)
        if len(repeats) < self.ndim:
            raise RuntimeError(
                "Number of dimensions of repeat dims can not be smaller than number of dimensions of tensor: "
                f"got {repeats} for shape {self.shape}"
            )
        shape = (1,) * (len(repeats) - self.ndim) + self.shape
        tiles = self.reshape(*(n for size in shape for n in (1, size)))  # (N, C) -> (1, N, 1, C)
        tiles = tiles.expand(*(n for pair in zip(repeats, shape, strict=True) for n in pair))  # -> (2, N, 3, C)
        result = tiles.reshape(*(count * size for count, size in zip(repeats, shape, strict=True)))  # -> (2 N, 3 C)
        shared = all(1 in pair for pair in zip(repeats, shape, strict=True))  # the reshape is a view
        return result.clone() if shared else result

    def narrow(self, dim: int, start: int, length: int) -> "Tensor":
        """The slice of `length` elements along `dim` from `start`, as a view. A negative start counts from the end."""
        dim = checks.one_axis(dim, self.ndim, "narrow")
        size = self.shape[dim]
        first = start + size if start < 0 else start
        if not 0 <= first <= first + length <= size:
            raise RuntimeError(f"narrow: start {start} + length {length} exceeds the size {size} of axis {dim}")
        return self[(slice(None),) * dim + (slice(first, first + length),)]

    def select(self, dim: int, index: int) -> "Tensor":
        """The slice at `index` along `dim`, without this axis, as a view."""
        return self[(slice(None),) * checks.one_axis(dim, self.ndim, "select") + (index,)]

    def tril(self, diagonal: int = 0) -> "Tensor":
        """The lower triangle of the last two axes: 0 above the `diagonal`, counted upwards from the main one."""
        return self._triangle(lambda xp, shape: ~xp.tri(*shape, diagonal, dtype=bool), "tril")

    def triu(self, diagonal: int = 0) -> "Tensor":
        """The upper triangle of the last two axes: 0 below the `diagonal`, counted upwards from the main one."""
        return self._triangle(lambda xp, shape: xp.tri(*shape, diagonal - 1, dtype=bool), "triu")

    def _triangle(self, zeros: Callable[[Any, Any], Any], op: str) -> "Tensor":
        if self.ndim < 2:
            raise RuntimeError(f"{op}: input tensor must have at least 2 dimensions, got shape {self.shape}")
        mask = zeros(array_module(self.data), self.shape[-2:])
        return self.apply(indexing.MaskedFill, self, mask=mask, value=0)

    def expand(self, *sizes: Any) -> "Tensor":
        """Broadcast to `sizes`, as a view: only axes of size 1 and new leading axes are expanded; -1 keeps a size."""
        return self.apply(shapes.Expand, self, shape=sequence(sizes))

    @numpy_names
    def squeeze(self, dim: Dim = None) -> "Tensor":
        """Remove axes of size 1: all, or only axes in `dim`; other axes are kept."""
        named = checks.axes(dim, self.ndim, "squeeze")
        return self.reshape([size for i, size in enumerate(self.shape) if i not in named or size != 1])

    @numpy_names
    def unsqueeze(self, dim: int) -> "Tensor":
        """Insert an axis of size 1 at position `dim`."""
        dim = checks.one_axis(dim, self.ndim + 1, "unsqueeze")
        return self.reshape(*self.shape[:dim], 1, *self.shape[dim:])

    @numpy_names
    def split(self, split_size: int | Sequence[int], dim: int = 0) -> tuple["Tensor", ...]:
        """Split the tensor into chunks along `dim`, as views.

        split_size: the size of every chunk, except that the last may be smaller; or a list of sizes.
        """
        dim = checks.one_axis(dim, self.ndim, "split")
        length = self.shape[dim] if self.ndim else 1
        if isinstance(split_size, Sequence):
            sizes = list(checks.integers(split_size, "each size", "split"))
        elif (split_size := checks.integer(split_size, "split_size", "split")) > 0:
            sizes = [min(split_size, length - start) for start in range(0, max(length, 1), split_size)]
        else:
            raise ValueError(f"split: split_size must be at least 1, got {split_size}")
        if sum(sizes) != length or min(sizes, default=0) < 0:
            raise ValueError(f"split: sizes must add up to the size {length} of axis {dim}, got {sizes}")
        starts = np.cumsum([0, *sizes]).tolist()
        before = (slice(None),) * dim
        return tuple(self[(*before, slice(a, b))] for a, b in pairwise(starts))

    @numpy_names
    def chunk(self, chunks: int, dim: int = 0) -> tuple["Tensor", ...]:
        """Split the tensor along `dim` into at most `chunks` views of equal size; the last may be smaller."""
        if (chunks := checks.integer(chunks, "chunks", "chunk")) < 1:
            raise ValueError(f"chunk: chunks must be at least 1, got {chunks}")
        length = self.shape[checks.one_axis(dim, self.ndim, "chunk")] if self.ndim else 1
        return self.split(max(-(-length // chunks), 1), dim) if length else self.split([0] * chunks, dim)

    @numpy_names
    def unbind(self, dim: int = 0) -> tuple["Tensor", ...]:
        """The slices along `dim`, without this axis, as views: `q, k, v = qkv.unbind(0)`."""
        dim = checks.one_axis(dim, self.ndim, "unbind")
        if not self.ndim:
            raise ValueError("unbind: a 0-d tensor has no axis to unbind")
        slices: tuple[Tensor, ...] = self.apply(shapes.Unbind, self, axis=dim)  # type: ignore[assignment]
        return slices

    def roll(self, shifts: int | Sequence[int], dims: Dim = None) -> "Tensor":
        """Shift elements by `shifts` along `dims`, cyclically, one shift for each; dims=None: the flattened tensor."""
        return self.apply(shapes.Roll, self, shifts=shifts, axes=dims)

    def flip(self, *axes: Any, dims: Any = ()) -> "Tensor":
        """Reverse the order of the elements along `dims`, as a copy: `x.flip(0, 1)` or `x.flip(dims=(0, 1))`."""
        return self.apply(shapes.Flip, self, axes=sequence(axes or (dims,)))

    def fliplr(self) -> "Tensor":
        """`flip(1)`."""
        return self.flip(1)

    def flipud(self) -> "Tensor":
        """`flip(0)`."""
        return self.flip(0)

    @numpy_names
    def repeat_interleave(self, repeats: Any, dim: int | None = None) -> "Tensor":
        """Each slice along `dim` `repeats` times in succession: one number, or one for each slice (NumPy: `repeat`).

        dim=None: the flattened tensor.
        """
        if dim is None:
            return self.reshape(-1).repeat_interleave(repeats, 0)
        xp, axis = array_module(self.data), checks.one_axis(dim, self.ndim, "repeat_interleave")
        counts = repeats.tolist() if hasattr(repeats, "tolist") else repeats
        return self.index_select(axis, xp.asarray(np.repeat(np.arange(self.shape[axis]), counts)))

    def tile(self, *sizes: Any, dims: Any = ()) -> "Tensor":
        """`repeat`, where missing leading sizes are 1."""
        repeats = sequence(sizes or (dims,))
        return self.repeat(*(1,) * (self.ndim - len(repeats)), *repeats)

    def broadcast_to(self, size: Sequence[int]) -> "Tensor":
        """`expand(size)`."""
        return self.expand(size)

    @numpy_names
    def tensor_split(self, indices_or_sections: int | Sequence[int], dim: int = 0) -> tuple["Tensor", ...]:
        """Split along `dim`, as views, into N chunks whose sizes differ by at most 1, or before the given indices."""
        length = self.shape[checks.one_axis(dim, self.ndim, "tensor_split")]
        return self.split([len(part) for part in np.array_split(np.empty(length), indices_or_sections)], dim)

    def unfold(self, dimension: int, size: int, step: int) -> "Tensor":
        """The windows of `size` elements along `dimension`, at distances `step`: (.., L, ..) -> (.., N, .., size)."""
        axis = checks.one_axis(dimension, self.ndim, "unfold")
        if not 0 <= size <= self.shape[axis] or step < 1:
            raise RuntimeError(f"unfold: needs 0 <= size <= {self.shape[axis]} and step > 0, got {size} and {step}")
        xp = array_module(self.data)
        windows = xp.arange(0, self.shape[axis] - size + 1, step)[:, None] + xp.arange(size)  # (N, size)
        return self.movedim(axis, -1)[..., windows].movedim(-2, axis)

    def masked_select(self, mask: "Tensor") -> "Tensor":
        """The elements where `mask` is True, as a 1-D tensor; x and `mask` (bool) broadcast."""
        shape = np.broadcast_shapes(self.shape, mask.shape)
        return self.expand(shape)[mask.expand(shape)]

    def take(self, index: Any) -> "Tensor":
        """The elements at the positions `index` of the flattened tensor, in the shape of `index`."""
        return self.reshape(-1)[index]

    def take_along_dim(self, indices: "Tensor", dim: int | None = None) -> "Tensor":
        """`gather`, where x and `indices` broadcast on the other axes; dim=None: both are flattened."""
        if dim is None:
            return self.reshape(-1).gather(0, indices.reshape(-1))
        axis = checks.one_axis(dim, self.ndim, "take_along_dim")
        sizes = [np.broadcast_shapes((n,), (m,))[0] if i != axis else -1
                 for i, (n, m) in enumerate(zip(self.shape, indices.shape, strict=True))]  # fmt: skip
        return self.expand(sizes).gather(axis, indices.expand(sizes))

    def diagonal(self, offset: int = 0, dim1: int = 0, dim2: int = 1) -> "Tensor":
        """The diagonal of the axes `dim1` and `dim2`, as the last axis of a view; `offset` counts from the main one."""
        return self.apply(shapes.Diagonal, self.movedim((dim1, dim2), (-2, -1)), offset=offset)

    def diag_embed(self, offset: int = 0) -> "Tensor":
        """Matrices whose diagonals are the rows of x, elsewhere 0: (.., N) -> (.., N + |offset|, N + |offset|)."""
        *batch, n = self.shape
        side, i = n + abs(offset), array_module(self.data).arange(n)
        at = (i + max(-offset, 0)) * side + i + max(offset, 0)
        return self.new_zeros(*batch, side * side).index_copy(-1, at, self[...]).reshape(*batch, side, side)

    def diag(self, diagonal: int = 0) -> "Tensor":
        """The diagonal of a matrix, as a copy, or the matrix of a diagonal."""
        if self.ndim not in (1, 2):
            raise RuntimeError(f"diag: supports 1D or 2D tensors, got shape {self.shape}")
        return self.diag_embed(diagonal) if self.ndim == 1 else self.diagonal(diagonal).clone()
