"""Indexing: repeated indices, masks, PyTorch's rule for integers beside index arrays, and error messages."""

import numpy as np
import pytest

from minigrad import Tensor
from tests.compare import value_and_grad

INF = np.inf
X = Tensor(np.arange(12.0).reshape(3, 4))


def test_repeated_indices_sum_their_gradients():
    for index in (np.array([0, 0, 2]), [0, 0, 2], Tensor(np.array([0, -3, 2])), ([0, 0, 2],)):
        np.testing.assert_array_equal(value_and_grad(lambda x, i=index: x[i], [1.0, 2.0, 3.0])[1], [2, 0, 1])
    zeros = Tensor(np.zeros(3, np.int64))
    np.testing.assert_array_equal(value_and_grad(lambda x: x.index_select(0, zeros), [1.0, 2.0])[1], [3, 0])
    np.testing.assert_array_equal(value_and_grad(lambda x: x.gather(0, zeros), [1.0, 2.0])[1], [3, 0])


def test_masks_and_integer_indices():
    mask = X > 5
    np.testing.assert_array_equal(X[mask].data, np.arange(6.0, 12))
    assert X[np.int64(1), 2].item() == X[1, Tensor(np.array(2))].item() == 6
    np.testing.assert_array_equal(value_and_grad(lambda x: x[x > 0] * 3, [1.0, -1.0])[1], [3, 0])


def test_gradients_of_overlapping_slices_are_summed():
    x = np.ones((2, 3))
    y, grad_x = value_and_grad(lambda x: x[0] * 2 + x[1] * 3 + x[0] * x[1], x)
    np.testing.assert_array_equal(y, [6, 6, 6])
    np.testing.assert_array_equal(grad_x, [[3, 3, 3], [4, 4, 4]])


def test_masked_fill_stops_nan_in_forward_and_backward():
    y, grad_x = value_and_grad(lambda x: x.masked_fill(Tensor(np.array([True, False])), 0.0), [np.nan, 1.0])
    np.testing.assert_array_equal(y, [0, 1])
    np.testing.assert_array_equal(grad_x, [0, 1])


@pytest.mark.parametrize("value", [-INF, np.nan, 1.5, 256, -1])
def test_masked_fill_refuses_values_out_of_range(value):
    x = Tensor(np.uint8([1, 2]))
    with pytest.raises(ValueError, match=f"masked_fill: uint8 cannot hold {value}; convert first"):
        x.masked_fill(x > 1, value)
    assert x.masked_fill(x > 1, 255.0).tolist() == [1, 255] and (x > 1).masked_fill(x > 1, 0).tolist() == [False] * 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: x[3], IndexError, "out of bounds"),
        (lambda x: x[0, 0, 0], IndexError, "too many indices"),
        (lambda x: x.gather(0, np.zeros((1, 4))), TypeError, "gather: the index must hold integers, got float64"),
        (lambda x: x.gather(0, np.zeros(4, int)), ValueError, "gather: the index must have as many axes as x"),
        (lambda x: x.gather(0, np.zeros((1, 5), int)), ValueError, r"only axis 0 .* longer .* x has shape \(3, 4\)"),
        (lambda x: x.gather(0, np.full((1, 4), 3)), IndexError, "gather: indices must be from 0 to 2, got .* 3 to 3"),
        (lambda x: x.gather(2, np.zeros((1, 4), int)), IndexError, "gather: axis 2 does not exist"),
        (lambda x: x.index_select(1, np.array([-1])), IndexError, "index_select: indices must be from 0 to 3"),
        (
            lambda x: x.index_select(1, np.zeros((1, 1), int)),
            TypeError,
            r"index_select: the index must be 1-D.*\(1, 1\)",
        ),
        (lambda x: x[0, 0].index_select(0, np.zeros(1, int)), ValueError, "index_select: a 0-d tensor has no axis"),
        (lambda x: x.index_select(1, np.zeros(1)), TypeError, "of integers, got .* float64"),
        (lambda x: x.masked_fill(x, 0.0), TypeError, "masked_fill: the mask must be boolean, got float64; compare"),
        (lambda x: x.gather(0, [[0, 1]]), TypeError, r"gather: index must be a Tensor or an array, got list; convert"),
        (lambda x: x.index_select(0, [0]), TypeError, r"index_select: index must be a Tensor or an array, got list"),
        (lambda x: x.masked_fill([True], 0.0), TypeError, "masked_fill: mask must be a Tensor or an array, got list"),
    ],
)
def test_error_messages(call, error, message):
    with pytest.raises(error, match=message):
        call(X)


@pytest.mark.parametrize(
    ("index", "equivalent"),
    [
        ((0, slice(None), [0, 1]), lambda x: x[0][:, [0, 1]]),
        (([0, 1], slice(None), 0), lambda x: x[:, :, 0][[0, 1]]),
        ((..., [0, 1], -1), lambda x: x[..., -1][..., [0, 1]]),
        ((None, 0, [[0], [2]]), lambda x: x[0][[[0], [2]]][None]),
        ((np.array([True, False]), slice(1), 0), lambda x: x[:, :, 0][[0]][:, :1]),
        ((Tensor(0), slice(None), Tensor([0, 1])), lambda x: x[0][:, [0, 1]]),
        ((0, Tensor(1), Tensor([0, 1])), lambda x: x[0][1][[0, 1]]),
        ((np.array(1), [0, 1], Tensor(np.int8(1))), lambda x: x[1, :, 1][[0, 1]]),
    ],
    ids=["int first", "int last", "ellipsis", "new axis", "mask", "0-d first", "0-d second", "0-d around"],
)
def test_integers_beside_index_arrays_follow_pytorch(index, equivalent):
    x = Tensor(np.arange(24.0).reshape(2, 3, 4))
    np.testing.assert_array_equal(x[index].numpy(), equivalent(x).numpy())
    written, selected = Tensor(x.data), equivalent(x).numpy()
    written[index] = -1
    np.testing.assert_array_equal(written.numpy(), np.where(np.isin(x.data, selected), -1, x.data))
