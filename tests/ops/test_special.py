"""erf, sigmoid and the normal distribution against Python's math module."""

import math

import numpy as np
import pytest

from minigrad.ops import special

POINTS = np.concatenate([np.linspace(-7, 7, 20001), np.geomspace(1e-300, 1, 2001), [1 - 2**-53, 1.0, 1 + 2**-52]])


def test_erf_has_a_relative_error_below_1e_15():
    exact = np.array([math.erf(x) for x in POINTS])
    relative = abs(special.erf(POINTS) - exact) / np.maximum(abs(exact), 1e-320)
    assert relative.max() < 1e-15  # against 40 digits: 2.2e-16


def test_float32_erf_has_a_relative_error_below_3e_7():
    points = POINTS[abs(POINTS) > 1e-30].astype(np.float32)
    exact = np.array([math.erf(float(x)) for x in points])
    result = special.erf(points)
    assert result.dtype == np.float32
    assert (abs(result - exact) / np.maximum(abs(exact), 1e-30)).max() < 3e-7


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_erf_of_special_values(dtype):
    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, np.finfo(dtype).max], dtype)
    y = special.erf(x)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, np.array([1, -1, np.nan, 0, -0.0, 1], dtype))
    assert np.signbit(y[4])
    assert special.erf(np.zeros((0, 3), dtype)).shape == (0, 3)


def test_erf_of_a_large_strided_array_equals_its_rows():
    x = np.random.default_rng(0).normal(size=(300, 700))[:, ::2]
    np.testing.assert_array_equal(special.erf(x), [special.erf(row) for row in x])


def test_sigmoid_does_not_overflow_or_underflow():
    x = np.array([-800.0, -30.0, 0.0, 30.0, 800.0])
    small = math.exp(-30)
    expected = [0, small / (1 + small), 0.5, 1 / (1 + small), 1]
    np.testing.assert_allclose(special.sigmoid(x), expected, rtol=1e-15)


def test_normal_cdf_is_accurate_in_its_left_tail():
    x = np.linspace(-8.4, 8.4, 10001)
    exact = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])
    assert (abs(special.normal_cdf(x) - exact) / exact).max() < 2e-14
    assert special.normal_cdf(np.array([-50.0, 50.0])).tolist() == pytest.approx([0, 1], abs=1e-60)
    exact = exact[abs(x) < 5]
    assert (abs(special.normal_cdf(x[abs(x) < 5].astype(np.float32)) - exact) / exact).max() < 1e-5
