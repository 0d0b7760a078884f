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


def normalize(x, dim=1, eps=1e-12):
    return x / np.maximum(np.sqrt((x**2).sum(axis=dim, keepdims=True)), eps)


CASES = [
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
        name="normalize",
        run=F.normalize,
        calls=calls(arrays(shapes(min_dims=2, max_dims=3, max_side=4), gap=0.02))
        | calls_along_one_axis(shapes(min_dims=1, max_dims=3, min_side=1, max_side=4)),
        oracle=normalize,
        torch=torch_functional("normalize"),
    ),
]
