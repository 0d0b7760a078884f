"""L3: what a Tensor can do, one short method an op, under PyTorch's names.

The mathematics of each stands in `minigrad/ops/`. Most of these are also functions of the package: `minigrad.exp(x)`
is `x.exp()`.
"""

import operator
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad.backend import plain, promote, promote_and_wrap, to_device
from minigrad.backend.dtypes import as_dtype, is_floating, is_held
from minigrad.ops import checks, indexing, matmul, reduction
from minigrad.ops import elementwise as pointwise
from minigrad.ops import shape as shapes

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

Dim = int | Sequence[int] | None
Number = int | float


class Methods:
    """The vocabulary of Tensor, which adds the data, the graph and `apply`."""

    __slots__ = ()

    apply: Callable[..., "Tensor"]
    constant: Callable[[Any], "Tensor"]
    _in_place: Callable[..., "Tensor"]
    data: Any
    shape: Any
    ndim: Any
    dtype: Any
    device: Any

    # Arithmetic -----------------------------------------------------------------------------------------------------

    def __add__(self, other: Any) -> "Tensor":
        return self.apply(pointwise.Add, self, other)

    def __sub__(self, other: Any) -> "Tensor":
        return self.apply(pointwise.Sub, self, other)

    def __mul__(self, other: Any) -> "Tensor":
        return self.apply(pointwise.Mul, self, other)

    def __truediv__(self, other: Any) -> "Tensor":
        return self.apply(pointwise.Div, self, other)

    def __pow__(self, other: Any) -> "Tensor":
        return self.apply(pointwise.Pow, self, other)

    def __matmul__(self, other: Any) -> "Tensor":
        return self.apply(matmul.MatMul, self, other)

    def __radd__(self, other: Any) -> "Tensor":
        return self.apply(pointwise.Add, other, self)

    def __rsub__(self, other: Any) -> "Tensor":
        return self.apply(pointwise.Sub, other, self)

    def __rmul__(self, other: Any) -> "Tensor":
        return self.apply(pointwise.Mul, other, self)

    def __rtruediv__(self, other: Any) -> "Tensor":
        return self.apply(pointwise.Div, other, self)

    def __rpow__(self, other: Any) -> "Tensor":
        return self.apply(pointwise.Pow, other, self)

    def __rmatmul__(self, other: Any) -> "Tensor":
        return self.apply(matmul.MatMul, other, self)

    def __neg__(self) -> "Tensor":
        return self.apply(pointwise.Neg, self)

    def __abs__(self) -> "Tensor":
        return self.apply(pointwise.Abs, self)

    add, sub, mul, div, pow, neg, abs, matmul = (
        __add__, __sub__, __mul__, __truediv__, __pow__, __neg__, __abs__, __matmul__,
    )  # fmt: skip

    # In place: `x += y` changes the Tensor itself, so every name for it sees the new values ---------------------------

    def __iadd__(self, other: Any) -> "Tensor":
        return self._in_place("+=", operator.add, other)

    def __isub__(self, other: Any) -> "Tensor":
        return self._in_place("-=", operator.sub, other)

    def __imul__(self, other: Any) -> "Tensor":
        return self._in_place("*=", operator.mul, other)

    def __itruediv__(self, other: Any) -> "Tensor":
        return self._in_place("/=", operator.truediv, other)

    def __ipow__(self, other: Any) -> "Tensor":
        return self._in_place("**=", operator.pow, other)

    def __iand__(self, other: Any) -> "Tensor":
        return self._in_place("&=", operator.and_, other)

    def __ior__(self, other: Any) -> "Tensor":
        return self._in_place("|=", operator.or_, other)

    def __ixor__(self, other: Any) -> "Tensor":
        return self._in_place("^=", operator.xor, other)

    # Comparisons: booleans, through which no gradient flows ---------------------------------------------------------

    def __eq__(self, other: Any) -> "Tensor":  # type: ignore[override]
        return self._compared(operator.eq, other)

    def __ne__(self, other: Any) -> "Tensor":  # type: ignore[override]
        return self._compared(operator.ne, other)

    def __lt__(self, other: Any) -> "Tensor":
        return self._compared(operator.lt, other)

    def __le__(self, other: Any) -> "Tensor":
        return self._compared(operator.le, other)

    def __gt__(self, other: Any) -> "Tensor":
        return self._compared(operator.gt, other)

    def __ge__(self, other: Any) -> "Tensor":
        return self._compared(operator.ge, other)

    def __invert__(self) -> "Tensor":
        return self.constant(~self.data)

    def __and__(self, other: Any) -> "Tensor":
        return self._bitwise(operator.and_, other)

    def __or__(self, other: Any) -> "Tensor":
        return self._bitwise(operator.or_, other)

    def __xor__(self, other: Any) -> "Tensor":
        return self._bitwise(operator.xor, other)

    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__

    def _compared(self, compare: Callable[[Any, Any], Any], other: Any) -> "Tensor":
        """`compare` of both in the one dtype that arithmetic with them has; exact beyond its range."""
        x, y = self.data, raw(other)
        if getattr(y, "dtype", None) != x.dtype:
            x, y = promote([x, y])
            if isinstance(y, int) and x.dtype.kind in "iu" and not is_held(y, x.dtype):
                x = x.astype(np.int64)  # NumPy knows the answer, CuPy does not
        return self.constant(compare(x, y))

    def _bitwise(self, combine: Callable[[Any, Any], Any], other: Any) -> "Tensor":
        """`combine` of both in the one dtype that arithmetic with them has."""
        return self.constant(combine(*promote_and_wrap([self.data, raw(other)])))

    def __contains__(self, number: Any) -> bool:
        return bool((self == number).data.any())

    __hash__ = object.__hash__  # a Tensor is a dictionary key by identity, though == compares numbers

    def argmax(self, dim: int | None = None, keepdim: bool = False) -> "Tensor":
        """Where the largest value is: the first of equals. Over the flat array if no dim is named."""
        axis = None if dim is None else checks.one_axis(dim, self.ndim, "argmax")
        if (self.data.size if axis is None or not self.ndim else self.shape[axis]) == 0:
            raise ValueError(f"argmax: no largest value among none: dim is {dim}, the shape {self.shape}")
        return self.constant(self.data.argmax(axis=axis if self.ndim else None, keepdims=keepdim))

    def isfinite(self) -> "Tensor":
        """True where a value is neither infinite nor NaN."""
        return self.constant(abs(self.data) < np.inf)

    # Elementwise ----------------------------------------------------------------------------------------------------

    def exp(self) -> "Tensor":
        """eˣ"""
        return self.apply(pointwise.Exp, self)

    def log(self) -> "Tensor":
        """The natural logarithm."""
        return self.apply(pointwise.Log, self)

    def sqrt(self) -> "Tensor":
        """√x"""
        return self.apply(pointwise.Sqrt, self)

    def tanh(self) -> "Tensor":
        """The hyperbolic tangent."""
        return self.apply(pointwise.Tanh, self)

    def sigmoid(self) -> "Tensor":
        """1 / (1 + e⁻ˣ)"""
        return self.apply(pointwise.Sigmoid, self)

    def erf(self) -> "Tensor":
        """The error function, 2/√π · ∫₀ˣ exp(-t²) dt."""
        return self.apply(pointwise.Erf, self)

    def maximum(self, other: Any) -> "Tensor":
        """The larger of two values, elementwise."""
        return self.apply(pointwise.Maximum, self, other)

    def minimum(self, other: Any) -> "Tensor":
        """The smaller of two values, elementwise."""
        return self.apply(pointwise.Minimum, self, other)

    def clamp(self, min: Number | None = None, max: Number | None = None) -> "Tensor":
        """Values below `min` raised to it, above `max` lowered to it."""
        if isinstance(min, Methods) or isinstance(max, Methods):
            raise TypeError("clamp: min and max are numbers; for tensors write x.maximum(low).minimum(high)")
        return self.apply(pointwise.Clamp, self, min=min, max=max)

    def masked_fill(self, mask: Any, value: "Number | Tensor") -> "Tensor":
        """`value` where the boolean mask holds."""
        if isinstance(value, Methods):  # it may want a gradient
            return self.apply(pointwise.Where, raw(mask), value, self)
        return self.apply(indexing.MaskedFill, self, mask=raw(mask), value=value)

    # Reductions -----------------------------------------------------------------------------------------------------

    def sum(self, dim: Dim = None, keepdim: bool = False) -> "Tensor":
        """The sum over `dim`: one, several or (None) all axes."""
        return self.apply(reduction.Sum, self, axis=dim, keepdims=keepdim)

    def mean(self, dim: Dim = None, keepdim: bool = False) -> "Tensor":
        """The mean over `dim`."""
        return self.apply(reduction.Mean, self, axis=dim, keepdims=keepdim)

    def var(self, dim: Dim = None, *, correction: Number = 1, keepdim: bool = False) -> "Tensor":
        """The variance over `dim`, divided by n - correction (PyTorch's default is 1, NumPy's 0)."""
        return self.apply(reduction.Var, self, axis=dim, keepdims=keepdim, correction=correction)

    def std(self, dim: Dim = None, *, correction: Number = 1, keepdim: bool = False) -> "Tensor":
        """The square root of `var`."""
        return self.apply(reduction.Std, self, axis=dim, keepdims=keepdim, correction=correction)

    def amax(self, dim: Dim = None, keepdim: bool = False) -> "Tensor":
        """The largest value over `dim`; equal ones share the gradient."""
        return self.apply(reduction.Amax, self, axis=dim, keepdims=keepdim)

    def amin(self, dim: Dim = None, keepdim: bool = False) -> "Tensor":
        """The smallest value over `dim`; equal ones share the gradient."""
        return self.apply(reduction.Amin, self, axis=dim, keepdims=keepdim)

    def prod(self, dim: Dim = None, keepdim: bool = False) -> "Tensor":
        """The product over `dim`."""
        return self.apply(reduction.Prod, self, axis=dim, keepdims=keepdim)

    def logsumexp(self, dim: Dim, keepdim: bool = False) -> "Tensor":
        """ln Σ eˣ over `dim`, safe from overflow."""
        return self.apply(reduction.LogSumExp, self, axis=dim, keepdims=keepdim)

    def cumsum(self, dim: int) -> "Tensor":
        """The running sum along `dim`."""
        return self.apply(reduction.CumSum, self, axis=dim)

    # Shapes ---------------------------------------------------------------------------------------------------------

    def reshape(self, *shape: Any) -> "Tensor":
        """The same elements in another shape; one size may be -1."""
        return self.apply(shapes.Reshape, self, shape=sequence(shape))

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> "Tensor":
        """The axes from `start_dim` to `end_dim` joined into one."""
        first = checks.one_axis(start_dim, self.ndim, "flatten")
        last = checks.one_axis(end_dim, self.ndim, "flatten")
        if first > last:
            raise ValueError(f"flatten: start_dim must not come behind end_dim, got {start_dim} and {end_dim}")
        joined = int(np.prod(self.shape[first : last + 1]))
        return self.reshape(*self.shape[:first], joined, *self.shape[last + 1 :])

    def unflatten(self, dim: int, sizes: Sequence[int]) -> "Tensor":
        """The axis `dim` split into `sizes`, one of which may be -1: the inverse of flatten."""
        dim = checks.one_axis(dim, self.ndim, "unflatten")
        return self.reshape(*self.shape[:dim], *sizes, *self.shape[dim + 1 :])

    def permute(self, *dims: Any) -> "Tensor":
        """The axes in another order."""
        return self.apply(shapes.Permute, self, axes=sequence(dims))

    def transpose(self, dim0: int, dim1: int) -> "Tensor":
        """Two axes exchanged."""
        order = list(range(self.ndim))
        first, second = (checks.one_axis(dim, self.ndim, "transpose") for dim in (dim0, dim1))
        if order:
            order[first], order[second] = second, first
        return self.permute(*order)

    def movedim(self, source: int | Sequence[int], destination: int | Sequence[int]) -> "Tensor":
        """The `source` axes moved to `destination`, the others keeping their order."""
        old, new = (checks.axes(dims, self.ndim, "movedim") for dims in (source, destination))
        if len(old) != len(new):
            raise ValueError(f"movedim: as many sources as destinations are needed, got {source} and {destination}")
        order = [dim for dim in range(self.ndim) if dim not in old]
        for to, dim in sorted(zip(new, old, strict=True)):
            order.insert(to, dim)
        return self.permute(*order)

    @property
    def T(self) -> "Tensor":  # noqa: N802 (PyTorch's name)
        """A matrix with rows and columns exchanged."""
        if self.ndim != 2:
            raise ValueError(f".T is for matrices, this tensor has shape {self.shape}; use transpose(dim0, dim1)")
        return self.permute(1, 0)

    @property
    def mT(self) -> "Tensor":  # noqa: N802 (PyTorch's name)
        """The last two axes exchanged."""
        return self.transpose(-2, -1)

    def expand(self, *sizes: Any) -> "Tensor":
        """Axes of size 1, and new ones in front, repeated as a view; -1 keeps a size."""
        return self.apply(shapes.Expand, self, shape=sequence(sizes))

    def squeeze(self, dim: Dim = None) -> "Tensor":
        """The axes of size 1 dropped: all, or those named that have it."""
        named = checks.axes(dim, self.ndim, "squeeze")
        return self.reshape([size for i, size in enumerate(self.shape) if i not in named or size != 1])

    def unsqueeze(self, dim: int) -> "Tensor":
        """A new axis of size 1 at `dim`."""
        dim = checks.one_axis(dim, self.ndim + 1, "unsqueeze")
        return self.reshape(*self.shape[:dim], 1, *self.shape[dim:])

    def split(self, split_size: int | Sequence[int], dim: int = 0) -> tuple["Tensor", ...]:
        """Pieces along `dim`: each `split_size` long but perhaps the last, or of the sizes listed."""
        dim = checks.one_axis(dim, self.ndim, "split")
        length = self.shape[dim] if self.ndim else 1
        if isinstance(split_size, Sequence):
            sizes = list(checks.integers(split_size, "each size", "split"))
        elif (split_size := checks.integer(split_size, "split_size", "split")) > 0:
            sizes = [min(split_size, length - start) for start in range(0, max(length, 1), split_size)]
        else:
            raise ValueError(f"split: a piece must be at least 1 long, got {split_size}")
        if sum(sizes) != length or min(sizes, default=0) < 0:
            raise ValueError(f"split: sizes must add up to the length {length} of axis {dim}, got {sizes}")
        starts = np.cumsum([0, *sizes]).tolist()
        before = (slice(None),) * dim
        return tuple(self[(*before, slice(a, b))] for a, b in pairwise(starts))

    def chunk(self, chunks: int, dim: int = 0) -> tuple["Tensor", ...]:
        """At most `chunks` pieces of equal length along `dim`; the last may be shorter."""
        if (chunks := checks.integer(chunks, "chunks", "chunk")) < 1:
            raise ValueError(f"chunk: needs at least one chunk, got {chunks}")
        length = self.shape[checks.one_axis(dim, self.ndim, "chunk")] if self.ndim else 1
        return self.split(max(-(-length // chunks), 1), dim) if length else self.split([0] * chunks, dim)

    def unbind(self, dim: int = 0) -> tuple["Tensor", ...]:
        """The slices along `dim`, without that axis: `q, k, v = qkv.unbind(0)`."""
        dim = checks.one_axis(dim, self.ndim, "unbind")
        if not self.ndim:
            raise ValueError("unbind: a tensor with no axes has no slices")
        slices: tuple[Tensor, ...] = self.apply(shapes.Unbind, self, axis=dim)  # type: ignore[assignment]
        return slices

    def roll(self, shifts: int | Sequence[int], dims: Dim = None) -> "Tensor":
        """Entries moved by `shifts` along `dims`, those pushed out coming in at the other end."""
        return self.apply(shapes.Roll, self, shifts=shifts, axes=dims)

    def flip(self, *dims: Any) -> "Tensor":
        """The order along `dims` reversed."""
        return self.apply(shapes.Flip, self, axes=sequence(dims))

    # Entries --------------------------------------------------------------------------------------------------------

    def __getitem__(self, index: Any) -> "Tensor":
        """Entries by slices, integers, None, Ellipsis, boolean masks and arrays of integers, as in NumPy.

        But where integers and arrays meet, PyTorch's rule holds: the integers pick first, then the arrays, so
        `x[0, :, [0, 1]]` is `x[0][:, [0, 1]]` (in NumPy its array axis would come to the front).
        """
        steps = indexing.steps(raw_index(index, self.ndim))
        return self.apply(indexing.GetItem, self if len(steps) == 1 else self[steps[0]], index=steps[-1])

    def gather(self, dim: int, index: Any) -> "Tensor":
        """y[i, j, ..] = x[.., index[i, j, ..], ..], the index standing at `dim`."""
        return self.apply(indexing.Gather, self, axis=dim, index=raw(index))

    def index_select(self, dim: int, index: Any) -> "Tensor":
        """The slices along `dim` that a 1-D index names."""
        return self.apply(indexing.IndexSelect, self, axis=dim, index=raw(index))

    # Types and devices ----------------------------------------------------------------------------------------------

    def to(self, *targets: Any, dtype: Any = None, device: str | None = None) -> "Tensor":
        """Another dtype or device or both: `x.to("cuda")`, `x.to(np.float64)`, `x.to("cuda", np.float16)`."""
        dtype, device = target(*targets, dtype=dtype, device=device)
        dtype = self.dtype if dtype is None else dtype
        device = self.device if device is None else device
        if dtype == self.dtype and device == self.device:
            return self  # type: ignore[return-value]
        if not is_floating(dtype):
            return self.constant(to_device(self.data, device).astype(dtype, copy=False))  # integers have no gradient
        return self.apply(pointwise.Cast, self, dtype=dtype, device=device)

    def float(self) -> "Tensor":
        """As float32."""
        return self.to(dtype=np.float32)

    def double(self) -> "Tensor":
        """As float64."""
        return self.to(dtype=np.float64)

    def half(self) -> "Tensor":
        """As float16."""
        return self.to(dtype=np.float16)

    def bfloat16(self) -> "Tensor":
        """As bfloat16."""
        return self.to(dtype="bfloat16")

    def cpu(self) -> "Tensor":
        """In the computer's own memory."""
        return self.to(device="cpu")

    def cuda(self) -> "Tensor":
        """On the GPU."""
        return self.to(device="cuda")


def target(*targets: Any, dtype: Any = None, device: str | None = None) -> tuple[np.dtype | None, str | None]:
    """What `to` was asked for: dtypes and devices in any order, as arguments or by name."""
    for given in targets:
        if isinstance(given, str) and given.partition(":")[0] in ("cpu", "cuda"):
            device = given
        else:
            dtype = given
    try:
        return None if dtype is None else as_dtype(dtype), device
    except TypeError:
        raise ValueError(f'to: takes a dtype, or a device "cpu" or "cuda", got {dtype!r}') from None


def raw(x: Any) -> Any:
    """The array of a Tensor; anything else as it is, but NumPy scalars as Python's, which do not widen a dtype."""
    return x.data if isinstance(x, Methods) else x.item() if isinstance(x, np.generic) else plain(x)


_BASIC = {int, slice, type(None), EllipsisType}


def raw_index(index: Any, ndim: int) -> Any:
    """An index of a tensor of `ndim` axes, with the arrays of Tensors in their place. Arrays, and what makes one, are
    copied for the graph; an integer in an array without axes is an integer, as in PyTorch."""
    if isinstance(index, tuple):
        parts = tuple(_raw_part(list(part) if isinstance(part, tuple) else part) for part in index)
        return _one_ellipsis(parts, ndim) if [type(part) for part in parts].count(EllipsisType) > 1 else parts
    return _raw_part(index)


def _raw_part(part: Any) -> Any:
    if type(part) in _BASIC:
        return part
    if isinstance(part, list):
        made = np.array(plain(part), dtype=None if part else np.intp)
        numbers = made.dtype == np.uint8 and all(isinstance(number, np.generic) for number in part)
        part = made.astype(np.intp) if numbers else made  # np.uint8 among Python's numbers is one of them
    if not isinstance(part, Methods | np.ndarray) and not hasattr(part, "__cuda_array_interface__"):
        return part
    array = raw(part)
    checks.unambiguous(array, "x[index]")
    return array.copy() if array.ndim or array.dtype.kind not in "iu" else array.item()


def _one_ellipsis(parts: tuple[Any, ...], ndim: int) -> tuple[Any, ...]:
    """As in PyTorch, each Ellipsis stands for all axes that are not named: so only the first has any left."""
    taken = sum(
        (part.ndim if part.dtype == bool else 1) if hasattr(part, "dtype") else not isinstance(part, bool)
        for part in parts if part is not None and part is not Ellipsis
    )  # fmt: skip
    first, *others = (i for i, part in enumerate(parts) if part is Ellipsis)
    if taken < ndim and any(part is not Ellipsis for part in parts[others[0] :]):
        raise IndexError(f"x[index]: behind a second Ellipsis no axis is left, got {parts}; write one `...` only")
    return tuple(part for i, part in enumerate(parts) if i == first or part is not Ellipsis)


def sequence(sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """`f(2, 3)` and `f((2, 3))` mean the same."""
    sizes = tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], Sequence) else sizes
    try:
        return tuple(map(operator.index, sizes))
    except TypeError:
        raise TypeError(f"sizes and axes must be integers, got {sizes}") from None
