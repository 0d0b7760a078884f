"""Losses: extreme logits, ignored targets, empty batches, and error messages."""

import numpy as np
import pytest

import minigrad.functional as F
from minigrad import Tensor
from tests.compare import value_and_grad

INF = np.inf
X = Tensor(np.zeros((2, 3)))


def cross_entropy(target, **options):
    return lambda x: F.cross_entropy(x, Tensor(np.array(target)), **options)


def test_large_logits_do_not_overflow():
    y, grad_x = value_and_grad(cross_entropy([1, 0]), [[1000.0, 0.0], [1000.0, 0.0]])
    assert y == 500
    np.testing.assert_array_equal(grad_x, [[0.5, -0.5], [0, 0]])


@pytest.mark.parametrize("target", [[0, 1], [[1.0, 0.0], [0.0, 1.0]]])
def test_loss_is_finite_if_another_logit_is_minus_infinity(target):
    y, grad_x = value_and_grad(cross_entropy(target), [[0.0, -INF], [0.0, 0.0]])
    np.testing.assert_allclose(y, np.log(2) / 2)
    np.testing.assert_allclose(grad_x, [[0, 0], [0.25, -0.25]])


def test_mean_of_an_empty_batch_is_nan():
    assert np.isnan(cross_entropy([-100, -100])(X).item())
    assert np.isnan(cross_entropy(np.zeros(0, int))(X[:0]).item())
    assert np.isnan(F.mse_loss(Tensor(np.empty(0)), Tensor(np.empty(0))).item())
    assert value_and_grad(cross_entropy([-100, -100], reduction="sum"), np.zeros((2, 3)))[0] == 0


def test_ignored_targets_have_zero_gradient():
    _, grad_x = value_and_grad(cross_entropy([2, -100], label_smoothing=0.5), np.zeros((2, 3)))
    np.testing.assert_array_equal(grad_x[1], np.zeros(3))
    assert abs(grad_x[0]).max() > 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_all_ignored_gives_zero_gradient(smoothing):
    y, grad_x = value_and_grad(cross_entropy([-100, -100], label_smoothing=smoothing), np.zeros((2, 3)))
    assert np.isnan(y) and not grad_x.any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_zero_total_weight_gives_nan_gradient(smoothing):
    weight = Tensor(np.array([0.0, 1.0, 1.0]))
    y, grad_x = value_and_grad(cross_entropy([0, -100], label_smoothing=smoothing, weight=weight), np.zeros((2, 3)))
    assert np.isnan(y) and np.isnan(grad_x[0]).all() and not grad_x[1].any()


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_class_indices_of_any_integer_dtype(dtype):
    assert (
        value_and_grad(cross_entropy(np.array([1, 0], dtype)), np.zeros((2, 3)), dtype=np.float32)[0].dtype
        == np.float32
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            cross_entropy([0, 3]),
            IndexError,
            r"class indices must be from 0 to 2 \(or ignore_index = -100\), got indices .* to 3",
        ),
        (cross_entropy([0]), ValueError, "class indices must have the input's shape without its class axis 1"),
        (cross_entropy([[0.5, 0.5]]), ValueError, "probabilities must have the shape of the input"),
        (
            cross_entropy([0, 1], reduction="average"),
            ValueError,
            'reduction must be "mean", "sum" or "none", got \'average\'',
        ),
        (cross_entropy([0, 1], label_smoothing=1.5), ValueError, "label_smoothing must be from 0 to 1, got 1.5"),
        (cross_entropy([0, 1], weight=Tensor(np.ones(2))), ValueError, r"cross_entropy: weight must have shape \(3,\)"),
        (lambda x: F.cross_entropy(x[:, :0], x), ValueError, "C at least 1"),
        (lambda x: F.cross_entropy(x > 0, x), TypeError, "cross_entropy: needs floating-point numbers"),
        (lambda x: F.mse_loss(x, x[0]), ValueError, r"mse_loss: .* must have the same shape, got .* \(3,\)"),
        (lambda x: F.mse_loss(x, x, reduction="max"), ValueError, "mse_loss: reduction must be"),
        (lambda x: F.one_hot(Tensor(np.array([3])), 3), IndexError, "one_hot: class indices must be from 0 to 2"),
        (lambda x: F.one_hot(Tensor([1.5]), 3), TypeError, "one_hot: target must hold integers, got float32"),
        (lambda x: F.one_hot([1], 3), TypeError, "one_hot: target must be a Tensor or an array, got list; convert"),
    ],
)
def test_error_messages(call, error, message):
    with pytest.raises(error, match=message):
        call(X)


def test_one_hot_adds_an_axis_of_classes():
    np.testing.assert_array_equal(F.one_hot(Tensor(np.array([[2, 0]])), 3).data, [[[0, 0, 1], [1, 0, 0]]])
