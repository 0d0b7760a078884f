"""Extrema with indices, sorting, selection: ties, NaN, named fields, axes of 0-d tensors, error messages."""

import numpy as np
import pytest

import minigrad
from minigrad import Tensor

INF, NAN = np.inf, np.nan


def test_ties_select_the_first_element(device):
    x = Tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 0.0]], device=device, requires_grad=True)
    for result, indices in ((x.max(1), [1, 0]), (x.min(1), [0, 2])):
        assert result.indices.tolist() == indices and result.indices.dtype == np.int64
    x.max(1).values.sum().backward()
    assert x.grad.tolist() == [[0, 1, 0], [1, 0, 0]]
    x.grad = None
    x.max().backward()
    assert x.grad.tolist() == [[0, 0.5, 0.5], [0, 0, 0]]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, "bfloat16", np.int64, np.uint8])
def test_sorting_is_stable_in_both_directions(dtype, device):
    x = Tensor([3, 1, 3, 1, 2], dtype=dtype, device=device)
    assert x.sort().indices.tolist() == [1, 3, 4, 0, 2]
    values, indices = x.sort(descending=True)
    assert indices.tolist() == [0, 2, 4, 1, 3] and values.tolist() == [3, 3, 2, 1, 1] and values.dtype == x.dtype
    assert x.topk(3).indices.tolist() == [0, 2, 4] and x.topk(2, largest=False).indices.tolist() == [1, 3]


def test_nan_is_the_maximum(device):
    x = Tensor([1.0, NAN, INF, -INF], device=device)
    assert x.sort().indices.tolist() == [3, 0, 2, 1] and x.argsort(descending=True).tolist() == [1, 2, 0, 3]
    assert x.max(0).indices.item() == x.min(0).indices.item() == 1


def test_gradient_goes_to_the_sorted_elements():
    x = Tensor([3.0, 1.0, 2.0], requires_grad=True)
    (x.sort().values * Tensor([1.0, 10.0, 100.0])).sum().backward()
    assert x.grad.tolist() == [100, 1, 10]


def test_0d_tensors():
    x = Tensor(3.0, requires_grad=True)
    for values, indices in (x.max(0), x.sort(), x.topk(1), x.min(-1, keepdim=True)):
        assert (values.item(), indices.item(), values.shape, indices.shape) == (3, 0, (), ())
        x.grad = None
        values.backward()
        assert x.grad.item() == 1


def test_unique_consecutive(device):
    x = Tensor(np.array([[1, 1, 0], [1, 1, 0], [1, 0, 0]]), device=device)
    assert [y.tolist() for y in x[0].unique_consecutive(True, True)] == [[1, 0], [0, 0, 1], [2, 1]]
    assert x.unique_consecutive(dim=0).tolist() == [[1, 1, 0], [1, 0, 0]]


def test_nonzero(device):
    x = Tensor([[0.0, 2.0], [NAN, 0.0]], device=device)
    assert x.nonzero().tolist() == [[0, 1], [1, 0]] and x.nonzero().dtype == np.int64
    assert [index.tolist() for index in x.nonzero(as_tuple=True)] == [[0, 1], [1, 0]]
    assert Tensor(3.0).nonzero().shape == (1, 0) and Tensor(0.0).nonzero().shape == (0, 0)


def test_error_messages():
    x = Tensor(np.ones((2, 3)))
    for call, error, message in (
        (lambda: x.topk(4), ValueError, r"topk: k must be from 0 to the size of axis 1, got 4 and shape \(2, 3\)"),
        (lambda: x.topk(1.0), TypeError, "topk: k must be an integer"),
        (lambda: x.sort(2), IndexError, "argsort: axis 2 does not exist"),
        (lambda: x.max(-3), IndexError, "argmax: axis -3 does not exist"),
        (lambda: x[:0].max(0), ValueError, "argmax: needs at least one value"),
        (lambda: x[:0].min(), ValueError, "amin: needs at least one value"),
        (lambda: minigrad.argmin(x[:0]), ValueError, "argmin: needs at least one value"),
        (lambda: x.max(dim=0, axis=0), TypeError, "max: axis= is another name of dim=: give one of them"),
    ):
        with pytest.raises(error, match=message):
            call()
