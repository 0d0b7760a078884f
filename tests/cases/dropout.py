"""Dropout with a fixed seed, so that each call has the same mask. PyTorch's random numbers differ."""

import numpy as np
from hypothesis import strategies as st

import minigrad
import minigrad.functional as F
from minigrad import Tensor
from minigrad.testing import arrays, shapes
from tests.cases.case import Case, calls


def seeded(drop):
    def run(*xs, **options):
        minigrad.manual_seed(7)
        return drop(*xs, **options)

    return run


def scaled_mask_oracle(drop):
    """x · mask / (1 - p), where dropout of ones returns mask / (1 - p)."""
    return lambda x, **options: x * seeded(drop)(Tensor(np.ones(x.shape)), **options).data


def case(drop, shape):
    return Case(
        name=drop.__name__,
        run=seeded(drop),
        calls=calls(arrays(shape), p=st.sampled_from([0.0, 0.25, 0.5, 1.0]), training=st.booleans())
        | calls(arrays(shape)),
        oracle=scaled_mask_oracle(drop),
        torch=None,
    )


CASES = [
    case(F.dropout, shapes(max_dims=3)),
    case(F.drop_path, shapes(min_dims=1, max_dims=3)),
]
