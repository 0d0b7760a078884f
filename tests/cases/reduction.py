"""Ops that fold axes. The oracles walk over plain lists of numbers."""

import math
from functools import partial

import numpy as np
from hypothesis import strategies as st

from minigrad import Tensor
from minigrad.testing import arrays, axes, shapes
from tests.cases.case import Call, Case

GAP = 0.01


@st.composite
def reductions(draw, *, gap=0.0, least=0, max_side=4, dim_needed=False, **more):
    """An array and dims; with `least`, that many values at least are folded, though other axes may be empty."""
    shape = list(draw(shapes(max_dims=3, max_side=max_side)))
    dim = draw(axes(len(shape)).filter(lambda dim: dim is not None or not dim_needed))
    for axis in range(len(shape)) if dim is None else (dim,) if isinstance(dim, int) else dim:
        shape[axis] = max(shape[axis], least)
    options = {"dim": dim, "keepdim": draw(st.booleans())}
    options |= {name: draw(choice) for name, choice in more.items()}
    return Call((draw(arrays(tuple(shape), gap=gap)),), options)


@st.composite
def cumulations(draw):
    x = draw(arrays(shapes(max_dims=3)))
    size = max(x.ndim, 1)
    return Call((x,), {"dim": draw(st.integers(-size, size - 1))})


def folded(fold, x, dim, keepdim, **options):
    """`fold` applied to the list of numbers that share a place on the axes which stay."""
    gone = set(range(x.ndim)) if dim is None else {d % x.ndim for d in ((dim,) if isinstance(dim, int) else dim)}
    y = np.empty([1 if axis in gone else size for axis, size in enumerate(x.shape)])
    for place in np.ndindex(y.shape):
        y[place] = fold(
            x[tuple(slice(None) if a in gone else i for a, i in enumerate(place))].ravel().tolist(), **options
        )
    return y if keepdim else y.reshape([size for axis, size in enumerate(x.shape) if axis not in gone])


def mean(values):
    return math.fsum(values) / len(values)


def var(values, correction=1):
    return math.fsum((value - mean(values)) ** 2 for value in values) / (len(values) - correction)


def running_sum(x, dim):
    y = x.copy()
    for place in np.ndindex(x.shape):
        before = list(place)
        if x.ndim and place[dim]:
            before[dim] -= 1
            y[place] += y[tuple(before)]
    return y


def torch_prod(torch, x, dim, keepdim):
    """PyTorch's takes one dim at a time."""
    dims = list(range(x.ndim)) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    for axis in sorted((d % x.ndim for d in dims), reverse=True):
        x = x.prod(axis, keepdim)
    return x


def torch_extremum(name, torch, x, dim, keepdim):
    return getattr(torch, name)(x, () if dim is None else dim, keepdim)


def same_in_torch(name, torch, x, **options):
    return getattr(torch, name)(x, **options)


def reduction(name, fold, calls, in_torch=None):
    return Case(name, getattr(Tensor, name), calls, partial(folded, fold), in_torch or partial(same_in_torch, name))


SPREAD = {"gap": GAP, "least": 2, "correction": st.sampled_from([0, 1])}

CASES = [
    reduction("sum", math.fsum, reductions()),
    reduction("mean", mean, reductions(least=1)),
    reduction("var", var, reductions(**SPREAD).filter(lambda call: call.inputs[0].ndim)),
    reduction(
        "std",
        lambda values, **c: math.sqrt(var(values, **c)),
        reductions(**SPREAD).filter(lambda call: call.inputs[0].ndim),
    ),
    reduction("amax", max, reductions(gap=GAP, least=1), partial(torch_extremum, "amax")),
    reduction("amin", min, reductions(gap=GAP, least=1), partial(torch_extremum, "amin")),
    reduction("prod", math.prod, reductions(max_side=3), torch_prod),
    reduction(
        "logsumexp",
        lambda values: math.log(math.fsum(map(math.exp, values))),
        reductions(least=1, dim_needed=True),
    ),
    Case("cumsum", Tensor.cumsum, cumulations(), running_sum, partial(same_in_torch, "cumsum")),
]
