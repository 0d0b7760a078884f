"""Rounding, sign and remainders. No value is near a jump of the function."""

import math
import operator

import numpy as np
from hypothesis import strategies as st

from minigrad import Tensor
from minigrad.testing import arrays, broadcastable_shapes, shapes
from tests.cases.case import Call, Case, calls

SMALL = shapes(max_dims=3, max_side=4)


def between_integers(x):
    """x with its fractional part mapped from [0, 1) to [0.25, 0.45): far from integers and from halves."""
    return np.floor(x) + 0.25 + 0.2 * (x - np.floor(x))


@st.composite
def divisions(draw):
    """Dividends and divisors of shapes that broadcast, with quotients that are far from integers."""
    first, second = draw(broadcastable_shapes(2, max_dims=3, max_side=4))
    b = draw(arrays(second, low=0.5) | arrays(second, high=-0.5))
    quotient = between_integers(draw(arrays(np.broadcast_shapes(first, second))))
    return Call((quotient * b, b))


def elementwise(function):
    return np.vectorize(function, otypes=[float])


def rounding(name, function, gap=0.0):
    values = arrays(SMALL, gap=gap) if gap else arrays(SMALL).map(between_integers)
    return Case(
        name, getattr(Tensor, name), calls(values), elementwise(function), lambda torch, x: getattr(torch, name)(x)
    )


CASES = [
    rounding("floor", math.floor),
    rounding("ceil", math.ceil),
    rounding("trunc", math.trunc),
    rounding("round", round),
    rounding("sign", lambda v: math.copysign(1, v), gap=0.02),
    Case(
        name="round_decimals",
        run=Tensor.round,
        calls=calls(
            arrays(SMALL).map(lambda x: between_integers(10 * x) / 10 if x.dtype == np.float64 else x),
            decimals=st.just(1),
        )
        | calls(arrays(SMALL, low=-1, high=1).map(lambda x: 10 * between_integers(x)), decimals=st.just(-1)),
        oracle=lambda x, decimals: elementwise(lambda v: round(v, decimals))(x),
        torch=lambda torch, x, decimals: torch.round(x, decimals=decimals),
    ),
    Case("remainder", operator.mod, divisions(), elementwise(operator.mod), lambda torch, a, b: torch.remainder(a, b)),
    Case("fmod", Tensor.fmod, divisions(), elementwise(math.fmod), lambda torch, a, b: torch.fmod(a, b)),
    Case(
        name="floor_divide",
        run=operator.floordiv,
        calls=divisions(),
        oracle=elementwise(operator.floordiv),
        torch=lambda torch, a, b: torch.div(a, b, rounding_mode="floor"),  # `//` has no gradient in PyTorch
    ),
]
