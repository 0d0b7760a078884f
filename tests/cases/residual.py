"""Residual connections with layer scale and drop_path, with a fixed seed. PyTorch has no equivalent functions."""

import numpy as np
from hypothesis import strategies as st

import minigrad
import minigrad.functional as F
from minigrad.testing import arrays, shapes
from tests.cases.case import Call, Case, concatenated
from tests.cases.dropout import seeded
from tests.cases.norm import EPS, optional_parameter, spread_values, standardized

DROPS = st.sampled_from([{}, {"drop_path": 0.5}, {"drop_path": 1.0}, {"drop_path": 0.5, "training": False}])


@st.composite
def residual_calls(draw):
    shape = draw(shapes(min_dims=1, max_dims=3))
    return Call((draw(arrays(shape)), draw(arrays(shape)), optional_parameter(draw, shape[-1:])), draw(DROPS))


@st.composite
def residual_layer_norm_calls(draw):
    shape = (*draw(shapes(max_dims=2, max_side=2)), draw(st.integers(1, 4)))
    x, branch = draw(spread_values(shape)), draw(arrays(shape, low=-0.01, high=0.01))
    return Call((x, branch, draw(arrays(shape[-1:])), draw(arrays(shape[-1:]))), {**draw(DROPS), **draw(EPS)})


def drop_path_factor(x, drop_path=0.0, training=True):
    """The factor of each image's branch: 0 if drop_path drops the image, else 1 / (1 - p)."""
    ones = minigrad.ones(len(x), dtype=np.float64)
    return seeded(F.drop_path)(ones, p=drop_path, training=training).numpy().reshape(-1, *[1] * (x.ndim - 1))


def residual(x, branch, scale=None, **drop):
    return x + drop_path_factor(x, **drop) * branch * (1 if scale is None else scale)


def residual_layer_norm(x, branch, weight, bias, eps=1e-5, **drop):
    s = residual(x, branch, **drop)
    rows = [standardized(row, eps) for row in s.reshape(-1, s.shape[-1])]
    return concatenated([s, np.array(rows).reshape(s.shape) * weight + bias], np.concatenate)


CASES = [
    Case(name="residual", run=seeded(F.residual), calls=residual_calls(), oracle=residual, torch=None, ops=2),
    Case(
        name="residual_layer_norm",
        run=lambda *xs, **options: concatenated(seeded(F.residual_layer_norm)(*xs, **options), minigrad.cat),
        calls=residual_layer_norm_calls(),
        oracle=residual_layer_norm,
        torch=None,
        ops=3,
    ),
]
