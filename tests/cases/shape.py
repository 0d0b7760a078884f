"""Shape ops. The oracles copy one element at a time."""

import math
from itertools import pairwise

import numpy as np
from hypothesis import strategies as st

import minigrad
import minigrad.functional as F
from minigrad import Tensor
from minigrad.testing import arrays, axes, broadcastable_shapes, shapes
from tests.cases.case import Call, Case, concatenated

SMALL = shapes(max_dims=3, max_side=4)
SOME_AXES = shapes(min_dims=1, max_dims=3, max_side=4)


def draw_axis(draw, ndim):
    return draw(st.integers(-max(ndim, 1), max(ndim, 1) - 1))


@st.composite
def reshape_calls(draw):
    """New shapes permute the sides, merge two sides, insert an axis of size 1, or give one side as -1."""
    x = draw(arrays(SMALL))
    sides = list(draw(st.permutations(x.shape)))
    if len(sides) > 1 and draw(st.booleans()):
        sides[:2] = [sides[0] * sides[1]]
    if draw(st.booleans()):
        sides.insert(draw(st.integers(0, len(sides))), 1)
    if sides and draw(st.booleans()):
        unknown = draw(st.integers(0, len(sides) - 1))
        if math.prod(sides[:unknown] + sides[unknown + 1 :]):
            sides[unknown] = -1
    return Call((x,), {"shape": tuple(sides)})


@st.composite
def flatten_calls(draw):
    x = draw(arrays(SMALL))
    if not x.ndim:
        return Call((x,))
    start, end = sorted([draw(st.integers(0, x.ndim - 1)), draw(st.integers(0, x.ndim - 1))])
    return Call((x,), {"start_dim": start - draw(st.sampled_from([0, x.ndim])), "end_dim": end})


@st.composite
def transpose_calls(draw):
    x = draw(arrays(SMALL))
    return Call((x,), {"dim0": draw_axis(draw, x.ndim), "dim1": draw_axis(draw, x.ndim)})


@st.composite
def permute_calls(draw):
    x = draw(arrays(SMALL))
    order = draw(st.permutations(range(x.ndim)))
    return Call((x,), {"dims": tuple(axis - draw(st.sampled_from([0, x.ndim])) for axis in order)})


@st.composite
def movedim_calls(draw):
    x = draw(arrays(shapes(min_dims=1, max_dims=4, max_side=3)))
    if draw(st.booleans()):
        return Call((x,), {"source": draw_axis(draw, x.ndim), "destination": draw_axis(draw, x.ndim)})
    count = draw(st.integers(1, x.ndim))
    source, destination = (tuple(draw(st.permutations(range(x.ndim)))[:count]) for _ in range(2))
    return Call((x,), {"source": source, "destination": destination})


@st.composite
def expand_calls(draw):
    old, new = draw(broadcastable_shapes(2, max_dims=3, max_side=4))
    size = list(np.broadcast_shapes(old, new))
    for axis in range(1, len(old) + 1):
        if old[-axis] == size[-axis] and draw(st.booleans()):
            size[-axis] = -1
    return Call((draw(arrays(old)),), {"size": tuple(size)})


@st.composite
def squeeze_calls(draw):
    x = draw(arrays(shapes(max_dims=4, max_side=2)))
    dim = draw(axes(x.ndim))
    return Call((x,), {} if dim is None else {"dim": dim})


@st.composite
def unsqueeze_calls(draw):
    x = draw(arrays(SMALL))
    return Call((x,), {"dim": draw(st.integers(-x.ndim - 1, x.ndim))})


@st.composite
def cat_calls(draw):
    """One to three arrays whose shapes differ in one axis at most."""
    shape = list(draw(SOME_AXES))
    dim, tensors = draw_axis(draw, len(shape)), []
    for _ in range(draw(st.integers(1, 3))):
        shape[dim] = draw(st.integers(0, 3))
        tensors.append(draw(arrays(tuple(shape))))
    return Call(tuple(tensors), {"dim": dim})


@st.composite
def stack_calls(draw):
    shape = draw(SMALL)
    tensors = tuple(draw(arrays(shape)) for _ in range(draw(st.integers(1, 3))))
    return Call(tensors, {"dim": draw(st.integers(-len(shape) - 1, len(shape)))})


@st.composite
def split_calls(draw):
    x = draw(arrays(SOME_AXES))
    dim = draw_axis(draw, x.ndim)
    size = draw(st.integers(1, 5))
    if draw(st.booleans()):
        cuts = sorted(draw(st.lists(st.integers(0, x.shape[dim]), max_size=2)))
        size = np.diff([0, *cuts, x.shape[dim]]).tolist()
    return Call((x,), {"split_size": size, "dim": dim})


@st.composite
def chunk_calls(draw):
    x = draw(arrays(SOME_AXES))
    return Call((x,), {"chunks": draw(st.integers(1, 5)), "dim": draw_axis(draw, x.ndim)})


@st.composite
def unbind_calls(draw):
    x = draw(arrays(shapes(min_dims=1, max_dims=3, min_side=1, max_side=4)))
    return Call((x,), {"dim": draw_axis(draw, x.ndim)})


@st.composite
def roll_calls(draw):
    x = draw(arrays(SOME_AXES))
    shift = st.integers(-7, 7)
    dim = draw(axes(x.ndim))
    if isinstance(dim, tuple):
        return Call((x,), {"shifts": tuple(draw(shift) for _ in dim), "dims": dim})
    return Call((x,), {"shifts": draw(shift)} | ({} if dim is None else {"dims": dim}))


@st.composite
def flip_calls(draw):
    x = draw(arrays(SOME_AXES))
    dim = draw(axes(x.ndim).filter(lambda dim: dim is not None))
    return Call((x,), {"dims": (dim,) if isinstance(dim, int) else dim})


@st.composite
def diagonal_calls(draw):
    x = draw(arrays(shapes(min_dims=2, max_dims=4, max_side=4)))
    dim1, dim2 = draw(st.permutations(range(-x.ndim, 0)))[:2]
    return Call((x,), {"offset": draw(st.integers(-4, 4)), "dim1": dim1, "dim2": dim2})


@st.composite
def repeat_calls(draw):
    x = draw(arrays(SMALL))
    count = max(x.ndim, 1) + draw(st.integers(0, 2))
    return Call((x,), {"sizes": tuple(draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)))})


@st.composite
def triangle_calls(draw):
    x = draw(arrays(shapes(min_dims=2, max_dims=4, max_side=4)))
    return Call((x,), {"diagonal": draw(st.integers(-5, 5))})


def naive_triangle(x, keep):
    y = np.zeros(x.shape, x.dtype)
    for row, column in np.ndindex(x.shape[-2:]):
        if keep(row, column):
            y[..., row, column] = x[..., row, column]
    return y


@st.composite
def constant_pad_calls(draw):
    x = draw(arrays(SMALL))
    widths = []
    for size in x.shape[::-1][: draw(st.integers(0, x.ndim))]:
        before = draw(st.integers(-size, 2))
        widths += [before, draw(st.integers(-size - min(before, 0), 2))]
    value = draw(st.sampled_from([{}, {"value": None}, {"mode": "constant", "value": 1.5}]))
    return Call((x,), {"pad": tuple(widths), **value})


@st.composite
def border_pad_calls(draw):
    """PyTorch pads the last 1, 2 or 3 axes, after one or two other axes."""
    mode, axes_padded = draw(st.sampled_from(["reflect", "replicate", "circular"])), draw(st.integers(1, 3))
    ndim = axes_padded + draw(st.integers(1, 2))
    x = draw(arrays(shapes(min_dims=ndim, max_dims=ndim, min_side=1, max_side=3)))
    widths = []
    for size in x.shape[: -axes_padded - 1 : -1]:
        max_width = {"reflect": size - 1, "circular": size, "replicate": 3}[mode]
        widths += [draw(st.integers(0, max_width)), draw(st.integers(0, max_width))]
    return Call((x,), {"pad": tuple(widths), "mode": mode})


def array_from(shape, source, x, default=0.0):
    """y[i] = x[source(i)] for each index i of the shape, or the default if source(i) is None."""
    y = np.full(shape, default)
    for i in np.ndindex(*shape):
        index = source(i)
        y[i] = default if index is None else x[tuple(index)]
    return y


def naive_flatten(x, start_dim=0, end_dim=-1):
    sizes = list(x.shape) or [1]
    start, end = start_dim % len(sizes), end_dim % len(sizes)
    return x.copy().reshape([*sizes[:start], math.prod(sizes[start : end + 1]), *sizes[end + 1 :]])


def naive_permute(x, dims):
    dims = [dim % x.ndim for dim in dims]
    return array_from([x.shape[d] for d in dims], lambda index: [index[dims.index(a)] for a in range(x.ndim)], x)


def naive_transpose(x, dim0, dim1):
    order = list(range(x.ndim))
    if order:
        order[dim0], order[dim1] = order[dim1], order[dim0]
    return naive_permute(x, order)


def naive_movedim(x, source, destination):
    new, old = ([d % x.ndim for d in ((dims,) if isinstance(dims, int) else dims)] for dims in (destination, source))
    others = iter(axis for axis in range(x.ndim) if axis not in old)
    return naive_permute(x, [old[new.index(axis)] if axis in new else next(others) for axis in range(x.ndim)])


def naive_expand(x, size):
    added = len(size) - x.ndim
    sizes = [x.shape[axis - added] if s == -1 else s for axis, s in enumerate(size)]
    return array_from(sizes, lambda index: [0 if n == 1 else i for i, n in zip(index[added:], x.shape, strict=True)], x)


def naive_squeeze(x, dim=None):
    dims = range(x.ndim) if dim is None else [d % x.ndim for d in ((dim,) if isinstance(dim, int) else dim)]
    return x.copy().reshape([n for axis, n in enumerate(x.shape) if n != 1 or axis not in dims])


def split_at_sizes(x, split_size, dim):
    return [x.take(range(a, b), axis=dim) for a, b in pairwise(np.cumsum([0, *split_size]))]


def naive_split(x, split_size, dim):
    n = x.shape[dim]
    if isinstance(split_size, int):
        split_size = [min(split_size, n - start) for start in range(0, n, split_size)] or [0]
    return concatenated(split_at_sizes(x, split_size, dim), np.concatenate)


def naive_chunk(x, chunks, dim):
    """PyTorch's rule: chunks of size ⌈n / chunks⌉, perhaps fewer than `chunks`; for n = 0, `chunks` empty chunks."""
    n = x.shape[dim]
    return naive_split(x, math.ceil(n / chunks) if n else [0] * chunks, dim)


def naive_roll(x, shifts, dims=None):
    if dims is None:
        return naive_roll(x.reshape(-1), shifts, 0).reshape(x.shape)
    dims, shifts = (v if isinstance(v, tuple) else (v,) for v in (dims, shifts))
    shift_of = {dim % x.ndim: shift for dim, shift in zip(dims, shifts, strict=True)}
    return array_from(x.shape, lambda index: [(i - shift_of.get(a, 0)) % x.shape[a] for a, i in enumerate(index)], x)


def naive_flip(x, dims):
    dims = [d % x.ndim for d in dims]
    return array_from(x.shape, lambda index: [x.shape[a] - 1 - i if a in dims else i for a, i in enumerate(index)], x)


def naive_diagonal(x, offset, dim1, dim2):
    x = np.moveaxis(x, (dim1, dim2), (-2, -1))
    *batch, M, N = x.shape
    places = [(i, i + offset) for i in range(M) if 0 <= i + offset < N]
    return np.stack([x[..., i, j] for i, j in places], axis=-1) if places else x[..., 0:0].reshape(*batch, 0)


def naive_pad(x, pad, mode="constant", value=None):
    before = [0] * x.ndim
    sizes = list(x.shape)
    for k in range(len(pad) // 2):
        before[-1 - k] = pad[2 * k]
        sizes[-1 - k] += pad[2 * k] + pad[2 * k + 1]

    def border_index(i, n):
        if mode == "circular":
            return i % n
        if mode == "replicate":
            return min(max(i, 0), n - 1)
        return -i if i < 0 else 2 * (n - 1) - i if i >= n else i

    def source(index):
        index = [i - b for i, b in zip(index, before, strict=True)]
        if mode != "constant":
            return [border_index(i, n) for i, n in zip(index, x.shape, strict=True)]
        return index if all(0 <= i < n for i, n in zip(index, x.shape, strict=True)) else None

    return array_from(sizes, source, x, 0.0 if value is None else value)


CASES = [
    Case(
        name="reshape",
        run=lambda x, shape: x.reshape(shape),
        calls=reshape_calls(),
        oracle=lambda x, shape: x.copy().reshape(shape),
        torch=lambda torch, x, shape: x.reshape(shape),
    ),
    Case(
        name="flatten",
        run=Tensor.flatten,
        calls=flatten_calls(),
        oracle=naive_flatten,
        torch=lambda torch, x, **options: torch.flatten(x, **options),
    ),
    Case(
        name="transpose",
        run=Tensor.transpose,
        calls=transpose_calls(),
        oracle=naive_transpose,
        torch=lambda torch, x, dim0, dim1: x.transpose(dim0, dim1),
    ),
    Case(
        name="permute",
        run=lambda x, dims: x.permute(*dims),
        calls=permute_calls(),
        oracle=naive_permute,
        torch=lambda torch, x, dims: x.permute(dims),
    ),
    Case(
        name="movedim",
        run=Tensor.movedim,
        calls=movedim_calls(),
        oracle=naive_movedim,
        torch=lambda torch, x, source, destination: x.movedim(source, destination),
    ),
    Case(
        name="expand",
        run=lambda x, size: x.expand(*size),
        calls=expand_calls(),
        oracle=naive_expand,
        torch=lambda torch, x, size: x.expand(size),
    ),
    Case(
        name="squeeze",
        run=Tensor.squeeze,
        calls=squeeze_calls(),
        oracle=naive_squeeze,
        torch=lambda torch, x, **options: x.squeeze(**options),
    ),
    Case(
        name="unsqueeze",
        run=Tensor.unsqueeze,
        calls=unsqueeze_calls(),
        oracle=lambda x, dim: np.expand_dims(x, dim),
        torch=lambda torch, x, dim: x.unsqueeze(dim),
    ),
    Case(
        name="cat",
        run=lambda *xs, dim: minigrad.cat(xs, dim),
        calls=cat_calls(),
        oracle=lambda *xs, dim: np.concatenate(xs, dim),
        torch=lambda torch, *xs, dim: torch.cat(xs, dim),
    ),
    Case(
        name="stack",
        run=lambda *xs, dim: minigrad.stack(xs, dim),
        calls=stack_calls(),
        oracle=lambda *xs, dim: np.stack(xs, dim),
        torch=lambda torch, *xs, dim: torch.stack(xs, dim),
    ),
    Case(
        name="split",
        run=lambda x, **options: concatenated(x.split(**options), minigrad.cat),
        calls=split_calls(),
        oracle=naive_split,
        torch=lambda torch, x, **options: concatenated(x.split(**options), torch.cat),
    ),
    Case(
        name="chunk",
        run=lambda x, **options: concatenated(x.chunk(**options), minigrad.cat),
        calls=chunk_calls(),
        oracle=naive_chunk,
        torch=lambda torch, x, **options: concatenated(x.chunk(**options), torch.cat),
    ),
    Case(
        name="unbind",
        run=lambda x, **options: concatenated(x.unbind(**options), minigrad.cat),
        calls=unbind_calls(),
        oracle=lambda x, dim: concatenated([x.take(i, axis=dim) for i in range(x.shape[dim])], np.concatenate),
        torch=lambda torch, x, **options: concatenated(x.unbind(**options), torch.cat),
    ),
    Case(
        name="roll",
        run=Tensor.roll,
        calls=roll_calls(),
        oracle=naive_roll,
        torch=lambda torch, x, **options: x.roll(**options),
    ),
    Case(
        name="flip",
        run=lambda x, dims: x.flip(*dims),
        calls=flip_calls(),
        oracle=naive_flip,
        torch=lambda torch, x, dims: x.flip(*dims),
    ),
    Case(
        name="diagonal",
        run=Tensor.diagonal,
        calls=diagonal_calls(),
        oracle=naive_diagonal,
        torch=lambda torch, x, **options: x.diagonal(**options),
    ),
    Case(
        name="clone",
        run=Tensor.clone,
        calls=arrays(SMALL).map(lambda x: Call((x,))),
        oracle=lambda x: x,
        torch=lambda torch, x: x.clone(),
    ),
    Case(
        name="contiguous",
        run=lambda x: Tensor.contiguous(x * 1),
        calls=arrays(SMALL).map(lambda x: Call((x,))),
        oracle=lambda x: x,
        torch=lambda torch, x: x.contiguous(),
        ops=2,
    ),
    Case(
        name="repeat",
        run=lambda x, sizes: x.repeat(*sizes),
        calls=repeat_calls(),
        oracle=lambda x, sizes: np.tile(x, sizes),
        torch=lambda torch, x, sizes: x.repeat(*sizes),
    ),
    Case(
        name="tril",
        run=Tensor.tril,
        calls=triangle_calls(),
        oracle=lambda x, diagonal: naive_triangle(x, lambda row, column: column - row <= diagonal),
        torch=lambda torch, x, diagonal: x.tril(diagonal),
    ),
    Case(
        name="triu",
        run=Tensor.triu,
        calls=triangle_calls(),
        oracle=lambda x, diagonal: naive_triangle(x, lambda row, column: column - row >= diagonal),
        torch=lambda torch, x, diagonal: x.triu(diagonal),
    ),
    Case(
        name="pad",
        run=F.pad,
        calls=constant_pad_calls() | border_pad_calls(),
        oracle=naive_pad,
        torch=lambda torch, x, **options: torch.nn.functional.pad(x, **options),
    ),
]
