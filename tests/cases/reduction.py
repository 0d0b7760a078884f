"""Reductions and cumsum. The oracles reduce lists of Python numbers."""

import math
from functools import partial

import numpy as np
from hypothesis import strategies as st

from minigrad import Tensor
from minigrad.testing import arrays, axes, shapes
from tests.cases.case import Call, Case

GAP = 0.01


@st.composite
def reduction_calls(draw, *, gap=0.0, min_side=0, max_side=4, dim_required=False, **more):
    """An array and `dim`. The reduced axes have at least `min_side` elements; other axes may be empty."""
    shape = list(draw(shapes(max_dims=3, max_side=max_side)))
    dim = draw(axes(len(shape)).filter(lambda dim: dim is not None or not dim_required))
    for axis in range(len(shape)) if dim is None else (dim,) if isinstance(dim, int) else dim:
        shape[axis] = max(shape[axis], min_side)
    options = {"dim": dim, "keepdim": draw(st.booleans())}
    options |= {name: draw(strategy) for name, strategy in more.items()}
    return Call((draw(arrays(tuple(shape), gap=gap)),), options)


@st.composite
def cumsum_calls(draw):
    x = draw(arrays(shapes(max_dims=3)))
    size = max(x.ndim, 1)
    return Call((x,), {"dim": draw(st.integers(-size, size - 1))})


@st.composite
def cumprod_calls(draw):
    """Some elements are 0."""
    call = draw(cumsum_calls())
    zeros = draw(st.sampled_from([0, 0, 1, 3]))
    x = call.inputs[0]
    x.reshape(-1)[: min(zeros, x.size)] = 0  # x itself, if its layout allows a view
    return call


@st.composite
def norm_calls(draw):
    p = draw(st.sampled_from(["fro", 2, 1, 3, 1.5, 0.5, -1, math.inf, -math.inf]))
    call = draw(reduction_calls(gap=GAP, min_side=1))
    x = call.inputs[0]
    positive = abs(x) + 0.1  # extrema of |x| are unique, and no gradient is large
    return Call((positive,), {"p": p, **call.options})


def naive_reduce(reduce, x, dim, keepdim, **options):
    """`reduce` of the list of elements along the reduced axes, for each index of the other axes."""
    reduced = set(range(x.ndim)) if dim is None else {d % x.ndim for d in ((dim,) if isinstance(dim, int) else dim)}
    y = np.empty([1 if axis in reduced else size for axis, size in enumerate(x.shape)])
    for index in np.ndindex(y.shape):
        y[index] = reduce(
            x[tuple(slice(None) if a in reduced else i for a, i in enumerate(index))].ravel().tolist(), **options
        )
    return y if keepdim else y.reshape([size for axis, size in enumerate(x.shape) if axis not in reduced])


def mean(values):
    return math.fsum(values) / len(values)


def var(values, correction=1):
    return math.fsum((value - mean(values)) ** 2 for value in values) / (len(values) - correction)


def norm(values, p):
    if abs(p if p != "fro" else 2) == math.inf:
        return max(map(abs, values)) if p > 0 else min(map(abs, values))
    p = 2 if p == "fro" else p
    return math.fsum(abs(value) ** p for value in values) ** (1 / p)


def naive_cumprod(x, dim):
    y = x.copy()
    for index in np.ndindex(x.shape):
        previous = list(index)
        if x.ndim and index[dim]:
            previous[dim] -= 1
            y[index] *= y[tuple(previous)]
    return y


def naive_cumsum(x, dim):
    y = x.copy()
    for index in np.ndindex(x.shape):
        previous = list(index)
        if x.ndim and index[dim]:
            previous[dim] -= 1
            y[index] += y[tuple(previous)]
    return y


def torch_prod(torch, x, dim, keepdim):
    """PyTorch's prod reduces one dim at a time."""
    dims = list(range(x.ndim)) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    for axis in sorted((d % x.ndim for d in dims), reverse=True):
        x = x.prod(axis, keepdim)
    return x


def torch_amax_or_amin(name, torch, x, dim, keepdim):
    return getattr(torch, name)(x, () if dim is None else dim, keepdim)


def torch_norm(torch, x, p, dim, keepdim):
    return torch.linalg.vector_norm(x, 2 if p == "fro" else p, dim, keepdim)


def same_in_torch(name, torch, x, **options):
    return getattr(torch, name)(x, **options)


def reduction(name, reduce, calls, in_torch=None):
    return Case(
        name, getattr(Tensor, name), calls, partial(naive_reduce, reduce), in_torch or partial(same_in_torch, name)
    )


VARIANCE = {"gap": GAP, "min_side": 2, "correction": st.sampled_from([0, 1])}

CASES = [
    reduction("sum", math.fsum, reduction_calls()),
    reduction("mean", mean, reduction_calls(min_side=1)),
    reduction("var", var, reduction_calls(**VARIANCE).filter(lambda call: call.inputs[0].ndim)),
    reduction(
        "std",
        lambda values, **c: math.sqrt(var(values, **c)),
        reduction_calls(**VARIANCE).filter(lambda call: call.inputs[0].ndim),
    ),
    reduction("amax", max, reduction_calls(gap=GAP, min_side=1), partial(torch_amax_or_amin, "amax")),
    reduction("amin", min, reduction_calls(gap=GAP, min_side=1), partial(torch_amax_or_amin, "amin")),
    reduction("prod", math.prod, reduction_calls(max_side=3), torch_prod),
    reduction(
        "logsumexp",
        lambda values: math.log(math.fsum(map(math.exp, values))),
        reduction_calls(min_side=1, dim_required=True),
    ),
    Case("norm", Tensor.norm, norm_calls(), partial(naive_reduce, norm), torch_norm),
    Case("cumprod", Tensor.cumprod, cumprod_calls(), naive_cumprod, partial(same_in_torch, "cumprod")),
    Case("cumsum", Tensor.cumsum, cumsum_calls(), naive_cumsum, partial(same_in_torch, "cumsum")),
]
