"""Activations far out, where exp would overflow, and what they say when used wrongly."""

import numpy as np
import pytest

import minigrad
import minigrad.functional as F
from minigrad import Tensor
from tests.compare import at

INF, NAN = np.inf, np.nan


def assert_outcome(outcome, *expected):
    for actual, wanted in zip(outcome, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-15)


def test_far_out_there_is_no_overflow():
    far = [-800.0, 800.0]
    assert_outcome(at(F.relu, far), [0, 800], [0, 1])
    assert_outcome(at(F.silu, far), [0, 800], [0, 1])
    assert_outcome(at(F.gelu, far), [0, 800], [0, 1])
    assert_outcome(at(lambda x: F.gelu(x, approximate="tanh"), far), [0, 800], [0, 1])


def test_relu_at_zero_and_nan():
    assert_outcome(at(F.relu, [-1.0, 0.0, NAN]), [0, 0, NAN], [0, 0, 1])


def test_gelu_of_the_largest_numbers():
    largest = float(np.finfo(np.float32).max)
    with minigrad.without_fast_paths():
        assert_outcome(at(F.gelu, [largest, 2.0, -largest], dtype=np.float32)[0][[0, 2]], largest, 0)


def test_softmax_of_large_and_masked_scores():
    assert_outcome(at(lambda x: F.softmax(x, 0), [1000.0, 1000.0, -INF]), [0.5, 0.5, 0], [0, 0, 0])
    y, grad_x = at(lambda x: F.log_softmax(x, 0), [1000.0, 0.0, -1000.0])
    assert_outcome((y, grad_x), [0, -1000, -2000], [-2, 1, 1])


def test_normalize_of_zeros_is_pytorchs():
    y, grad_x = at(lambda x: F.normalize(x, dim=0), np.zeros(3))
    assert_outcome((y, grad_x), np.zeros(3), np.full(3, 1e12))


@pytest.mark.parametrize(
    ("dtype", "eps", "steep"),
    [(np.float32, 1e-30, 1e30), (np.float64, 1e-200, 1e200), (np.float32, 1e-50, 2.0**126), (np.float32, 1e-25, 1e25)],
)
def test_normalize_with_an_eps_whose_square_is_zero(dtype, eps, steep):
    y, grad_x = at(lambda x: F.normalize(x, dim=0, eps=eps), np.zeros(3), dtype=dtype)
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_allclose(grad_x, steep, rtol=1e-6)
    y, grad_x = at(lambda x: F.normalize(x, eps=eps), [[3.0, 4.0], [0.0, 0.0], [NAN, 0.0]], dtype=dtype)
    np.testing.assert_allclose(y, [[0.6, 0.8], [0, 0], [NAN, NAN]], rtol=1e-6)


def test_normalize_of_numbers_whose_squares_float16_has_not():
    for x in ([[300.0, 400.0]], [[3e-4, 4e-4]]):
        y, grad_x = at(F.normalize, x, dtype=np.float16)
        exact, exact_grad = at(F.normalize, np.array(x, np.float16), dtype=np.float64)
        assert y.dtype == grad_x.dtype == np.float16
        np.testing.assert_allclose(y, exact, rtol=1e-3)
        np.testing.assert_allclose(grad_x, exact_grad, rtol=2e-3)


def test_float16_keeps_its_range():
    for activation in (F.relu, F.silu, F.gelu):
        assert at(activation, [-4.0, 4.0], dtype=np.float16)[1].dtype == np.float16


def test_errors_teach():
    whole = Tensor(np.arange(3))
    for activation in (F.gelu, F.silu, lambda x: F.softmax(x, 0), lambda x: F.log_softmax(x, 0)):
        with pytest.raises(TypeError, match=r"needs floating-point numbers, got int64; convert first"):
            activation(whole)
    with pytest.raises(ValueError, match='gelu: approximate must be "none" or "tanh", got \'erf\''):
        F.gelu(whole.double(), approximate="erf")
    with pytest.raises(IndexError, match="softmax: axis 1 does not exist: with 1 axes it must be from -1 to 0"):
        F.softmax(whole.double(), 1)
    with pytest.raises(TypeError, match="normalize: needs floating-point numbers, got int64"):
        F.normalize(whole)
    with pytest.raises(ValueError, match="normalize: eps must not be negative"):
        F.normalize(whole.double(), eps=-1e-9)
    with pytest.raises(ValueError, match="only the Euclidean norm, p=2, is supported, got p=1"):
        F.normalize(whole.double(), p=1)
