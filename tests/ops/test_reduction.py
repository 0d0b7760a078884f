"""Reductions: empty axes, ties, zeros, infinities, dtypes, and error messages."""

import numpy as np
import pytest

from minigrad import Tensor
from tests.compare import value_and_grad

INF, NAN = np.inf, np.nan


def logsumexp(x):
    return x.logsumexp(0)


def test_reductions_of_empty_axes():
    x = Tensor(np.empty((0, 3)))
    np.testing.assert_array_equal(x.sum(0).data, np.zeros(3))
    np.testing.assert_array_equal(x.prod(0).data, np.ones(3))
    np.testing.assert_array_equal(x.mean(0).data, np.full(3, NAN))
    np.testing.assert_array_equal(x.var(0).data, np.full(3, NAN))
    np.testing.assert_array_equal(x.logsumexp(0).data, np.full(3, -INF))
    assert x.amax(1).shape == (0,)
    with pytest.raises(ValueError, match=r"amax: needs at least one value, but axes \(0,\) of shape \(0, 3\) are"):
        x.amax(0)


def test_variance_of_one_element_is_nan():
    assert np.isnan(Tensor(np.ones(1)).var().item())
    assert Tensor(np.ones(1)).var(correction=0).item() == 0


def test_equal_maxima_share_the_gradient():
    y, grad_x = value_and_grad(Tensor.amax, [[1.0, 3.0, 3.0], [3.0, 0.0, 0.0]])
    assert y == 3
    np.testing.assert_allclose(grad_x, [[0, 1 / 3, 1 / 3], [1 / 3, 0, 0]])
    np.testing.assert_allclose(value_and_grad(Tensor.amin, [2.0, 2.0, 5.0])[1], [0.5, 0.5, 0])


def test_gradient_of_prod_at_zeros():
    np.testing.assert_array_equal(value_and_grad(Tensor.prod, [2.0, 0.0, 5.0])[1], [0, 10, 0])
    np.testing.assert_array_equal(value_and_grad(Tensor.prod, [2.0, 0.0, 0.0])[1], [0, 0, 0])


def test_logsumexp_of_large_and_infinite_values():
    np.testing.assert_allclose(value_and_grad(logsumexp, [1000.0, 1000.0])[0], 1000 + np.log(2))
    y, grad_x = value_and_grad(logsumexp, [-INF, 1.0])
    assert y == 1
    np.testing.assert_array_equal(grad_x, [0, 1])
    y, grad_x = value_and_grad(logsumexp, [-INF, -INF])
    assert y == -INF
    np.testing.assert_array_equal(grad_x, [0, 0])


def test_variance_is_exact_for_a_large_mean():
    assert Tensor(np.array([1e8, 1e8 + 1, 1e8 + 2])).var().item() == 1


@pytest.mark.parametrize("dtype", [bool, np.int64])
def test_integers_have_a_sum_but_no_mean(dtype):
    x = Tensor(np.ones((2, 2), dtype))
    assert x.sum().item() == 4
    for reduce in (Tensor.mean, Tensor.var, lambda x: x.logsumexp(0)):
        with pytest.raises(TypeError, match=r"needs floating-point numbers.*x.float\(\)"):
            reduce(x)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int8, np.int32, np.int64])
def test_sums_and_products_of_integers_are_int64(dtype):
    x = Tensor(np.array([[1, 0], [1, 1]], dtype))
    for y in (x.sum(), x.sum(0), x.prod(1), x.cumsum(0), x[0, 0].cumsum(0), x.sum() + Tensor([1, 2])):
        assert Tensor(y).dtype == np.int64
    assert (Tensor(np.uint8([200, 100])).sum() - 301).item() == -1


def test_an_empty_tuple_of_axes_means_all_axes():
    x = Tensor(np.arange(6.0).reshape(2, 3))
    for name in ("sum", "mean", "var", "std", "amax", "amin"):
        reduce = getattr(x, name)
        np.testing.assert_array_equal(reduce(()).data, reduce().data)
        assert reduce([], keepdim=True).shape == (1, 1)
    assert x.flip(()).tolist() == x.tolist()
    assert x[None].squeeze(()).shape == (1, 2, 3) and x.movedim((), ()).shape == (2, 3)


def test_error_messages():
    x = Tensor(np.ones((2, 3)))
    with pytest.raises(IndexError, match="sum: axis 2 does not exist: with 2 axes it must be from -2 to 1"):
        x.sum(2)
    with pytest.raises(ValueError, match=r"amax: axes \(0, -2\) name the same axis twice"):
        x.amax((0, -2))
    with pytest.raises(TypeError, match=r"mean: an axis must be an integer, got 1\.5"):
        x.mean(1.5)
    with pytest.raises(IndexError, match="cumsum: axis -3 does not exist"):
        x.cumsum(-3)


def test_gradient_of_std_of_equal_values_is_zero():
    x = Tensor(np.array([[2.0, 2.0], [1.0, 3.0]]), requires_grad=True)
    x.std(1).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), [[0, 0], [-(0.5**0.5), 0.5**0.5]])
