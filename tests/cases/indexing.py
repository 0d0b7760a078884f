"""Indexing: getitem, gather, scatter, embedding, index_select, masked_fill."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import basic_indices

import minigrad.functional as F
from minigrad import Tensor
from minigrad.testing import arrays, broadcastable_shapes, shapes
from tests.cases.case import Call, Case, torch_functional

SMALL = shapes(min_dims=1, max_dims=3, min_side=1, max_side=4)
FULL_SLICE = slice(None)


@st.composite
def basic_index_calls(draw):
    """Indices of integers, slices with any step, None and Ellipsis."""
    x = draw(arrays(shapes(max_dims=3, max_side=4)))
    return Call((x,), {"index": draw(basic_indices(x.shape, allow_newaxis=True, max_dims=5))})


@st.composite
def mask_calls(draw):
    """Indices with one boolean array, which indexes the first axes or, after slices, one later axis."""
    x = draw(arrays(SMALL))
    first = draw(st.integers(0, x.ndim - 1))
    last = draw(st.integers(first + 1, x.ndim)) if first == 0 else first + 1
    mask = draw(arrays(x.shape[first:last], dtype=bool))
    return Call((x, mask), {"index": (FULL_SLICE,) * first + ("array 0",) + draw(st.sampled_from([(), (...,)]))})


@st.composite
def integer_array_calls(draw):
    """Indices with one to three integer arrays that broadcast, adjacent or separated by slices, None or Ellipsis."""
    x = draw(arrays(SMALL))
    indexed_axes = sorted(draw(st.sets(st.integers(0, x.ndim - 1), min_size=1, max_size=x.ndim)))
    index_shapes = broadcastable_shapes(len(indexed_axes), max_dims=2, min_side=draw(st.integers(0, 2)), max_side=4)
    drawn_shapes = draw(index_shapes.filter(all))  # without 0-d arrays: for PyTorch they are integers, not index arrays
    index_arrays = [
        draw(arrays(shape, dtype=np.int64, low=-x.shape[axis], high=x.shape[axis]))
        for axis, shape in zip(indexed_axes, drawn_shapes, strict=True)
    ]
    parts = [draw(st.sampled_from([FULL_SLICE, slice(1, None), slice(None, None, -1)])) for _ in x.shape]
    for number, axis in enumerate(indexed_axes):
        parts[axis] = f"array {number}"
    if draw(st.booleans()):
        parts.insert(draw(st.integers(0, len(parts))), None)
    if draw(st.booleans()):
        # The Ellipsis replaces a slice: for NumPy, but not for PyTorch, an empty Ellipsis separates two index arrays.
        full_slices = [i for i, part in enumerate(parts) if part == FULL_SLICE]
        at = draw(st.sampled_from(full_slices or [len(parts)]))
        parts[at : at + 1] = [...]
    return Call((x, *index_arrays), {"index": tuple(parts)})


@st.composite
def gather_calls(draw):
    x = draw(arrays(SMALL))
    dim = draw(st.integers(-x.ndim, x.ndim - 1))
    shape = [draw(st.integers(0, size)) for size in x.shape]
    shape[dim] = draw(st.integers(0, 5))
    return Call((x, draw(arrays(tuple(shape), dtype=np.int64, low=0, high=x.shape[dim]))), {"dim": dim})


@st.composite
def index_select_calls(draw):
    x = draw(arrays(SMALL))
    dim = draw(st.integers(-x.ndim, x.ndim - 1))
    index = draw(arrays((draw(st.integers(0, 6)),), dtype=np.int64, low=0, high=x.shape[dim]))
    return Call((x, index), {"dim": dim})


@st.composite
def scatter_calls(draw, *, duplicates, number=False):
    """`src` is on some axes longer than the index. Without duplicates, no element is written twice."""
    x = draw(arrays(SMALL))
    dim = draw(st.integers(-x.ndim, x.ndim - 1))
    shape = [draw(st.integers(0, size)) for size in x.shape]
    if duplicates:
        shape[dim] = draw(st.integers(0, 5))
        index = draw(arrays(tuple(shape), dtype=np.int64, low=0, high=x.shape[dim]))
    else:
        order = draw(arrays(x.shape)).argsort(axis=dim)
        index = order[tuple(slice(n) for n in shape)]
    if number:
        return Call((x, index), {"dim": dim, "value": draw(st.sampled_from([0.0, -1.5, 3]))})
    src = draw(arrays(tuple(n + draw(st.integers(0, 1)) for n in shape)))
    return Call((x, index, src), {"dim": dim})


@st.composite
def embedding_calls(draw):
    rows = draw(st.integers(1, 5))
    weight = draw(arrays((rows, draw(st.integers(0, 3)))))
    return Call((draw(arrays(shapes(max_dims=2, max_side=4), dtype=np.int64, low=0, high=rows)), weight))


@st.composite
def masked_fill_calls(draw):
    x = draw(arrays(shapes(max_dims=3, max_side=4)))
    mask_shape = [draw(st.sampled_from([1, size])) for size in x.shape][draw(st.integers(0, x.ndim)) :]
    value = draw(st.sampled_from([0.0, -1.5, 3]))
    return Call((x, draw(arrays(tuple(mask_shape), dtype=bool))), {"value": value})


def with_arrays(index, index_arrays):
    """The index, with the strings "array 0", "array 1", ... replaced by the arrays."""
    if not isinstance(index, tuple):
        return index
    return tuple(index_arrays[int(part.split()[1])] if isinstance(part, str) else part for part in index)


def getitem_in_torch(torch, x, *index_arrays, index):
    """PyTorch has no slices with negative steps: flip the axis, then select the same elements with a positive step."""
    index = index if isinstance(index, tuple) else (index,)
    axes_per_part = [
        index_arrays[int(p.split()[1])].ndim if _is_mask(p, index_arrays) else int(p is not None and p is not ...)
        for p in index
    ]
    axis, parts = 0, []
    for part, count in zip(index, axes_per_part, strict=True):
        if part is ...:
            count = x.ndim - sum(axes_per_part)
        if isinstance(part, slice) and part.step is not None and part.step < 0:
            n, picked = x.shape[axis], range(*part.indices(x.shape[axis]))
            x, first = x.flip(axis), n - 1 - picked.start
            part = slice(first, first + len(picked) * -part.step, -part.step) if picked else slice(0, 0)
        parts.append(part)
        axis += count
    return x[with_arrays(tuple(parts), index_arrays)]


def _is_mask(part, index_arrays):
    return isinstance(part, str) and str(index_arrays[int(part.split()[1])].dtype) == "torch.bool"


def naive_gather(x, index, dim):
    y = np.empty(index.shape)
    for position in np.ndindex(index.shape):
        source = list(position)
        source[dim] = index[position]
        y[position] = x[tuple(source)]
    return y


def naive_scatter(x, index, src, dim, add=False):
    y = x.copy()
    for position in np.ndindex(index.shape):
        target = list(position)
        target[dim] = index[position]
        y[tuple(target)] = src[position] + (y[tuple(target)] if add else 0)
    return y


def used(index, src):
    """The part of src that scatter reads: in PyTorch, backward needs src in the shape of the index."""
    return src[tuple(slice(n) for n in index.shape)]


def naive_index_select(x, index, dim):
    parts = [np.moveaxis(x, dim, 0)[i] for i in index]
    empty = np.moveaxis(x, dim, 0)[:0]
    return np.moveaxis(np.stack(parts) if parts else empty, 0, dim)


def getitem(name, calls):
    return Case(
        name=name,
        run=lambda x, *index_arrays, index: x[with_arrays(index, index_arrays)],
        calls=calls,
        oracle=lambda x, *index_arrays, index: x[with_arrays(index, index_arrays)],  # NumPy's rules are the definition
        torch=getitem_in_torch,
    )


CASES = [
    getitem("getitem_slices", basic_index_calls()),
    getitem("getitem_masks", mask_calls()),
    getitem("getitem_arrays", integer_array_calls()),
    Case(
        name="gather",
        run=lambda x, index, dim: x.gather(dim, index),
        calls=gather_calls(),
        oracle=naive_gather,
        torch=lambda torch, x, index, dim: x.gather(dim, index),
    ),
    Case(
        name="scatter",
        run=lambda x, index, src, dim: x.scatter(dim, index, src),
        calls=scatter_calls(duplicates=False),
        oracle=naive_scatter,
        torch=lambda torch, x, index, src, dim: x.scatter(dim, index, used(index, src)),
    ),
    Case(
        name="scatter_number",
        run=lambda x, index, dim, value: x.scatter(dim, index, value),
        calls=scatter_calls(duplicates=True, number=True),
        oracle=lambda x, index, dim, value: naive_scatter(x, index, np.full(index.shape, value), dim),
        torch=lambda torch, x, index, dim, value: x.scatter(dim, index, value),
    ),
    Case(
        name="scatter_add",
        run=lambda x, index, src, dim: x.scatter_add(dim, index, src),
        calls=scatter_calls(duplicates=True),
        oracle=lambda x, index, src, dim: naive_scatter(x, index, src, dim, add=True),
        torch=lambda torch, x, index, src, dim: x.scatter_add(dim, index, used(index, src)),
    ),
    Case(
        name="embedding",
        run=F.embedding,
        calls=embedding_calls(),
        oracle=lambda index, weight: np.reshape([weight[i] for i in index.flat], (*index.shape, weight.shape[1])),
        torch=torch_functional("embedding"),
    ),
    Case(
        name="index_select",
        run=lambda x, index, dim: x.index_select(dim, index),
        calls=index_select_calls(),
        oracle=naive_index_select,
        torch=lambda torch, x, index, dim: x.index_select(dim, index),
    ),
    Case(
        name="masked_fill",
        run=Tensor.masked_fill,
        calls=masked_fill_calls(),
        oracle=lambda x, mask, value: np.where(mask, float(value), x),
        torch=lambda torch, x, mask, value: x.masked_fill(mask, value),
    ),
]
