"""Elementwise ops."""

import math
import operator

import numpy as np
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from minigrad.testing import arrays, broadcastable_shapes, shapes
from tests.cases.case import Call, Case, calls, concatenated

GAP = 0.02  # minimum distance of values from a kink and from each other; clamp's bounds are odd multiples of GAP
SMALL = shapes(max_dims=3, max_side=4)


def broadcast_pairs(first, second):
    """Two arrays of shapes that broadcast, with values in the ranges `first` and `second`, (low, high)."""
    ranges = [{"low": low, "high": high} for low, high in (first, second)]
    two_shapes = broadcastable_shapes(2, max_dims=3, max_side=4)
    return two_shapes.flatmap(lambda s: calls(*(arrays(shape, **r) for shape, r in zip(s, ranges, strict=True))))


@st.composite
def distinct_pairs(draw):
    """Two arrays of shapes that broadcast, without ties: all values differ by at least GAP."""
    a, b = draw(broadcastable_shapes(2, max_dims=3, max_side=3))
    values = draw(arrays((math.prod(a) + math.prod(b),), gap=GAP))
    return Call((values[: math.prod(a)].reshape(a), values[math.prod(a) :].reshape(b)))


@st.composite
def distinct_triples(draw):
    """An array, and a lower and an upper limit that broadcast to it; all values differ by at least GAP."""
    low, high = draw(broadcastable_shapes(2, max_dims=3, max_side=3))
    drawn = np.broadcast_shapes(low, high), low, high
    values = np.split(draw(arrays((sum(map(math.prod, drawn)),), gap=GAP)), np.cumsum(list(map(math.prod, drawn[:2]))))
    return Call(tuple(part.reshape(shape) for part, shape in zip(values, drawn, strict=True)))


@st.composite
def where_calls(draw):
    """A condition and two arrays, of shapes that broadcast."""
    condition, a, b = draw(broadcastable_shapes(3, max_dims=3, max_side=4))
    return Call((draw(arrays(condition, dtype=bool)), draw(arrays(a)), draw(arrays(b))))


def scalar_forms(x):
    """Each operator with a Python number on either side."""
    return [x + 2, 2 + x, x - 2, 2 - x, x * 3, 3 * x, x / 2, 2 / x, x**3, 2**x, x**0.5, -x, +2.5 * x]


def unary(name, oracle, low=-2.0, high=2.0, gap=0.0):
    return Case(
        name=name,
        run=getattr(Tensor, name),
        calls=calls(arrays(SMALL, low=low, high=high, gap=gap)),
        oracle=oracle,
        torch=lambda torch, x: getattr(torch, name)(x),
    )


def binary(name, run, calls, oracle):
    return Case(name, run, calls, oracle, torch=lambda torch, a, b: getattr(torch, name)(a, b))


ANY, POSITIVE, NEGATIVE = (-2.0, 2.0), (0.5, 2.0), (-2.0, -0.5)

CASES = [
    binary("add", operator.add, broadcast_pairs(ANY, ANY), np.add),
    binary("sub", operator.sub, broadcast_pairs(ANY, ANY), np.subtract),
    binary("mul", operator.mul, broadcast_pairs(ANY, ANY), np.multiply),
    binary("div", operator.truediv, broadcast_pairs(ANY, POSITIVE) | broadcast_pairs(ANY, NEGATIVE), np.true_divide),
    binary("pow", operator.pow, broadcast_pairs(POSITIVE, ANY), np.power),
    binary("maximum", Tensor.maximum, distinct_pairs(), np.maximum),
    binary("minimum", Tensor.minimum, distinct_pairs(), np.minimum),
    Case(
        name="pow_number",
        run=lambda x, exponent: x**exponent,
        calls=calls(arrays(SMALL, gap=GAP), exponent=st.sampled_from([0, 1, 2, 3, 2.0, 4.0]))
        | calls(arrays(SMALL, low=0.5), exponent=st.sampled_from([-2, -1, -0.5, 0.5, 1.5])),
        oracle=lambda x, exponent: x**exponent,
        torch=lambda torch, x, exponent: x**exponent,
    ),
    Case(
        name="scalar_operators",
        ops=13,  # with a sum of 13 gradients; below x = 1, larger terms cancel and their rounding errors remain
        run=lambda x: concatenated(scalar_forms(x), minigrad.cat),
        calls=calls(arrays(SMALL, low=1.0)),
        oracle=lambda x: concatenated(scalar_forms(x), np.concatenate),
        torch=lambda torch, x: concatenated(scalar_forms(x), torch.cat),
    ),
    Case(
        name="where",
        run=minigrad.where,
        calls=where_calls(),
        oracle=np.where,
        torch=lambda torch, condition, a, b: torch.where(condition, a, b),
    ),
    Case(
        name="clamp",
        run=Tensor.clamp,
        calls=calls(
            arrays(SMALL, gap=GAP),
            min=st.sampled_from([-75 * GAP, -5 * GAP, -GAP]),
            max=st.sampled_from([None, GAP, 7 * GAP, 55 * GAP]),
        )
        | calls(arrays(SMALL, gap=GAP), max=st.sampled_from([-GAP, 5 * GAP])),
        oracle=lambda x, **bounds: np.clip(x, bounds.get("min"), bounds.get("max")),
        torch=lambda torch, x, **options: torch.clamp(x, **options),
    ),
    Case(
        name="clamp_to_tensors",
        run=Tensor.clamp,
        calls=distinct_triples(),
        oracle=np.clip,
        torch=lambda torch, x, low, high: torch.clamp(x, low, high),
    ),
    unary("neg", np.negative),
    unary("exp", np.exp),
    unary("expm1", np.vectorize(math.expm1, otypes=[float])),
    unary("log", np.log, low=0.1),
    unary("log1p", np.vectorize(math.log1p, otypes=[float]), low=-0.5),
    unary("sin", np.vectorize(math.sin, otypes=[float]), low=-4, high=4),
    unary("cos", np.vectorize(math.cos, otypes=[float]), low=-4, high=4),
    unary("tan", np.tan, low=-1.3, high=1.3),
    unary("asin", np.arcsin, low=-0.9, high=0.9),
    unary("acos", np.arccos, low=-0.9, high=0.9),
    unary("atan", np.arctan),
    unary("sinh", np.sinh),
    unary("cosh", np.cosh),
    unary("log2", np.log2, low=0.1),
    unary("log10", np.log10, low=0.1),
    binary("atan2", Tensor.atan2, broadcast_pairs(ANY, POSITIVE) | broadcast_pairs(NEGATIVE, ANY), np.arctan2),
    unary("square", lambda x: x * x),
    unary("rsqrt", lambda x: x**-0.5, low=0.1),
    Case(
        name="lerp",
        ops=4,
        run=Tensor.lerp,
        calls=broadcast_pairs(ANY, ANY).flatmap(
            lambda call: calls(*call.inputs, weight=st.sampled_from([0, 0.25, 0.5, 1.0, -1]))
        ),
        oracle=lambda a, b, weight: a + weight * (b - a),
        torch=lambda torch, a, b, weight: torch.lerp(a, b, weight),
    ),
    Case(
        name="lerp_of_tensors",
        ops=4,
        run=Tensor.lerp,
        calls=broadcastable_shapes(3, max_dims=3, max_side=4).flatmap(lambda s: calls(*(arrays(shape) for shape in s))),
        oracle=lambda a, b, weight: a + weight * (b - a),
        torch=lambda torch, a, b, weight: torch.lerp(a, b, weight),
    ),
    unary("sqrt", np.sqrt, low=0.1),
    unary("abs", np.abs, gap=GAP),
    unary("tanh", lambda x: 1 - 2 / (np.exp(2 * x) + 1)),
    unary("sigmoid", lambda x: 1 / (1 + np.exp(-x)), low=-5, high=5),
    unary("erf", np.vectorize(math.erf, otypes=[float]), low=-4, high=4),
]
