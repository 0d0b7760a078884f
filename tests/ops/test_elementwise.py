"""Elementwise ops at kinks, NaN and infinity, and where the ops saturate; and error messages."""

import numpy as np
import pytest

import minigrad
from minigrad import Tensor
from tests.compare import assert_close, value_and_grad

INF, NAN = np.inf, np.nan


def test_gradients_at_kinks_equal_pytorch():
    assert_close(value_and_grad(abs, [0.0, -0.0, -2.0]), [0, 0, 2], [0, 0, -1])
    assert_close(value_and_grad(Tensor.maximum, [1.0, 2.0], [1.0, 3.0]), [1, 3], [0.5, 0], [0.5, 1])
    assert_close(value_and_grad(Tensor.minimum, [1.0, 2.0], [1.0, 3.0]), [1, 2], [0.5, 1], [0.5, 0])
    assert_close(value_and_grad(lambda x: x.clamp(0, 1), [-1.0, 0, 1, 2, NAN]), [0, 0, 1, 1, NAN], [0, 1, 1, 0, 0])
    assert_close(value_and_grad(lambda x: x.clamp(1, 0), [-1.0, 0.5, 2]), [0, 0, 0], [0, 0, 0])


def test_maximum_and_minimum_propagate_nan():
    for extremum in (Tensor.maximum, Tensor.minimum):
        assert_close(value_and_grad(extremum, [NAN, 1.0, NAN], [1.0, NAN, NAN]), [NAN] * 3, [1, 1, 1], [1, 1, 1])
    assert_close(value_and_grad(Tensor.minimum, [NAN, 1.0], [1.0, NAN])[:1], [NAN, NAN])


def test_pow_at_zero_and_one():
    for exponent in (0, 0.0):
        assert_close(value_and_grad(lambda x, e=exponent: x**e, [0.0, 2.0]), [1, 1], [0, 0])
    assert_close(value_and_grad(lambda x: x**1, [0.0, 2.0]), [0, 2], [1, 1])
    assert_close(value_and_grad(lambda x: 0**x, [0.0, 1.0]), [1, 0], [0, 0])
    a = Tensor(np.array([-1.0, -2.0]), requires_grad=True)
    (a ** np.array([2.0, 3.0])).sum().backward()  # no warning: only the exponent's gradient needs log(a)
    np.testing.assert_allclose(a.grad.data, [-2, 12])


def test_saturated_activations_do_not_overflow():
    assert_close(value_and_grad(Tensor.sigmoid, [-800.0, 800, -INF, INF]), [0, 1, 0, 1], [0, 0, 0, 0])
    assert_close(value_and_grad(Tensor.tanh, [-800.0, 800, -INF, INF]), [-1, 1, -1, 1], [0, 0, 0, 0])
    assert_close(value_and_grad(Tensor.erf, [-30.0, 30, -INF, INF]), [-1, 1, -1, 1], [0, 0, 0, 0])


def test_where_promotes_half_precision_with_float32():
    half, single = Tensor(np.float16([1])), Tensor(np.float32([1e6]))
    mask = Tensor(np.array([True]))
    for y in (minigrad.where(mask, half, single), minigrad.where(mask, single, half), single.masked_fill(mask, half)):
        assert y.dtype == np.float32
    assert minigrad.where(mask, half, 2.0).dtype == half.masked_fill(mask, half).dtype == np.float16


def test_where_stops_nan_of_the_other_branch():
    condition = Tensor(np.array([True, False]))
    y, grad_a = value_and_grad(lambda a: minigrad.where(condition, a, 0.0), [1.0, NAN])
    assert_close((y, grad_a), [1, 0], [1, 0])


@pytest.mark.parametrize("scalar", [2, 2.5, np.float64(2.5), np.int64(2), True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_python_and_numpy_scalars_do_not_change_the_dtype(scalar, dtype):
    x = Tensor(np.ones(3, dtype), requires_grad=True)
    for y in (x + scalar, scalar - x, x * scalar, scalar / x, x**scalar, scalar**x, x.maximum(scalar)):
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


def test_package_functions_equal_the_methods():
    x = np.array([0.5, 1.5])
    for name in ("abs", "exp", "log", "sqrt", "tanh", "sigmoid", "erf"):
        np.testing.assert_array_equal(getattr(minigrad, name)(Tensor(x)).data, getattr(Tensor(x), name)().data)
    np.testing.assert_array_equal(minigrad.pow(Tensor(x), 2).data, x**2)
    np.testing.assert_array_equal(minigrad.maximum(Tensor(x), Tensor(x[::-1].copy())).data, [1.5, 1.5])
    np.testing.assert_array_equal(minigrad.clamp(Tensor(x), max=1).data, [0.5, 1.0])


def test_error_messages():
    a, b = Tensor(np.ones((2, 3))), Tensor(np.ones(2))
    with pytest.raises(ValueError, match=r"add: shapes \(2, 3\) and \(2,\) do not broadcast"):
        a + b
    with pytest.raises(ValueError, match=r"where: shapes \(2, 3\) and \(2, 3\) and \(2,\) do not broadcast"):
        minigrad.where(a > 0, a, b)
    with pytest.raises(TypeError, match="where: the condition must be a Tensor of bool, got float64; compare first"):
        minigrad.where(a, a, a)
    with pytest.raises(ValueError, match="clamp: needs a min, a max, or both"):
        a.clamp()


def test_lerp_ends_exactly_at_the_end():
    """x + weight · (end - x) would round end - x: in float32, 1 - 10⁸ is -10⁸."""
    x, end = Tensor([1e8]), Tensor([1.0])
    for weight in (1, 1.0, Tensor([1.0])):
        assert x.lerp(end, weight).item() == 1
    assert x.lerp(end, 0).item() == 1e8
    with pytest.raises(TypeError, match="lerp: needs floating-point numbers"):
        Tensor([1]).lerp(2, 0.5)


def test_clamp_to_tensors():
    y, grad_x, grad_low, grad_high = value_and_grad(Tensor.clamp, [0.0, 1.0, 5.0], [1.0, 1.0, 1.0], [3.0, 3.0, 3.0])
    np.testing.assert_array_equal([y, grad_x, grad_low, grad_high], [[1, 1, 3], [0, 1, 0], [1, 0, 0], [0, 0, 1]])
    assert Tensor([2.0]).clip(Tensor([3.0]), 1.0).item() == 1  # limits in the wrong order: the upper limit


@pytest.mark.parametrize("mode", ["floor", "trunc"])
def test_rounding_modes_of_division(mode, device):
    x = Tensor(np.array([-7, 7, -6, 128], np.int64), device=device)
    expected = {"floor": [-4, 3, -3, 64], "trunc": [-3, 3, -3, 64]}[mode]
    assert x.div(2, rounding_mode=mode).tolist() == x.double().div(2, rounding_mode=mode).tolist() == expected
    with pytest.raises(ValueError, match='div: rounding_mode must be None, "floor" or "trunc"'):
        x.div(2, rounding_mode="ceil")


def test_alpha_scales_the_second_operand():
    x, y = Tensor([1.0]), Tensor([2.0])
    assert x.add(y, alpha=3).item() == 7 and x.sub(y, alpha=3).item() == -5 and x.add(y).item() == 3
