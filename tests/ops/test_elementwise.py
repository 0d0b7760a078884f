"""Elementwise ops where they have a kink, overflow or leave the real numbers, and what they say when used wrongly."""

import numpy as np
import pytest

import minigrad
from minigrad import Tensor
from tests.compare import at

INF, NAN = np.inf, np.nan


def assert_outcome(outcome, *expected):
    for actual, wanted in zip(outcome, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-15)


def test_gradients_at_kinks_are_pytorchs():
    assert_outcome(at(abs, [0.0, -0.0, -2.0]), [0, 0, 2], [0, 0, -1])
    assert_outcome(at(Tensor.maximum, [1.0, 2.0], [1.0, 3.0]), [1, 3], [0.5, 0], [0.5, 1])
    assert_outcome(at(Tensor.minimum, [1.0, 2.0], [1.0, 3.0]), [1, 2], [0.5, 1], [0.5, 0])
    assert_outcome(at(lambda x: x.clamp(0, 1), [-1.0, 0, 1, 2, NAN]), [0, 0, 1, 1, NAN], [0, 1, 1, 0, 0])
    assert_outcome(at(lambda x: x.clamp(1, 0), [-1.0, 0.5, 2]), [0, 0, 0], [0, 0, 0])


def test_nan_is_passed_on():
    for extremum in (Tensor.maximum, Tensor.minimum):
        assert_outcome(at(extremum, [NAN, 1.0, NAN], [1.0, NAN, NAN]), [NAN] * 3, [1, 1, 1], [1, 1, 1])
    assert_outcome(at(Tensor.minimum, [NAN, 1.0], [1.0, NAN])[:1], [NAN, NAN])


def test_pow_at_zero_and_one():
    for exponent in (0, 0.0):
        assert_outcome(at(lambda x, e=exponent: x**e, [0.0, 2.0]), [1, 1], [0, 0])
    assert_outcome(at(lambda x: x**1, [0.0, 2.0]), [0, 2], [1, 1])
    assert_outcome(at(lambda x: 0**x, [0.0, 1.0]), [1, 0], [0, 0])
    a = Tensor(np.array([-1.0, -2.0]), requires_grad=True)
    (a ** np.array([2.0, 3.0])).sum().backward()  # the logarithm of a negative base is not asked for
    np.testing.assert_allclose(a.grad.data, [-2, 12])


def test_saturation_has_no_overflow():
    assert_outcome(at(Tensor.sigmoid, [-800.0, 800, -INF, INF]), [0, 1, 0, 1], [0, 0, 0, 0])
    assert_outcome(at(Tensor.tanh, [-800.0, 800, -INF, INF]), [-1, 1, -1, 1], [0, 0, 0, 0])
    assert_outcome(at(Tensor.erf, [-30.0, 30, -INF, INF]), [-1, 1, -1, 1], [0, 0, 0, 0])


def test_where_hides_what_it_does_not_choose():
    condition = Tensor(np.array([True, False]))
    y, grad_a = at(lambda a: minigrad.where(condition, a, 0.0), [1.0, NAN])
    assert_outcome((y, grad_a), [1, 0], [1, 0])


@pytest.mark.parametrize("number", [2, 2.5, np.float64(2.5), np.int64(2), True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_numbers_do_not_widen(number, dtype):
    x = Tensor(np.ones(3, dtype), requires_grad=True)
    for y in (x + number, number - x, x * number, number / x, x**number, number**x, x.maximum(number)):
        assert y.dtype == dtype
        x.grad = None
        y.sum().backward()
        assert x.grad.dtype == dtype


def test_a_cast_converts_the_gradient_back():
    x = Tensor(np.array([0.5, 1.5]), requires_grad=True)
    y = x.float() * 3
    y.sum().backward()
    assert (y.dtype, x.grad.dtype) == (np.float32, np.float64)
    np.testing.assert_array_equal(x.grad.data, [3, 3])


def test_functions_of_the_package_are_the_methods():
    x = np.array([0.5, 1.5])
    for name in ("abs", "exp", "log", "sqrt", "tanh", "sigmoid", "erf"):
        np.testing.assert_array_equal(getattr(minigrad, name)(Tensor(x)).data, getattr(Tensor(x), name)().data)
    np.testing.assert_array_equal(minigrad.pow(Tensor(x), 2).data, x**2)
    np.testing.assert_array_equal(minigrad.maximum(Tensor(x), Tensor(x[::-1].copy())).data, [1.5, 1.5])
    np.testing.assert_array_equal(minigrad.clamp(Tensor(x), max=1).data, [0.5, 1.0])


def test_errors_teach():
    a, b = Tensor(np.ones((2, 3))), Tensor(np.ones(2))
    with pytest.raises(ValueError, match=r"add: shapes \(2, 3\) and \(2,\) do not broadcast"):
        a + b
    with pytest.raises(ValueError, match=r"where: shapes \(2, 3\) and \(2, 3\) and \(2,\) do not broadcast"):
        minigrad.where(a > 0, a, b)
    with pytest.raises(TypeError, match="where: the condition must be a Tensor of bool, got float64; compare first"):
        minigrad.where(a, a, a)
    with pytest.raises(ValueError, match="clamp: needs a min, a max, or both"):
        a.clamp()
