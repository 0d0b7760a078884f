"""Activations of large inputs, where exp would overflow, normalize at zero, and error messages."""

import numpy as np
import pytest

import minigrad
import minigrad.functional as F
from minigrad import Tensor
from tests.compare import assert_close, value_and_grad

INF, NAN = np.inf, np.nan


def test_activations_of_large_inputs_do_not_overflow():
    large = [-800.0, 800.0]
    assert_close(value_and_grad(F.relu, large), [0, 800], [0, 1])
    assert_close(value_and_grad(F.silu, large), [0, 800], [0, 1])
    assert_close(value_and_grad(F.gelu, large), [0, 800], [0, 1])
    assert_close(value_and_grad(lambda x: F.gelu(x, approximate="tanh"), large), [0, 800], [0, 1])


def test_relu_at_zero_and_nan():
    assert_close(value_and_grad(F.relu, [-1.0, 0.0, NAN]), [0, 0, NAN], [0, 0, 1])


def test_gelu_of_the_largest_float32():
    largest = float(np.finfo(np.float32).max)
    with minigrad.without_fast_paths():
        assert_close(value_and_grad(F.gelu, [largest, 2.0, -largest], dtype=np.float32)[0][[0, 2]], largest, 0)


def test_softmax_of_large_and_masked_scores():
    assert_close(value_and_grad(lambda x: F.softmax(x, 0), [1000.0, 1000.0, -INF]), [0.5, 0.5, 0], [0, 0, 0])
    y, grad_x = value_and_grad(lambda x: F.log_softmax(x, 0), [1000.0, 0.0, -1000.0])
    assert_close((y, grad_x), [0, -1000, -2000], [-2, 1, 1])


def test_normalize_of_zeros_equals_pytorch():
    y, grad_x = value_and_grad(lambda x: F.normalize(x, dim=0), np.zeros(3))
    assert_close((y, grad_x), np.zeros(3), np.full(3, 1e12))


@pytest.mark.parametrize(
    ("dtype", "eps", "slope"),
    [(np.float32, 1e-30, 1e30), (np.float64, 1e-200, 1e200), (np.float32, 1e-50, 2.0**126), (np.float32, 1e-25, 1e25)],
)
def test_normalize_with_an_eps_whose_square_underflows(dtype, eps, slope):
    y, grad_x = value_and_grad(lambda x: F.normalize(x, dim=0, eps=eps), np.zeros(3), dtype=dtype)
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_allclose(grad_x, slope, rtol=1e-6)
    y, grad_x = value_and_grad(lambda x: F.normalize(x, eps=eps), [[3.0, 4.0], [0.0, 0.0], [NAN, 0.0]], dtype=dtype)
    np.testing.assert_allclose(y, [[0.6, 0.8], [0, 0], [NAN, NAN]], rtol=1e-6)


def test_float16_normalize_where_squares_leave_the_range():
    for x in ([[300.0, 400.0]], [[3e-4, 4e-4]]):
        y, grad_x = value_and_grad(F.normalize, x, dtype=np.float16)
        exact, exact_grad = value_and_grad(F.normalize, np.array(x, np.float16), dtype=np.float64)
        assert y.dtype == grad_x.dtype == np.float16
        np.testing.assert_allclose(y, exact, rtol=1e-3)
        np.testing.assert_allclose(grad_x, exact_grad, rtol=2e-3)


def test_float16_inputs_get_float16_gradients():
    for activation in (F.relu, F.silu, F.gelu):
        assert value_and_grad(activation, [-4.0, 4.0], dtype=np.float16)[1].dtype == np.float16


def test_error_messages():
    integers = Tensor(np.arange(3))
    for activation in (F.gelu, F.silu, lambda x: F.softmax(x, 0), lambda x: F.log_softmax(x, 0)):
        with pytest.raises(TypeError, match=r"needs floating-point numbers, got int64; convert first"):
            activation(integers)
    with pytest.raises(ValueError, match='gelu: approximate must be "none" or "tanh", got \'erf\''):
        F.gelu(integers.double(), approximate="erf")
    with pytest.raises(IndexError, match="softmax: axis 1 does not exist: with 1 axes it must be from -1 to 0"):
        F.softmax(integers.double(), 1)
    with pytest.raises(TypeError, match="normalize: needs floating-point numbers, got int64"):
        F.normalize(integers)
    with pytest.raises(ValueError, match="normalize: eps must not be negative"):
        F.normalize(integers.double(), eps=-1e-9)
    with pytest.raises(ValueError, match='norm: p must be a number or "fro"'):
        F.normalize(integers.double(), p="nuc", dim=0)


@np.errstate(over="raise")
def test_new_activations_of_large_inputs_do_not_overflow():
    large = [-800.0, 800.0]
    assert_close(value_and_grad(F.elu, large), [-1, 800], [0, 1])
    assert_close(value_and_grad(F.softplus, large), [0, 800], [0, 1])
    assert_close(value_and_grad(lambda x: F.softplus(x, threshold=1e9), large), [0, 800], [0, 1])
    assert_close(value_and_grad(F.hardswish, large), [0, 800], [0, 1])
    assert_close(value_and_grad(F.hardsigmoid, large), [0, 1], [0, 0])


def test_gradients_at_kinks_are_pytorchs():
    assert_close(value_and_grad(F.leaky_relu, [-1.0, 0.0, NAN]), [-0.01, 0, NAN], [0.01, 0.01, 0.01])
    assert_close(value_and_grad(F.elu, [0.0, -0.0, NAN]), [0, 0, NAN], [1, 1, 1])
    assert_close(value_and_grad(F.hardswish, [-3.0, 3.0, NAN]), [0, 3, NAN], [0, 1, 1])
    assert_close(value_and_grad(F.hardsigmoid, [-3.0, 3.0, NAN]), [0, 1, NAN], [0, 0, 0])


def test_small_results_keep_their_digits():
    y, grad_x = value_and_grad(F.softplus, [-40.0])
    np.testing.assert_allclose([y[0], grad_x[0]], np.exp(-40.0), rtol=1e-15)
    np.testing.assert_allclose(F.elu(Tensor([-1e-6])).item(), -1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["leaky_relu", "elu", "softplus", "hardswish", "hardsigmoid"])
def test_activations_refuse_integers(name):
    with pytest.raises(TypeError, match=f"{name}: needs floating-point numbers"):
        getattr(F, name)(Tensor([1]))


def test_cosine_similarity_of_zero_vectors():
    zero, x = Tensor(np.zeros((1, 2)), requires_grad=True), Tensor(np.ones((1, 2)), requires_grad=True)
    y = F.cosine_similarity(zero, x)
    y.sum().backward()
    assert y.item() == 0 and x.grad.tolist() == [[0, 0]]
    half = Tensor(np.full((1, 3), 300.0), dtype="float16")  # squares above the largest float16
    assert F.cosine_similarity(half, half).dtype == np.float16 and F.cosine_similarity(half, half).item() == 1
