"""Indexing: repeated indices, masks, PyTorch's rule for integers beside index arrays, and error messages."""

import numpy as np
import pytest

import minigrad.functional as F
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


def test_scatter_writes_and_scatter_add_adds(device):
    x, src = Tensor(np.zeros(3), device=device), Tensor(np.array([1.0, 2.0, 4.0, 8.0]), device=device)
    index = Tensor(np.array([2, 0, 2]), device=device)
    assert x.scatter_add(0, index, src).tolist() == [2, 0, 5]  # the last element of src is not used
    assert x.scatter(0, index[:2], src).tolist() == [2, 0, 1] and x.tolist() == [0, 0, 0]
    for dtype in (np.uint8, np.int8, np.int64, np.float16, "bfloat16"):
        y = x.to(dtype=dtype).scatter_add(0, index, src.to(dtype=dtype))
        assert y.dtype == x.to(dtype=dtype).dtype and y.tolist() == [2, 0, 5]


def test_scatter_add_of_many_equal_terms_in_bfloat16():
    """Sums are in float32: in bfloat16, 256 + 1 is 256."""
    ones = Tensor(np.ones(1000), dtype="bfloat16")
    y = Tensor([0.0], dtype="bfloat16").scatter_add(0, Tensor(np.zeros(1000, int)), ones)
    assert y.item() == 1000


def test_gradient_of_unused_source_elements_is_zero():
    src = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    for scatter in (Tensor.scatter, Tensor.scatter_add):
        src.grad = None
        scatter(Tensor([0.0, 0.0]), 0, Tensor([1]), src).sum().backward()
        assert src.grad.tolist() == [1, 0, 0]


def test_embedding_without_gradient_of_the_padding_row(device):
    weight = Tensor(np.ones((3, 2)), requires_grad=True, device=device)
    index = Tensor(np.array([[0, 2], [2, 2]]), device=device)
    for padding, expected in ((None, [1, 0, 3]), (0, [0, 0, 3]), (-1, [1, 0, 0])):
        weight.grad = None
        F.embedding(index, weight, padding_idx=padding).sum().backward()
        assert weight.grad[:, 0].tolist() == expected


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: X.scatter(0, Tensor([[3]]), 1.0), IndexError, "scatter: indices must be from 0 to 2"),
        (lambda: X.scatter(0, Tensor([[-1]]), 1.0), IndexError, "scatter: indices must be from 0 to 2"),
        (lambda: X.scatter(0, Tensor([0]), 1.0), ValueError, "scatter: the index must have as many axes as x"),
        (lambda: X.scatter(0, Tensor([[0.0]]), 1.0), TypeError, "scatter: the index must hold integers"),
        (lambda: X.scatter_add(0, Tensor([[0, 0]]), X[:1, :1]), ValueError, "scatter_add: .* not be longer than src"),
        (lambda: Tensor([1, 2]).scatter(0, Tensor([0]), 2.5), ValueError, "scatter: int64 cannot hold 2.5"),
        (lambda: F.embedding(Tensor([3]), X), IndexError, "embedding: indices must be from 0 to 2"),
        (lambda: F.embedding(Tensor([0.0]), X), TypeError, "embedding: the input must hold integers"),
        (lambda: F.embedding(Tensor([0]), X[0]), ValueError, "embedding: weight must be .* 2-D"),
        (lambda: F.embedding(Tensor([0]), X, padding_idx=3), ValueError, "padding_idx must be one of the 3 rows"),
        (lambda: F.one_hot(Tensor(np.zeros(0, int))), ValueError, "one_hot: an empty target needs num_classes"),
    ],
)
def test_error_messages_of_scatter_and_embedding(call, error, message):
    with pytest.raises(error, match=message):
        call()
