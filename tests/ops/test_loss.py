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
        (lambda x: F.one_hot(Tensor(np.array([3])), 3), IndexError, "one_hot: indices must be from 0 to 2"),
        (lambda x: F.one_hot(Tensor([1.5]), 3), TypeError, "one_hot: target must hold integers, got float32"),
        (lambda x: F.one_hot([1], 3), TypeError, "one_hot: target must be a Tensor or an array, got list; convert"),
    ],
)
def test_error_messages(call, error, message):
    with pytest.raises(error, match=message):
        call(X)


def test_one_hot_adds_an_axis_of_classes():
    np.testing.assert_array_equal(F.one_hot(Tensor(np.array([[2, 0]])), 3).data, [[[0, 0, 1], [1, 0, 0]]])


@np.errstate(over="raise", invalid="raise")
def test_bce_with_logits_of_large_logits(device):
    x = Tensor(np.array([-800.0, 800.0, -40.0]), device=device, requires_grad=True)
    loss = F.binary_cross_entropy_with_logits(x, Tensor(np.array([1.0, 1.0, 0.0]), device=device), reduction="none")
    np.testing.assert_allclose(loss.tolist(), [800, 0, np.exp(-40.0)], rtol=1e-15)
    loss.sum().backward()
    np.testing.assert_allclose(x.grad.tolist(), [-1, 0, np.exp(-40.0)], rtol=1e-15)


def test_bce_of_probabilities_0_and_1():
    x, t = Tensor([0.0, 1.0], requires_grad=True), Tensor([1.0, 1.0])
    loss = F.binary_cross_entropy(x, t, reduction="none")
    assert loss.tolist() == [100, 0]
    loss.sum().backward()
    assert np.isfinite(x.grad.numpy()).all()


def test_kl_div_of_target_0():
    y, grad_x, grad_t = value_and_grad(lambda x, t: F.kl_div(x, t, reduction="sum"), [-1.0, -2.0], [0.0, 1.0])
    assert y == 2
    np.testing.assert_array_equal(grad_x, [0, -1])
    np.testing.assert_array_equal(grad_t, [0, 3])


def test_losses_at_kinks_are_pytorchs():
    zero = Tensor(np.zeros(2))
    for loss in (F.l1_loss, F.smooth_l1_loss, F.huber_loss):
        np.testing.assert_array_equal(value_and_grad(lambda x, loss=loss: loss(x, zero), [0.0, -2.0])[1], [0, -0.5])
    at_beta = value_and_grad(lambda x: F.smooth_l1_loss(x, zero, reduction="sum"), [1.0, -1.0])
    assert at_beta[0] == 1 and at_beta[1].tolist() == [1, -1]


@pytest.mark.parametrize("target", [[-100, -100], [0, -100]])
def test_nll_loss_ignores_targets(target, device):
    x = Tensor([[-1.0, -INF], [-INF, -INF]], device=device, requires_grad=True)
    loss = F.nll_loss(x, Tensor(target, device=device))
    loss.backward()
    np.testing.assert_equal(loss.item(), 1.0 if 0 in target else np.nan)
    assert x.grad.tolist() == [[-1 if 0 in target else 0, 0], [0, 0]]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32])
def test_nll_loss_takes_targets_of_any_integer_dtype(dtype):
    x = Tensor(np.arange(6.0).reshape(2, 3))
    assert F.nll_loss(x, Tensor(np.array([2, 1], dtype))).item() == -3


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: F.nll_loss(X, Tensor([0, 3])), IndexError, "nll_loss: indices must be from 0 to 2"),
        (lambda: F.nll_loss(X, Tensor([0.0, 1.0])), TypeError, "nll_loss: the target must hold class indices"),
        (lambda: F.nll_loss(X, Tensor([[0, 1]])), ValueError, r"nll_loss: the input must be \(N, C, ...\)"),
        (lambda: F.l1_loss(X, X[0]), ValueError, "l1_loss: input and target must have the same shape"),
        (lambda: F.l1_loss(Tensor([1]), Tensor([1])), TypeError, "l1_loss: needs floating-point numbers"),
        (lambda: F.l1_loss(X, X, reduction="max"), ValueError, 'l1_loss: reduction must be "mean", "sum" or "none"'),
        (lambda: F.smooth_l1_loss(X, X, beta=-1), ValueError, "smooth_l1_loss: beta must not be negative"),
        (lambda: F.huber_loss(X, X, delta=0), ValueError, "huber_loss: delta must be above 0"),
        (lambda: F.binary_cross_entropy(X + 2, X), ValueError, "input must be from 0 to 1; for logits use"),
        (
            lambda: F.binary_cross_entropy(X, X, Tensor([1.0, 1.0, 1.0], requires_grad=True)),
            RuntimeError, "binary_cross_entropy: no gradient is computed for weight",
        ),
        (
            lambda: F.cross_entropy(X, Tensor([0, 1]), Tensor(np.ones(3), requires_grad=True)),
            RuntimeError, "cross_entropy: no gradient is computed for weight",
        ),
        (lambda: F.kl_div(X, X, reduction="batch"), ValueError, "kl_div: reduction must be"),
    ],
)  # fmt: skip
def test_error_messages_of_losses(call, error, message):
    with pytest.raises(error, match=message):
        call()
