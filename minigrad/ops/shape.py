"""L2: ops that rearrange elements and change none. The gradient takes the inverse arrangement."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from operator import index

from minigrad.autograd.function import Function
from minigrad.backend import Array, array_module
from minigrad.backend.cublas import pointer
from minigrad.ops import checks


class Reshape(Function):
    """The same elements, in the same order, in another shape; one size may be -1: the rest.  Saves the shape."""

    def forward(self, x: Array, *, shape: Sequence[int]) -> Array:
        self.shape = x.shape
        known = prod(size for size in shape if size != -1)
        unknown = [size for size in shape if size < 0]
        fits = x.size == known if not unknown else known > 0 and x.size % known == 0
        if len(unknown) > 1 or any(size != -1 for size in unknown) or not fits:
            raise ValueError(
                f"reshape: {x.size} elements of shape {x.shape} do not fit shape {tuple(shape)}: "
                "sizes must multiply to the same count, and at most one may be -1"
            )
        return x.reshape(shape)

    def backward(self, grad_output: Array) -> Array:
        return grad_output.reshape(self.shape)


class Permute(Function):
    """y's axis i is x's axis `axes[i]`; the gradient takes the inverse order.  Saves the order."""

    def forward(self, x: Array, *, axes: Sequence[int]) -> Array:
        self.axes = checks.axes(axes, x.ndim, "permute")
        if len(self.axes) != x.ndim:
            raise ValueError(
                f"permute: must name all {x.ndim} axes of the input, of shape {x.shape}: got {tuple(axes)}"
            )
        return x.transpose(self.axes)

    def backward(self, grad_output: Array) -> Array:
        return grad_output.transpose(sorted(range(len(self.axes)), key=self.axes.__getitem__))


class Expand(Function):
    """Broadcast to `shape`, as a view; -1 keeps a size. The engine sums the gradient back.  Saves nothing."""

    def forward(self, x: Array, *, shape: Sequence[int]) -> Array:
        added = len(shape) - x.ndim
        if added < 0 or any(size < -1 or (size == -1 and i < added) for i, size in enumerate(shape)):
            raise ValueError(
                f"expand: shape {tuple(shape)} must have at least the {x.ndim} axes of {x.shape}, no negative size, "
                "and -1 (keep this size) only for axes that exist"
            )
        sizes = [size if size != -1 else x.shape[i - added] for i, size in enumerate(shape)]
        if any(old not in (1, new) for old, new in zip(x.shape, sizes[added:], strict=True)):
            raise ValueError(f"expand: only axes of size 1 can grow: {x.shape} does not broadcast to {tuple(shape)}")
        return array_module(x).broadcast_to(x, sizes)

    def backward(self, grad_output: Array) -> Array:
        return grad_output


class Cat(Function):
    """Join arrays end to end along `axis`; each takes its own stretch of the gradient.  Saves the ends."""

    def forward(self, *xs: Array, axis: int) -> Array:
        if not xs:
            raise ValueError("cat: needs at least one tensor, got an empty list")
        self.axis = checks.one_axis(axis, xs[0].ndim, "cat")
        frame = [size for a, size in enumerate(xs[0].shape) if a != self.axis]
        if any(x.ndim != xs[0].ndim or [s for a, s in enumerate(x.shape) if a != self.axis] != frame for x in xs):
            raise ValueError(f"cat: shapes must agree on every axis but {self.axis}, got {[x.shape for x in xs]}")
        if not xs[0].ndim:
            raise ValueError("cat: zero-dimensional tensors cannot be joined; use stack")
        self.ends = [0]
        for x in xs:
            self.ends.append(self.ends[-1] + x.shape[self.axis])
        return array_module(xs[0]).concatenate(xs, axis=self.axis)

    def backward(self, grad_output: Array) -> tuple[Array, ...]:
        before = (slice(None),) * self.axis
        return tuple(grad_output[(*before, slice(start, stop))] for start, stop in pairwise(self.ends))


class Unbind(Function):
    """The slices along `axis`, as views, each an output; ∂x has the gradient of each at its place.  Saves x's shape.

    Where these gradients lie in memory as the slices do in x, as attention leaves those of a packed q, k, v, they
    already are ∂x.
    """

    def forward(self, x: Array, *, axis: int) -> tuple[Array, ...]:
        self.shape, self.axis = x.shape, axis
        before = (slice(None),) * axis
        return tuple(x[(*before, i, ...)] for i in range(x.shape[axis]))

    def backward(self, grad_outputs: list[Array | None]) -> Array:
        some = next(grad for grad in grad_outputs if grad is not None)
        xp, whole = array_module(some), side_by_side(grad_outputs)
        if whole is None:
            absent = xp.zeros(self.shape[: self.axis] + self.shape[self.axis + 1 :], some.dtype)
            whole = xp.stack([absent if grad is None else grad for grad in grad_outputs])
        return xp.moveaxis(whole, 0, self.axis)


def side_by_side(parts: Sequence[Array | None]) -> Array | None:
    """The array of which the parts are the entries along a first axis: a view, if they lie so in one array's memory."""
    arrays = [part for part in parts if part is not None]
    first = arrays[0]
    if len(arrays) < max(len(parts), 2) or any((x.shape, x.strides) != (first.shape, first.strides) for x in arrays):
        return None
    roots, places = {_memory(x) for x in arrays}, [pointer(x) for x in arrays]
    steps = {after - before for before, after in pairwise(places)}
    if len(roots) > 1 or len(steps) > 1 or not first.size:
        return None
    strided = array_module(first).lib.stride_tricks.as_strided
    return strided(first, (len(arrays), *first.shape), (*steps, *first.strides))


def _memory(x: Array) -> tuple[int, int]:
    """Where the array begins that x is a view of, and how long it is."""
    while isinstance(x.base, type(x)):
        x = x.base
    return pointer(x), x.nbytes


class Roll(Function):
    """yᵢ = x₍ᵢ₋ₛ₎ mod n along each named axis; the gradient rolls back by -s.  `axes` None: over the flat array."""

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
    """Reverse the order along `axes`, as a copy; the gradient is reversed back.  Saves the axes."""

    def forward(self, x: Array, *, axes: int | Sequence[int]) -> Array:
        self.axes = checks.axes(axes, x.ndim, "flip")
        return array_module(x).flip(x, self.axes).copy()

    def backward(self, grad_output: Array) -> Array:
        return array_module(grad_output).flip(grad_output, self.axes)


class Pad(Function):
    """Grow each axis by (before, after) entries of `value`; negative widths crop.  ∂x is the inside of ∂y.

    Saves the widths and the shape.
    """

    def forward(self, x: Array, *, widths: Sequence[tuple[int, int]], value: float) -> Array:
        self.shape, self.widths = x.shape, widths
        sizes = [size + before + after for size, (before, after) in zip(x.shape, widths, strict=True)]
        if min(sizes, default=0) < 0:
            raise ValueError(f"pad: cropping {list(widths)} leaves shape {x.shape} with negative sizes {sizes}")
        checks.entry(value, x.dtype, "pad")
        y = array_module(x).full(sizes, value, x.dtype)
        y[self._inside(after=False)] = x[self._inside(after=True)]
        return y

    def backward(self, grad_output: Array) -> Array:
        grad_x = array_module(grad_output).zeros(self.shape, grad_output.dtype)
        grad_x[self._inside(after=True)] = grad_output[self._inside(after=False)]
        return grad_x

    def _inside(self, *, after: bool) -> tuple[slice, ...]:
        """The stretch that x and y share, along each axis: where it lies in x (`after` cropping), or in y."""
        shared = []
        for size, (before, behind) in zip(self.shape, self.widths, strict=True):
            length = max(size + min(before, 0) + min(behind, 0), 0)
            start = max(-before, 0) if after else max(before, 0)
            shared.append(slice(start, start + length))
        return tuple(shared)
