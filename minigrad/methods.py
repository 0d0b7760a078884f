"""L3: the methods of Tensor, one for each op, with the names, arguments and defaults of torch.Tensor.

The op of each method, in `minigrad/ops/`, has the equations of forward and backward. Most methods are also functions of
the package: `minigrad.exp(x)` is `x.exp()`.

For all methods: shapes or values that do not fit raise a ValueError, an axis that does not exist an IndexError, and
"floating-point only" means that another dtype raises a TypeError. In arithmetic, operands broadcast, and different
dtypes are promoted to one, as in PyTorch.
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
    from minigrad._tensor import Tensor

Dim = int | Sequence[int] | None
Number = int | float


class Methods:
    """The methods of Tensor that apply ops. The class Tensor adds the data, the graph and `apply`."""

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
        """y = x + other, elementwise."""
        return self.apply(pointwise.Add, self, other)

    def __sub__(self, other: Any) -> "Tensor":
        """y = x - other, elementwise."""
        return self.apply(pointwise.Sub, self, other)

    def __mul__(self, other: Any) -> "Tensor":
        """y = x · other, elementwise."""
        return self.apply(pointwise.Mul, self, other)

    def __truediv__(self, other: Any) -> "Tensor":
        """y = x / other, elementwise. Integers give float32."""
        return self.apply(pointwise.Div, self, other)

    def __pow__(self, other: Any) -> "Tensor":
        """y = x ** other, elementwise."""
        return self.apply(pointwise.Pow, self, other)

    def __matmul__(self, other: Any) -> "Tensor":
        """The matrix product over the last two axes; the others broadcast. A 1-D x is a row, a 1-D `other` a column."""
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
        """y = -x, elementwise."""
        return self.apply(pointwise.Neg, self)

    def __abs__(self) -> "Tensor":
        """y = |x|, elementwise."""
        return self.apply(pointwise.Abs, self)

    add, sub, mul, div, pow, neg, abs, matmul = (
        __add__, __sub__, __mul__, __truediv__, __pow__, __neg__, __abs__, __matmul__,
    )  # fmt: skip

    # In place: `x += y` changes the Tensor itself, so every reference to the Tensor sees the new values --------------

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

    # Comparisons and bitwise operators: no gradient ------------------------------------------------------------------

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
        """`compare` of both operands, promoted to one dtype. A Python integer out of the dtype's range is exact."""
        x, y = self.data, raw(other)
        if getattr(y, "dtype", None) != x.dtype:
            x, y = promote([x, y])
            if isinstance(y, int) and x.dtype.kind in "iu" and not is_held(y, x.dtype):
                x = x.astype(np.int64)  # so that CuPy too compares correctly
        return self.constant(compare(x, y))

    def _bitwise(self, combine: Callable[[Any, Any], Any], other: Any) -> "Tensor":
        """`combine` of both operands, promoted to one dtype."""
        return self.constant(combine(*promote_and_wrap([self.data, raw(other)])))

    def __contains__(self, value: Any) -> bool:
        return bool((self == value).data.any())

    __hash__ = object.__hash__  # by identity, as a dictionary key, although == compares elements

    def argmax(self, dim: int | None = None, keepdim: bool = False) -> "Tensor":
        """The index of the maximum along `dim`, the first if several are equal, as int64.

        dim=None: the index in the flattened tensor. keepdim: keep `dim` with size 1. An empty `dim` is a ValueError.
        """
        axis = None if dim is None else checks.one_axis(dim, self.ndim, "argmax")
        if (self.data.size if axis is None or not self.ndim else self.shape[axis]) == 0:
            raise ValueError(f"argmax: needs at least one value, got dim {dim} of shape {self.shape}")
        return self.constant(self.data.argmax(axis=axis if self.ndim else None, keepdims=keepdim))

    def isfinite(self) -> "Tensor":
        """True where an element is neither infinite nor NaN, as bool."""
        return self.constant(abs(self.data) < np.inf)

    # Elementwise ----------------------------------------------------------------------------------------------------

    def exp(self) -> "Tensor":
        """y = eˣ, elementwise. Integers give float32."""
        return self.apply(pointwise.Exp, self)

    def log(self) -> "Tensor":
        """y = ln x, the natural logarithm, elementwise. Integers give float32."""
        return self.apply(pointwise.Log, self)

    def sqrt(self) -> "Tensor":
        """y = √x, elementwise. Integers give float32."""
        return self.apply(pointwise.Sqrt, self)

    def tanh(self) -> "Tensor":
        """y = tanh x, elementwise. Integers give float32."""
        return self.apply(pointwise.Tanh, self)

    def sigmoid(self) -> "Tensor":
        """y = 1 / (1 + e⁻ˣ), elementwise. Integers give float32."""
        return self.apply(pointwise.Sigmoid, self)

    def erf(self) -> "Tensor":
        """The error function y = 2/√π · ∫₀ˣ exp(-t²) dt, elementwise. Integers give float32."""
        return self.apply(pointwise.Erf, self)

    def maximum(self, other: Any) -> "Tensor":
        """y = max(x, other), elementwise; NaN if either is NaN. Equal elements share the gradient."""
        return self.apply(pointwise.Maximum, self, other)

    def minimum(self, other: Any) -> "Tensor":
        """y = min(x, other), elementwise; NaN if either is NaN. Equal elements share the gradient."""
        return self.apply(pointwise.Minimum, self, other)

    def clamp(self, min: Number | None = None, max: Number | None = None) -> "Tensor":
        """y = min(max(x, `min`), `max`), elementwise. None: no limit; give `min`, `max` or both."""
        if isinstance(min, Methods) or isinstance(max, Methods):
            raise TypeError("clamp: min and max must be numbers; for tensors write x.maximum(low).minimum(high)")
        return self.apply(pointwise.Clamp, self, min=min, max=max)

    def masked_fill(self, mask: Any, value: "Number | Tensor") -> "Tensor":
        """y = `value` where `mask` (bool, broadcasts) is True, else x.

        The dtype of x must hold a number; a Tensor `value` promotes the dtype.
        """
        if isinstance(value, Methods):  # Where has a gradient for the value
            return self.apply(pointwise.Where, raw(mask), value, self)
        return self.apply(indexing.MaskedFill, self, mask=raw_array(mask, "mask", "masked_fill"), value=value)

    # Reductions -----------------------------------------------------------------------------------------------------

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

    # Shapes ---------------------------------------------------------------------------------------------------------

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

    def permute(self, *dims: Any) -> "Tensor":
        """Permute the axes, as a view: axis i of the result is axis `dims[i]`."""
        return self.apply(shapes.Permute, self, axes=sequence(dims))

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

    def expand(self, *sizes: Any) -> "Tensor":
        """Broadcast to `sizes`, as a view: only axes of size 1 and new leading axes are expanded; -1 keeps a size."""
        return self.apply(shapes.Expand, self, shape=sequence(sizes))

    def squeeze(self, dim: Dim = None) -> "Tensor":
        """Remove axes of size 1: all, or only axes in `dim`; other axes are kept."""
        named = checks.axes(dim, self.ndim, "squeeze")
        return self.reshape([size for i, size in enumerate(self.shape) if i not in named or size != 1])

    def unsqueeze(self, dim: int) -> "Tensor":
        """Insert an axis of size 1 at position `dim`."""
        dim = checks.one_axis(dim, self.ndim + 1, "unsqueeze")
        return self.reshape(*self.shape[:dim], 1, *self.shape[dim:])

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

    def chunk(self, chunks: int, dim: int = 0) -> tuple["Tensor", ...]:
        """Split the tensor along `dim` into at most `chunks` views of equal size; the last may be smaller."""
        if (chunks := checks.integer(chunks, "chunks", "chunk")) < 1:
            raise ValueError(f"chunk: chunks must be at least 1, got {chunks}")
        length = self.shape[checks.one_axis(dim, self.ndim, "chunk")] if self.ndim else 1
        return self.split(max(-(-length // chunks), 1), dim) if length else self.split([0] * chunks, dim)

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

    def flip(self, *dims: Any) -> "Tensor":
        """Reverse the order of the elements along `dims`, as a copy."""
        return self.apply(shapes.Flip, self, axes=sequence(dims))

    # Indexing -------------------------------------------------------------------------------------------------------

    def __getitem__(self, index: Any) -> "Tensor":
        """Index by slices, integers, None, Ellipsis, boolean masks and integer arrays, by NumPy's rules except one.

        An index with both integers and arrays applies the integers first, as in PyTorch: `x[0, :, [0, 1]]` is
        `x[0][:, [0, 1]]`. (NumPy would put the axis of the array first.)
        """
        steps = indexing.steps(raw_index(index, self.ndim))
        return self.apply(indexing.GetItem, self if len(steps) == 1 else self[steps[0]], index=steps[-1])

    def gather(self, dim: int, index: Any) -> "Tensor":
        """y[i, j, ..] = x[.., index[i, j, ..], ..], with the index at position `dim`.

        index: a tensor of integers with as many axes as x, no longer than x on any axis except `dim`. An index out of
        range is an IndexError (CPU only).
        """
        return self.apply(indexing.Gather, self, axis=dim, index=raw_array(index, "index", "gather"))

    def index_select(self, dim: int, index: Any) -> "Tensor":
        """The slices along `dim` at the positions `index`, a 1-D tensor of integers.

        An index out of range is an IndexError (CPU only).
        """
        return self.apply(indexing.IndexSelect, self, axis=dim, index=raw_array(index, "index", "index_select"))

    # Types and devices ----------------------------------------------------------------------------------------------

    def to(self, *targets: Any, dtype: Any = None, device: str | None = None) -> "Tensor":
        """The tensor in another dtype, on another device, or both: `x.to("cuda")`, `x.to("cuda", np.float16)`.

        Returns x itself if there is nothing to convert. Integers and booleans have no gradient.
        """
        dtype, device = target(*targets, dtype=dtype, device=device)
        dtype = self.dtype if dtype is None else dtype
        device = self.device if device is None else device
        if dtype == self.dtype and device == self.device:
            return self  # type: ignore[return-value]
        if not is_floating(dtype):
            return self.constant(to_device(self.data, device).astype(dtype, copy=False))  # without a gradient
        return self.apply(pointwise.Cast, self, dtype=dtype, device=device)

    def float(self) -> "Tensor":
        """`to(dtype=float32)`."""
        return self.to(dtype=np.float32)

    def double(self) -> "Tensor":
        """`to(dtype=float64)`."""
        return self.to(dtype=np.float64)

    def half(self) -> "Tensor":
        """`to(dtype=float16)`."""
        return self.to(dtype=np.float16)

    def bfloat16(self) -> "Tensor":
        """`to(dtype="bfloat16")`."""
        return self.to(dtype="bfloat16")

    def cpu(self) -> "Tensor":
        """`to("cpu")`."""
        return self.to(device="cpu")

    def cuda(self) -> "Tensor":
        """`to("cuda")`."""
        return self.to(device="cuda")


def target(*targets: Any, dtype: Any = None, device: str | None = None) -> tuple[np.dtype | None, str | None]:
    """The dtype and the device among the arguments of `to`, in any order, positional or by keyword; None if absent."""
    for given in targets:
        if isinstance(given, str) and given.partition(":")[0] in ("cpu", "cuda"):
            device = given
        else:
            dtype = given
    try:
        return None if dtype is None else as_dtype(dtype), device
    except TypeError:
        raise ValueError(f'to: needs a dtype, or a device "cpu" or "cuda", got {dtype!r}') from None


def raw(x: Any) -> Any:
    """The array of a Tensor; a NumPy scalar as a Python number, which never promotes an array; others by `plain`."""
    return x.data if isinstance(x, Methods) else x.item() if isinstance(x, np.generic) else plain(x)


def raw_array(x: Any, name: str, op: str) -> Any:
    """The array of a Tensor, or `x` itself if `x` is an array; else TypeError."""
    array = raw(x)
    if not hasattr(array, "dtype"):
        raise TypeError(f"{op}: {name} must be a Tensor or an array, got {type(x).__name__}; convert with Tensor(...)")
    return array


_BASIC = {int, slice, type(None), EllipsisType}


def raw_index(index: Any, ndim: int) -> Any:
    """The index of a tensor with `ndim` axes, in the form for the op GetItem: Tensors replaced by arrays.

    Arrays are copied, since the graph saves the index, and lists become arrays. A 0-d integer array becomes an integer,
    as in PyTorch.
    """
    if isinstance(index, tuple):
        parts = tuple(_raw_part(list(part) if isinstance(part, tuple) else part) for part in index)
        return _one_ellipsis(parts, ndim) if [type(part) for part in parts].count(EllipsisType) > 1 else parts
    return _raw_part(index)


def _raw_part(part: Any) -> Any:
    if type(part) in _BASIC:
        return part
    if isinstance(part, list):
        array = np.array(plain(part), dtype=None if part else np.intp)
        positions = array.dtype == np.uint8 and all(isinstance(value, np.generic) for value in part)
        part = array.astype(np.intp) if positions else array  # a list of np.uint8 scalars is not a mask
    if not isinstance(part, Methods | np.ndarray) and not hasattr(part, "__cuda_array_interface__"):
        return part
    array = raw(part)
    checks.unambiguous(array, "x[index]")
    return array.copy() if array.ndim or array.dtype.kind not in "iu" else array.item()


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


def sequence(sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """The sizes or axes of a call `f(2, 3)` or `f((2, 3))`, as a tuple of integers."""
    sizes = tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], Sequence) else sizes
    try:
        return tuple(map(operator.index, sizes))
    except TypeError:
        raise TypeError(f"sizes and axes must be integers, got {sizes}") from None
