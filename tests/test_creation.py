"""Creation of tensors: zeros, ones, full, arange, rand, randn."""

import numpy as np
import pytest

import minigrad
from minigrad import Tensor


def test_shapes_and_dtypes():
    assert minigrad.zeros(2, 3).shape == minigrad.ones((2, 3)).shape == (2, 3)
    assert minigrad.full((2,), 7, dtype=np.int64).tolist() == [7, 7]
    assert minigrad.arange(3).dtype == np.int64 and minigrad.arange(0, 1, 0.5).tolist() == [0, 0.5]
    assert minigrad.arange(0, 1, 0.5).dtype == np.float32 and minigrad.arange(0).shape == (0,)
    like = minigrad.ones_like(minigrad.zeros_like(Tensor(np.ones((2, 1), np.float16))))
    assert like.dtype == np.float16 and like.shape == (2, 1)
    assert minigrad.randn(4, requires_grad=True).requires_grad and minigrad.rand(()).shape == ()


@pytest.mark.parametrize(
    ("bounds", "count", "last"),
    [((10000, 20000, 0.1), 100_000, 19999.9), ((0, 1, 0.1), 10, 0.9), ((5, 1, -0.5), 8, 1.5), ((2, 1, 0.5), 0, None)],
)
def test_arange_rounds_each_value_once(bounds, count, last):
    x = minigrad.arange(*bounds)
    assert x.shape == (count,) and x.dtype == np.float32
    assert last is None or x[-1].item() == np.float32(last)


def test_arange_of_integers():
    assert minigrad.arange(0.7, 5.9, 1.5, dtype=np.int64).tolist() == [0, 1, 2, 3, 4]
    assert minigrad.arange(2**60, 2**60 + 2).tolist() == [2**60, 2**60 + 1]
    with pytest.raises(ValueError, match="arange: step must not be 0 when cast to int64"):
        minigrad.arange(0, 5, 0.5, dtype=np.int64)
    with pytest.raises(ValueError, match="must be finite"):
        minigrad.arange(float("inf"))
    with pytest.raises(TypeError, match="takes end, or start and end"):
        minigrad.arange()


def test_bfloat16():
    pytest.importorskip("ml_dtypes", reason="bfloat16 needs the package ml_dtypes")
    ones = minigrad.ones(2, dtype="bfloat16")
    for x in (
        ones,
        minigrad.full((2,), 3, "bfloat16"),
        minigrad.arange(2, dtype="bfloat16"),
        minigrad.zeros_like(ones),
    ):
        assert x.dtype.name == "bfloat16"
    assert ones.tolist() == [1, 1] and minigrad.arange(2, 3, 0.25, dtype="bfloat16").tolist() == [2, 2.25, 2.5, 2.75]
    x = minigrad.rand(10_000, dtype="bfloat16")
    assert x.dtype == minigrad.randn(2, dtype="bfloat16").dtype == ones.dtype and x.float().amax().item() == 1 - 2**-8
