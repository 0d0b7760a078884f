"""Normalisations: running statistics, empty batches, large means, and error messages."""

import numpy as np
import pytest

import minigrad.functional as F
from minigrad import Tensor
from minigrad.testing import gradcheck
from tests.compare import randn


def test_batch_norm_updates_running_statistics_with_momentum():
    x, mean, var = randn(4, 2, 3), np.array([1.0, -1.0]), np.array([2.0, 3.0])
    running_mean, running_var = Tensor(mean.copy()), Tensor(var.copy())
    F.batch_norm(Tensor(x), running_mean, running_var, training=True, momentum=0.25)
    np.testing.assert_allclose(running_mean.data, 0.75 * mean + 0.25 * x.mean((0, 2)))
    np.testing.assert_allclose(running_var.data, 0.75 * var + 0.25 * x.var((0, 2), ddof=1))


def test_batch_norm_in_evaluation_keeps_running_statistics():
    mean, var = np.array([1.0, -1.0]), np.array([2.0, 3.0])
    F.batch_norm(Tensor(randn(4, 2)), Tensor(mean), Tensor(var))
    np.testing.assert_array_equal([mean, var], [[1, -1], [2, 3]])


def test_batch_norm_statistics_keep_their_own_dtype():
    mean, var = Tensor(np.zeros(2, np.float32)), Tensor(np.ones(2, np.float32))
    y = F.batch_norm(Tensor(randn(4, 2).astype(np.float16)), mean, var, training=True)
    assert (y.dtype, mean.dtype, var.dtype) == (np.float16, np.float32, np.float32)
    assert abs(mean.data).max() > 0


def test_norms_of_empty_batches():
    for y in (
        F.layer_norm(Tensor(np.empty((0, 3))), 3),
        F.group_norm(Tensor(np.empty((0, 4))), 2),
        F.batch_norm(Tensor(np.empty((0, 4))), Tensor(np.zeros(4)), Tensor(np.ones(4))),
    ):
        assert y.data.size == 0
    gradcheck(lambda x, w, b: F.group_norm(x, 2, w, b), np.empty((0, 4)), randn(4), randn(4))


def test_large_means_do_not_lose_precision():
    x = randn(2, 8)
    for norm in (lambda x: F.layer_norm(x, 8), lambda x: F.group_norm(x, 1)):
        np.testing.assert_allclose(norm(Tensor(x + 1e6)).data, norm(Tensor(x)).data, atol=1e-8)


def test_constant_input_gives_the_bias_and_finite_gradients():
    weight, bias = randn(3), randn(3)
    x = Tensor(np.ones((2, 3)), requires_grad=True)
    y = F.layer_norm(x, 3, Tensor(weight), Tensor(bias))
    np.testing.assert_array_equal(y.data, [bias, bias])
    y.sum().backward()
    assert np.isfinite(x.grad.data).all()


def test_standardized_filters_have_mean_0_and_variance_1():
    w = F.standardize_weight(Tensor(randn(4, 3, 2, 2))).data.reshape(4, -1)
    np.testing.assert_allclose(w.mean(1), 0, atol=1e-15)
    np.testing.assert_allclose(w.var(1), 1, rtol=1e-6)


X, THREE, TWO = Tensor(randn(2, 3)), Tensor(np.ones(3)), Tensor(np.ones(2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: F.layer_norm(X, 2), ValueError, r"layer_norm: normalized_shape must equal .*got \(2,\) for"),
        (lambda: F.layer_norm(X, ()), ValueError, "and not be empty"),
        (lambda: F.layer_norm(X, (1, 2, 3)), ValueError, "layer_norm: normalized_shape must equal"),
        (lambda: F.layer_norm(X, 3, TWO), ValueError, r"layer_norm: weight must have shape \(3,\).*got \(2,\)"),
        (lambda: F.layer_norm(X, 3, None, TWO), ValueError, "layer_norm: bias must have shape"),
        (
            lambda: F.group_norm(X, 2),
            ValueError,
            "group_norm: num_groups must divide the number of channels: got 2 groups, 3",
        ),
        (lambda: F.group_norm(X, 0), ValueError, "group_norm: num_groups must divide"),
        (lambda: F.group_norm(X, 1, TWO), ValueError, "group_norm: weight must have shape"),
        (lambda: F.group_norm(THREE, 1), ValueError, r"group_norm: the input must be \(N, C, ...\)"),
        (
            lambda: F.batch_norm(X, None, None),
            ValueError,
            "with training=False, running_mean and running_var must be given",
        ),
        (lambda: F.batch_norm(X, [0.0] * 3, THREE), TypeError, "batch_norm: running_mean must be a Tensor or an array"),
        (lambda: F.batch_norm(X, TWO, THREE), ValueError, r"batch_norm: running_mean must have shape \(3,\)"),
        (lambda: F.batch_norm(X[:1], None, None, training=True), ValueError, "more than one value per channel"),
        (lambda: F.batch_norm(THREE, None, None), ValueError, "batch_norm: the input must be"),
        (lambda: F.standardize_weight(THREE), ValueError, "standardize_weight: the weight must be"),
        (lambda: F.standardize_weight(X > 0), TypeError, "standardize_weight: needs floating-point numbers"),
        (lambda: F.global_response_norm(X, THREE, THREE), ValueError, r"must be \(B, ..., C\) with positions and"),
        (lambda: F.global_response_norm(X[:, None], TWO, THREE), ValueError, "global_response_norm: weight must have"),
        (lambda: F.layer_norm(X > 0, 3), TypeError, "layer_norm: needs floating-point numbers, got bool"),
    ],
)
def test_error_messages(call, error, message):
    with pytest.raises(error, match=message):
        call()
