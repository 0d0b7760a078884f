"""Rounding and division with remainder: NaN, infinities, division by zero, integers, error messages."""

import numpy as np
import pytest

from minigrad import Tensor
from tests.compare import assert_close, value_and_grad

INF, NAN = np.inf, np.nan


def test_rounding_has_gradient_0():
    for name, expected in (
        ("floor", [-2, 0]),
        ("ceil", [-1, 1]),
        ("trunc", [-1, 0]),
        ("round", [-2, 0]),
        ("sign", [-1, 1]),
    ):
        assert_close(value_and_grad(getattr(Tensor, name), [-1.5, 0.5]), expected, [0, 0])
    assert_close(value_and_grad(Tensor.sign, [NAN, -0.0, INF]), [0, 0, 1], [0, 0, 0])


def test_integers_stay_integers(device):
    x = Tensor(np.array([-7, 7], np.int32), device=device)
    for y, expected in (
        (x // 2, [-4, 3]), (x % 2, [1, 1]), (x % -2, [-1, -1]), (x.fmod(-2), [-1, 1]), (7 // x, [-1, 1]),
        (x.floor(), [-7, 7]), (x.sign(), [-1, 1]),
    ):  # fmt: skip
        assert y.dtype == np.int32 and y.tolist() == expected


def test_floor_division_is_of_the_exact_quotient(device):
    """1 / 0.1 rounds to 10, but the float 0.1 is above 1/10."""
    x, y = Tensor([1.0, -1.0, 5.0, -5.0], device=device), Tensor([0.1, 0.1, INF, INF], device=device)
    assert (x // y).tolist() == [9, -10, 0, -1]
    np.testing.assert_allclose((x % y).tolist(), [0.1, 0, 5, INF], atol=2e-8)


@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value)")
def test_division_by_zero():
    x = Tensor([1.0, -1.0, 0.0])
    np.testing.assert_array_equal((x // 0).numpy(), np.float32([INF, -INF, NAN]))
    np.testing.assert_array_equal((x % 0).numpy(), np.float32([NAN, NAN, NAN]))
    for operation in (lambda x: x // 0, lambda x: x % Tensor([1, 0, 1])):
        with pytest.raises(ZeroDivisionError, match="integers divided by 0; convert first"):
            operation(Tensor([1, 2, 3]))


def test_booleans_are_refused():
    x = Tensor([True])
    for operation in (lambda x: x // x, lambda x: x % True, Tensor.floor, Tensor.round):
        with pytest.raises(TypeError, match="needs numbers, got bool"):
            operation(x)


def test_decimals():
    assert Tensor(np.array([2.675, -1.25])).round(decimals=1).tolist() == [2.7, -1.2]
    assert Tensor(np.array([149.0, 150.0])).round(decimals=-2).tolist() == [100, 200]
    with pytest.raises(TypeError, match="round: needs floating-point numbers"):
        Tensor([15]).round(decimals=-1)
