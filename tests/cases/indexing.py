"""Ops that pick entries."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import basic_indices

from minigrad import Tensor
from minigrad.testing import arrays, broadcastable_shapes, shapes
from tests.cases.case import Call, Case

SMALL = shapes(min_dims=1, max_dims=3, min_side=1, max_side=4)
WHOLE = slice(None)


@st.composite
def basic(draw):
    """Integers, slices of any step, None and Ellipsis."""
    x = draw(arrays(shapes(max_dims=3, max_side=4)))
    return Call((x,), {"index": draw(basic_indices(x.shape, allow_newaxis=True, max_dims=5))})


@st.composite
def masks(draw):
    """One boolean array over the first axes, or over a later one behind slices."""
    x = draw(arrays(SMALL))
    first = draw(st.integers(0, x.ndim - 1))
    last = draw(st.integers(first + 1, x.ndim)) if first == 0 else first + 1
    mask = draw(arrays(x.shape[first:last], dtype=bool))
    return Call((x, mask), {"index": (WHOLE,) * first + ("array 0",) + draw(st.sampled_from([(), (...,)]))})


@st.composite
def integer_arrays(draw):
    """One to three arrays of integers that broadcast, next to each other or with slices, None or Ellipsis between."""
    x = draw(arrays(SMALL))
    chosen = sorted(draw(st.sets(st.integers(0, x.ndim - 1), min_size=1, max_size=x.ndim)))
    some = broadcastable_shapes(len(chosen), max_dims=2, min_side=draw(st.integers(0, 2)), max_side=4)
    drawn = draw(some.filter(all))  # a 0-d array is an index like any other for NumPy, but a number for PyTorch
    places = [
        draw(arrays(shape, dtype=np.int64, low=-x.shape[axis], high=x.shape[axis]))
        for axis, shape in zip(chosen, drawn, strict=True)
    ]
    parts = [draw(st.sampled_from([WHOLE, slice(1, None), slice(None, None, -1)])) for _ in x.shape]
    for number, axis in enumerate(chosen):
        parts[axis] = f"array {number}"
    if draw(st.booleans()):
        parts.insert(draw(st.integers(0, len(parts))), None)
    if draw(st.booleans()):
        # For an axis. One between two arrays that stands for none parts them in NumPy's eyes, and not in PyTorch's.
        whole = [i for i, part in enumerate(parts) if part == WHOLE]
        at = draw(st.sampled_from(whole or [len(parts)]))
        parts[at : at + 1] = [...]
    return Call((x, *places), {"index": tuple(parts)})


@st.composite
def gatherings(draw):
    x = draw(arrays(SMALL))
    dim = draw(st.integers(-x.ndim, x.ndim - 1))
    shape = [draw(st.integers(0, size)) for size in x.shape]
    shape[dim] = draw(st.integers(0, 5))
    return Call((x, draw(arrays(tuple(shape), dtype=np.int64, low=0, high=x.shape[dim]))), {"dim": dim})


@st.composite
def selections(draw):
    x = draw(arrays(SMALL))
    dim = draw(st.integers(-x.ndim, x.ndim - 1))
    index = draw(arrays((draw(st.integers(0, 6)),), dtype=np.int64, low=0, high=x.shape[dim]))
    return Call((x, index), {"dim": dim})


@st.composite
def fillings(draw):
    x = draw(arrays(shapes(max_dims=3, max_side=4)))
    mask_shape = [draw(st.sampled_from([1, size])) for size in x.shape][draw(st.integers(0, x.ndim)) :]
    value = draw(st.sampled_from([0.0, -1.5, 3]))
    return Call((x, draw(arrays(tuple(mask_shape), dtype=bool))), {"value": value})


def filled_in(index, places):
    """The index with arrays where it says "array 0", "array 1", ..."""
    if not isinstance(index, tuple):
        return index
    return tuple(places[int(part.split()[1])] if isinstance(part, str) else part for part in index)


def getitem_in_torch(torch, x, *places, index):
    """PyTorch has no negative steps: a flip, and the same entries in rising order."""
    index = index if isinstance(index, tuple) else (index,)
    axes_taken = [
        places[int(p.split()[1])].ndim if _is_mask(p, places) else int(p is not None and p is not ...) for p in index
    ]
    axis, parts = 0, []
    for part, taken in zip(index, axes_taken, strict=True):
        if part is ...:
            taken = x.ndim - sum(axes_taken)
        if isinstance(part, slice) and part.step is not None and part.step < 0:
            n, picked = x.shape[axis], range(*part.indices(x.shape[axis]))
            x, first = x.flip(axis), n - 1 - picked.start
            part = slice(first, first + len(picked) * -part.step, -part.step) if picked else slice(0, 0)
        parts.append(part)
        axis += taken
    return x[filled_in(tuple(parts), places)]


def _is_mask(part, places):
    return isinstance(part, str) and str(places[int(part.split()[1])].dtype) == "torch.bool"


def gathered(x, index, dim):
    y = np.empty(index.shape)
    for place in np.ndindex(index.shape):
        origin = list(place)
        origin[dim] = index[place]
        y[place] = x[tuple(origin)]
    return y


def selected(x, index, dim):
    parts = [np.moveaxis(x, dim, 0)[i] for i in index]
    empty = np.moveaxis(x, dim, 0)[:0]
    return np.moveaxis(np.stack(parts) if parts else empty, 0, dim)


def getitem(name, calls):
    return Case(
        name=name,
        run=lambda x, *places, index: x[filled_in(index, places)],
        calls=calls,
        oracle=lambda x, *places, index: x[filled_in(index, places)],  # NumPy's rules are the definition
        torch=getitem_in_torch,
    )


CASES = [
    getitem("getitem_slices", basic()),
    getitem("getitem_masks", masks()),
    getitem("getitem_arrays", integer_arrays()),
    Case(
        name="gather",
        run=lambda x, index, dim: x.gather(dim, index),
        calls=gatherings(),
        oracle=gathered,
        torch=lambda torch, x, index, dim: x.gather(dim, index),
    ),
    Case(
        name="index_select",
        run=lambda x, index, dim: x.index_select(dim, index),
        calls=selections(),
        oracle=selected,
        torch=lambda torch, x, index, dim: x.index_select(dim, index),
    ),
    Case(
        name="masked_fill",
        run=Tensor.masked_fill,
        calls=fillings(),
        oracle=lambda x, mask, value: np.where(mask, float(value), x),
        torch=lambda torch, x, mask, value: x.masked_fill(mask, value),
    ),
]
