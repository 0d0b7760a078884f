"""Extrema with indices, sort and topk: the values and the indices. The oracles sort lists of Python numbers."""

import numpy as np
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from minigrad.testing import arrays, shapes
from tests.cases.case import Call, Case, concatenated

GAP = 0.02


@st.composite
def calls_along_one_axis(draw, *, min_side=0, k=False, **options):
    x = draw(arrays(shapes(max_dims=3, min_side=min_side, max_side=4), gap=GAP))
    dim = draw(st.integers(-max(x.ndim, 1), max(x.ndim, 1) - 1))
    options = {name: draw(strategy) for name, strategy in options.items()}
    if k:
        options["k"] = draw(st.integers(0, x.shape[dim]) if x.ndim else st.just(1))
    return Call((x,), {"dim": dim, **options})


def both(result, cat, cast):
    """The values and the indices in one 1-D tensor."""
    values, indices = result
    return concatenated([values, cast(indices, values)], cat)


def in_minigrad(name):
    def run(x, **options):
        return both(getattr(Tensor, name)(x, **options), minigrad.cat, lambda i, x: i.to(dtype=x.dtype))

    return run


def in_torch(name):
    def run(torch, x, **options):
        return both(getattr(torch, name)(x, **options), torch.cat, lambda i, x: i.to(x.dtype))

    return run


def oracle(order):
    """`order(list, **options)` gives the selected positions of a list, for each list along `dim`."""

    def run(x, dim, keepdim=True, **options):
        rows = np.moveaxis(x, dim, -1) if x.ndim else x.reshape(1)
        positions = np.array(
            [order(row.tolist(), **options) for row in rows.reshape(-1, rows.shape[-1])] if rows.size else [], int
        )
        count = len(order(list(range(rows.shape[-1])), **options))
        positions = positions.reshape(*rows.shape[:-1], count)
        values = np.take_along_axis(rows, positions, -1)
        shape = () if not x.ndim else None
        moved = [a.reshape(shape) if shape == () else np.moveaxis(a, -1, dim) for a in (values, positions)]
        return concatenated([np.ascontiguousarray(a) for a in moved], np.concatenate)

    return run


def ascending(row, descending=False):
    return sorted(range(len(row)), key=row.__getitem__, reverse=descending)


def largest_k(row, k, largest=True):
    return ascending(row, largest)[:k]


KEEPDIM = {"keepdim": st.booleans(), "min_side": 1}

CASES = [
    Case(
        "max_dim", in_minigrad("max"), calls_along_one_axis(**KEEPDIM), oracle(lambda row: ascending(row)[-1:]),
        in_torch("max"),
    ),
    Case(
        "min_dim", in_minigrad("min"), calls_along_one_axis(**KEEPDIM), oracle(lambda row: ascending(row)[:1]),
        in_torch("min"),
    ),
    Case(
        "sort", in_minigrad("sort"), calls_along_one_axis(descending=st.booleans()), oracle(ascending), in_torch("sort")
    ),
    Case(
        "topk", in_minigrad("topk"), calls_along_one_axis(k=True, largest=st.booleans()), oracle(largest_k),
        in_torch("topk"),
    ),
]  # fmt: skip
