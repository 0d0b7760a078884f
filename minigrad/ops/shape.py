"""L2: ops that rearrange elements without changing their values. Backward applies the inverse rearrangement."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from operator import index

from minigrad.autograd.function import Function
from minigrad.backend import Array, array_module
from minigrad.backend.cublas import pointer
from minigrad.ops import checks


class Reshape(Function):
    """The same elements, in the same order, in another shape; a size of -1 is inferred.  Saves the shape."""

    def forward(self, x: Array, *, shape: Sequence[int]) -> Array:
        self.shape = x.shape
        known = prod(size for size in shape if size != -1)
        unknown = [size for size in shape if size < 0]
        fits = x.size == known if not unknown else known > 0 and x.size % known == 0
        if len(unknown) > 1 or any(size != -1 for size in unknown) or not fits:
            raise ValueError(
                f"reshape: {x.size} elements of shape {x.shape} do not fit shape {tuple(shape)}: "
                "the product of the sizes must be the number of elements, and at most one size may be -1"
            )
        return x.reshape(shape)

    def backward(self, grad_output: Array) -> Array:
        return grad_output.reshape(self.shape)


class Clone(Function):
    """y = x in new memory, C-contiguous or in the memory order of x;  ∂x = ∂y."""

    def forward(self, x: Array, *, contiguous: bool) -> Array:
        return x.copy(order="C" if contiguous else "K")

    def backward(self, grad_output: Array) -> Array:
        return grad_output


class Permute(Function):
    """Axis i of y is axis `axes[i]` of x; backward applies the inverse permutation.  Saves the permutation."""

    def forward(self, x: Array, *, axes: Sequence[int]) -> Array:
        self.axes = checks.axes(axes, x.ndim, "permute")
        if len(self.axes) != x.ndim:
            raise ValueError(
                f"permute: dims must list all {x.ndim} axes of the input, of shape {x.shape}: got {tuple(axes)}"
            )
        return x.transpose(self.axes)

    def backward(self, grad_output: Array) -> Array:
        return grad_output.transpose(sorted(range(len(self.axes)), key=self.axes.__getitem__))


class Expand(Function):
    """Broadcast to `shape`, as a view; -1 keeps a size. The engine sums ∂y over the broadcast axes.  Saves nothing."""

    def forward(self, x: Array, *, shape: Sequence[int]) -> Array:
        added = len(shape) - x.ndim
        if added < 0 or any(size < -1 or (size == -1 and i < added) for i, size in enumerate(shape)):
            raise ValueError(
                f"expand: shape {tuple(shape)} must have at least the {x.ndim} axes of {x.shape}, no negative size, "
                "and -1 (keep the size) only for axes of the input"
            )
        sizes = [size if size != -1 else x.shape[i - added] for i, size in enumerate(shape)]
        if any(old not in (1, new) for old, new in zip(x.shape, sizes[added:], strict=True)):
            raise ValueError(f"expand: only axes of size 1 can be expanded, got {x.shape} for shape {tuple(shape)}")
        return array_module(x).broadcast_to(x, sizes)

    def backward(self, grad_output: Array) -> Array:
        return grad_output


class Cat(Function):
    """Concatenate arrays along `axis`; the gradient of each is its slice of ∂y.  Saves the ends of the slices."""

    def forward(self, *xs: Array, axis: int) -> Array:
        if not xs:
            raise ValueError("cat: needs at least one tensor, got an empty list")
        self.axis = checks.one_axis(axis, xs[0].ndim, "cat")
        other_sizes = [size for a, size in enumerate(xs[0].shape) if a != self.axis]
        if any(x.ndim != xs[0].ndim or [s for a, s in enumerate(x.shape) if a != self.axis] != other_sizes for x in xs):
            raise ValueError(f"cat: shapes must agree on every axis but {self.axis}, got {[x.shape for x in xs]}")
        if not xs[0].ndim:
            raise ValueError("cat: 0-d tensors cannot be concatenated; use stack")
        self.ends = [0]
        for x in xs:
            self.ends.append(self.ends[-1] + x.shape[self.axis])
        return array_module(xs[0]).concatenate(xs, axis=self.axis)

    def backward(self, grad_output: Array) -> tuple[Array, ...]:
        before = (slice(None),) * self.axis
        return tuple(grad_output[(*before, slice(start, stop))] for start, stop in pairwise(self.ends))


class Unbind(Function):
    """Slices along `axis`, as views, one per output; ∂x stacks the outputs' gradients.  Saves the shape of x.

    The gradients need no copy if they are already slices of one array, as attention returns them for packed q, k, v.
    """

    def forward(self, x: Array, *, axis: int) -> tuple[Array, ...]:
        self.shape, self.axis = x.shape, axis
        before = (slice(None),) * axis
        return tuple(x[(*before, i, ...)] for i in range(x.shape[axis]))

    def backward(self, grad_outputs: list[Array | None]) -> Array:
        first = next(grad for grad in grad_outputs if grad is not None)
        xp, stacked = array_module(first), stacked_view(grad_outputs)
        if stacked is None:
            zeros = xp.zeros(self.shape[: self.axis] + self.shape[self.axis + 1 :], first.dtype)
            stacked = xp.stack([zeros if grad is None else grad for grad in grad_outputs])
        return xp.moveaxis(stacked, 0, self.axis)


def stacked_view(parts: Sequence[Array | None]) -> Array | None:
    """`stack(parts)` as a view, if the parts are equally spaced views of one array; else None."""
    arrays = [part for part in parts if part is not None]
    first = arrays[0]
    if len(arrays) < max(len(parts), 2) or any((x.shape, x.strides) != (first.shape, first.strides) for x in arrays):
        return None
    buffers, addresses = {_buffer(x) for x in arrays}, [pointer(x) for x in arrays]
    steps = {after - before for before, after in pairwise(addresses)}
    if len(buffers) > 1 or len(steps) > 1 or not first.size:
        return None
    as_strided = array_module(first).lib.stride_tricks.as_strided
    return as_strided(first, (len(arrays), *first.shape), (*steps, *first.strides))


def _buffer(x: Array) -> tuple[int, int]:
    """The address and the size in bytes of the array that x is a view of."""
    while isinstance(x.base, type(x)):
        x = x.base
    return pointer(x), x.nbytes


class Roll(Function):
    """yᵢ = x₍ᵢ₋ₛ₎ mod n along each of `axes` (None: flattened), s the shift;  ∂x: ∂y rolled by -s.  Saves s, axes."""

    def forward(self, x: Array, *, shifts: int | Sequence[int], axes: int | Sequence[int] | None) -> Array:
        self.shifts = tuple(index(s) for s in (shifts if isinstance(shifts, Sequence) else (shifts,)))
        self.axes = None if axes is None else tuple(
            checks.one_axis(a, x.ndim, "roll") for a in (axes if isinstance(axes, Sequence) else (axes,))
        )  # fmt: skip
        if len(self.shifts) != (1 if self.axes is None else len(self.axes)):
            raise ValueError(f"roll: needs one shift for each axis, got shifts {shifts} and axes {axes}")
        if not x.ndim:
            self.axes = None
        return self._rolled(x, 1)

    def backward(self, grad_output: Array) -> Array:
        return self._rolled(grad_output, -1)

    def _rolled(self, x: Array, sign: int) -> Array:
        if self.axes is None:
            return array_module(x).roll(x, sign * self.shifts[0])
        return array_module(x).roll(x, tuple(sign * s for s in self.shifts), self.axes)


class Flip(Function):
    """Reverse the order of elements along `axes`, as a copy; ∂x is ∂y, reversed.  Saves the axes."""

    def forward(self, x: Array, *, axes: int | Sequence[int]) -> Array:
        self.axes = checks.axes(axes, x.ndim, "flip")
        return array_module(x).flip(x, self.axes).copy()

    def backward(self, grad_output: Array) -> Array:
        return array_module(grad_output).flip(grad_output, self.axes)


class Diagonal(Function):
    """yᵢ = x with i at the last two axes, `offset` columns further right, as a view; ∂x is ∂y there, elsewhere 0.

    Shapes: x (..., M, N), y (..., D).  Saves the shape and the offset.
    """

    def forward(self, x: Array, *, offset: int) -> Array:
        self.shape, self.offset = x.shape, offset
        return self._of(x)

    def backward(self, grad_output: Array) -> Array:
        grad_x = array_module(grad_output).zeros(self.shape, grad_output.dtype)
        self._of(grad_x)[...] = grad_output
        return grad_x

    def _of(self, x: Array) -> Array:
        """A view of the diagonal, whose stride is the sum of the strides. (That of NumPy's `diagonal` is read-only.)"""
        x = x[..., max(-self.offset, 0) :, max(self.offset, 0) :]
        *strides, row, column = x.strides
        as_strided = array_module(x).lib.stride_tricks.as_strided
        return as_strided(x, (*x.shape[:-2], min(x.shape[-2:])), (*strides, row + column))


class Pad(Function):
    """Pad each axis with (before, after) elements of `value`; negative widths crop.  ∂x = ∂y, and 0 where x is cropped.

    Saves the widths and the shape.
    """

    def forward(self, x: Array, *, widths: Sequence[tuple[int, int]], value: float) -> Array:
        self.shape, self.widths = x.shape, widths
        sizes = [size + before + after for size, (before, after) in zip(x.shape, widths, strict=True)]
        if min(sizes, default=0) < 0:
            raise ValueError(f"pad: widths {list(widths)} give negative sizes {sizes} for an input of shape {x.shape}")
        checks.entry(value, x.dtype, "pad")
        y = array_module(x).full(sizes, value, x.dtype)
        in_x, in_y = self._shared()
        y[in_y] = x[in_x]
        return y

    def backward(self, grad_output: Array) -> Array:
        grad_x = array_module(grad_output).zeros(self.shape, grad_output.dtype)
        in_x, in_y = self._shared()
        grad_x[in_x] = grad_output[in_y]
        return grad_x

    def _shared(self) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The part of x that y contains: as slices of x, and as slices of y."""
        in_x, in_y = [], []
        for size, (before, after) in zip(self.shape, self.widths, strict=True):
            length = max(size + min(before, 0) + min(after, 0), 0)
            in_x.append(slice(max(-before, 0), max(-before, 0) + length))
            in_y.append(slice(max(before, 0), max(before, 0) + length))
        return tuple(in_x), tuple(in_y)
