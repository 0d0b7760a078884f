"""Activations, softmax and normalize."""

import math

import numpy as np
from hypothesis import strategies as st

import minigrad.functional as F
from minigrad.testing import arrays, shapes
from tests.cases.case import Call, Case, calls, torch_functional

SMALL = shapes(max_dims=3, max_side=4)


@st.composite
def calls_along_one_axis(draw, shape=SMALL):
    x = draw(arrays(shape, low=-5, high=5))
    size = max(x.ndim, 1)
    return Call((x,), {"dim": draw(st.integers(-size, size - 1))})


def gelu(x, approximate="none"):
    def by_tanh(v):
        return 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))

    def by_erf(v):
        return v * 0.5 * math.erfc(-v / math.sqrt(2))

    return np.vectorize(by_tanh if approximate == "tanh" else by_erf, otypes=[float])(x)


def softmax(x, dim):
    if not x.ndim:
        return np.ones(())
    y = np.empty(x.shape)
    for index in np.ndindex(x.shape):
        row = list(index)
        row[dim] = slice(None)
        y[index] = math.exp(x[index]) / math.fsum(map(math.exp, x[tuple(row)]))
    return y


def normalize(x, p=2.0, dim=1, eps=1e-12):
    return x / np.maximum((abs(x) ** p).sum(axis=dim, keepdims=True) ** (1 / p), eps)


def cosine_similarity(a, b, dim=1, eps=1e-8):
    def norm(x):
        return np.maximum(np.sqrt((x**2).sum(axis=dim)), eps)

    return (a * b).sum(axis=dim) / (norm(a) * norm(b))


@st.composite
def cosine_similarity_calls(draw):
    """Two arrays of shapes that broadcast, with an axis of at least one element; no vector is 0."""
    shape = draw(shapes(min_dims=2, max_dims=3, min_side=1, max_side=4))
    other = tuple(draw(st.sampled_from([1, size])) for size in shape)
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    other = tuple(size if a == dim % len(shape) else n for a, (size, n) in enumerate(zip(shape, other, strict=True)))
    return Call((draw(arrays(shape, gap=0.02)), draw(arrays(other, gap=0.02))), {"dim": dim})


def scalar_function(function):
    """An oracle that computes each element by the function of Python numbers."""
    return lambda x, **options: np.vectorize(lambda v: function(v, **options), otypes=[float])(x)


def activation(name, function, low=-2.0, high=2.0, **options):
    """An activation with a kink at 0. The options are drawn, or all left out."""
    x = arrays(SMALL, low=low, high=high, gap=0.02)
    return Case(
        name, getattr(F, name), calls(x) | calls(x, **options), scalar_function(function), torch_functional(name)
    )


CASES = [
    activation(
        "leaky_relu",
        lambda v, negative_slope=0.01: v if v > 0 else v * negative_slope,
        negative_slope=st.sampled_from([0.2, 0.0, -0.5]),
    ),
    activation("elu", lambda v, alpha=1.0: v if v > 0 else alpha * math.expm1(v), alpha=st.sampled_from([0.5, -1.0])),
    activation(
        "softplus",
        lambda v, beta=1.0, threshold=20.0: v if v * beta > threshold else math.log1p(math.exp(v * beta)) / beta,
        beta=st.sampled_from([0.5, 3.0]),
        threshold=st.sampled_from([20.0, 30.0]),
    ),
    Case(
        name="hardsigmoid",
        run=F.hardsigmoid,
        calls=calls(arrays(SMALL, low=-4.01, high=4.01, gap=0.02)),
        oracle=scalar_function(lambda v: min(max(v + 3, 0), 6) / 6),
        torch=lambda torch, x: torch.nn.functional.relu6(x + 3) / 6,  # the gradient of hardsigmoid has 1/6 in float32
    ),
    activation("hardswish", lambda v: v * min(max(v + 3, 0), 6) / 6, -4.01, 4.01),
    Case(
        name="cosine_similarity",
        ops=2,
        run=F.cosine_similarity,
        calls=cosine_similarity_calls(),
        oracle=cosine_similarity,
        torch=torch_functional("cosine_similarity"),
    ),
    Case("relu", F.relu, calls(arrays(SMALL, gap=0.02)), lambda x: np.where(x > 0, x, 0.0), torch_functional("relu")),
    Case(
        name="gelu",
        run=F.gelu,
        calls=calls(arrays(SMALL, low=-5, high=5))
        | calls(arrays(SMALL, low=-5, high=5), approximate=st.sampled_from(["none", "tanh"])),
        oracle=gelu,
        torch=torch_functional("gelu"),
    ),
    Case(
        "silu", F.silu, calls(arrays(SMALL, low=-5, high=5)), lambda x: x / (1 + np.exp(-x)), torch_functional("silu")
    ),
    Case("softmax", F.softmax, calls_along_one_axis(), softmax, torch_functional("softmax")),
    Case(
        name="log_softmax",
        run=F.log_softmax,
        calls=calls_along_one_axis(),
        oracle=lambda x, dim: np.log(softmax(x, dim)),
        torch=torch_functional("log_softmax"),
    ),
    Case(
        name="normalize_p",
        run=F.normalize,
        calls=calls(
            arrays(shapes(min_dims=2, max_dims=3, min_side=1, max_side=4), gap=0.02), p=st.sampled_from([1, 3])
        ),
        oracle=normalize,
        torch=torch_functional("normalize"),
    ),
    Case(
        name="normalize",
        run=F.normalize,
        calls=calls(arrays(shapes(min_dims=2, max_dims=3, max_side=4), gap=0.02))
        | calls_along_one_axis(shapes(min_dims=1, max_dims=3, min_side=1, max_side=4)),
        oracle=normalize,
        torch=torch_functional("normalize"),
    ),
]
