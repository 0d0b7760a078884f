"""Pooling: ties, NaN and infinities, windows at the border, and error messages."""

import numpy as np
import pytest

import minigrad.functional as F
from minigrad import Tensor
from minigrad.backend import to_device
from minigrad.ops.pool import MaxPool2d

NAN, INF = np.nan, np.inf


def image(rows, **options):
    return Tensor(np.array(rows, dtype=np.float64)[None, None], **options)


def max_pool(rows, *args, **options):
    """Max pooling of one image, and the gradient of the image for an upstream gradient of ones."""
    x = image(rows, requires_grad=True)
    y = F.max_pool2d(x, *args, **options)
    y.sum().backward()
    return y.numpy()[0, 0], x.grad.numpy()[0, 0]


def test_first_of_equal_maxima_gets_the_gradient():
    y, grad = max_pool([[1, 2, 2], [2, 0, 2]], (2, 3))
    np.testing.assert_array_equal(y, [[2]])
    np.testing.assert_array_equal(grad, [[0, 1, 0], [0, 0, 0]])


def test_gradients_of_overlapping_windows_are_summed():
    _, grad = max_pool([[0, 0, 0], [0, 9, 0], [0, 0, 0]], 2, stride=1)
    np.testing.assert_array_equal(grad, [[0, 0, 0], [0, 4, 0], [0, 0, 0]])


def test_nan_is_the_maximum_and_the_last_nan_gets_the_gradient():
    y, grad = max_pool([[5, NAN, INF], [NAN, 0, 1]], (2, 3))
    np.testing.assert_array_equal(y, [[NAN]])
    np.testing.assert_array_equal(grad, [[0, 0, 0], [1, 0, 0]])


def test_first_of_all_minus_infinity_gets_the_gradient():
    y, grad = max_pool([[-INF, -INF], [-INF, 3]], 2, stride=2, padding=1)
    np.testing.assert_array_equal(y, [[-INF, -INF], [-INF, 3]])
    np.testing.assert_array_equal(grad, np.ones((2, 2)))
    _, grad = max_pool(np.full((3, 3), -INF), 4, padding=2, dilation=2)  # rows and columns -2, 0, 2 and 4
    np.testing.assert_array_equal(grad, [[1, 0, 0], [0, 0, 0], [0, 0, 0]])
    for dilation in ((2, 1), (1, 2)):  # rows -2, 0, 2 and 4, columns -2 to 1; and vice versa
        _, grad = max_pool(np.full((3, 3), -INF), 4, padding=2, dilation=dilation)
        np.testing.assert_array_equal(grad, [[1, 0, 0], [0, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize(("dilation", "expected"), [((1, 2), [[6, 7], [10, 11]]), ((2, 1), [[9, 10, 11]])])
def test_dilation_is_for_height_then_width(dilation, expected):
    y, _ = max_pool(np.arange(12).reshape(3, 4), 2, stride=1, dilation=dilation)
    np.testing.assert_array_equal(y, expected)


def test_infinite_gradient_reaches_only_the_maximum():
    x = image([[1, 2], [3, 4]], requires_grad=True)
    F.max_pool2d(x, 2).backward(Tensor([[[[INF]]]]))
    np.testing.assert_array_equal(x.grad.numpy()[0, 0], [[0, 0], [0, INF]])


def test_padding_is_never_the_maximum():
    y, _ = max_pool([[-5, -4]], (1, 2), stride=1, padding=(0, 1))
    np.testing.assert_array_equal(y, [[-5, -4, -4]])


def test_max_pool_saves_one_byte_per_window():
    node = MaxPool2d()
    node.forward(np.zeros((1, 1, 16, 16)), kernel_size=16, stride=1, padding=0, dilation=1, ceil_mode=False)
    assert node.argmax.dtype == np.uint8
    node.forward(np.zeros((1, 1, 17, 17)), kernel_size=17, stride=1, padding=0, dilation=1, ceil_mode=False)
    assert node.argmax.dtype == np.uint16


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "floor", "ceil"),
    [
        (5, 2, 2, 0, 2, 3),
        (6, 2, 2, 0, 3, 3),
        (7, 3, 2, 1, 4, 4),
        (4, 2, 3, 1, 2, 2),  # rounding up gives 3, but the last window would start in the padding
        (1, 1, 3, 0, 1, 1),
        (4, 1, 3, 0, 2, 2),
    ],
)
def test_output_size_with_and_without_ceil_mode(size, kernel, stride, padding, floor, ceil):
    x = Tensor(np.zeros((1, 1, size, size)))
    for pool in (F.max_pool2d, F.avg_pool2d):
        assert pool(x, kernel, stride, padding).shape == (1, 1, floor, floor)
        assert pool(x, kernel, stride, padding, ceil_mode=True).shape == (1, 1, ceil, ceil)


def test_divisor_of_avg_pool():
    x = Tensor(np.ones((1, 1, 1, 3)))
    options = {"kernel_size": (1, 3), "stride": (1, 2), "padding": (0, 1)}

    def mean(**more):
        return F.avg_pool2d(x, **options, **more).numpy().ravel()

    np.testing.assert_allclose(mean(), [2 / 3, 2 / 3])
    np.testing.assert_allclose(mean(count_include_pad=False), [1, 1])
    np.testing.assert_allclose(mean(divisor_override=4), [2 / 4, 2 / 4])
    # With 4 pixels, the third window covers one pixel, one of padding, and one beyond, which does not count.
    x = Tensor(np.ones((1, 1, 1, 4)))
    np.testing.assert_allclose(mean(ceil_mode=True), [2 / 3, 1, 1 / 2])


def test_adaptive_avg_pool_to_1_is_the_mean():
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 7))
    np.testing.assert_allclose(F.adaptive_avg_pool2d(Tensor(x), 1).numpy(), x.mean((2, 3), keepdims=True), atol=1e-15)
    np.testing.assert_array_equal(F.adaptive_avg_pool2d(Tensor(x), (None, 7)).numpy(), x)


def test_adaptive_avg_pool_keeps_nan_in_its_window():
    y = F.adaptive_avg_pool2d(image([[NAN, 1, 2, 3]]), (1, 2)).numpy()
    np.testing.assert_array_equal(y, [[[[NAN, 2.5]]]])


@pytest.mark.parametrize("pool", [F.max_pool2d, F.avg_pool2d])
@pytest.mark.parametrize(
    ("shape", "options", "error", "message"),
    [
        ((4, 4), {"kernel_size": 2}, ValueError, "4-D"),
        ((1, 0, 4, 4), {"kernel_size": 2}, ValueError, "only the batch may be empty"),
        ((1, 1, 4, 4), {"kernel_size": 0}, ValueError, "kernel_size must be at least 1"),
        ((1, 1, 4, 4), {"kernel_size": "2"}, TypeError, "kernel_size must be an integer or a pair"),
        ((1, 1, 4, 4), {"kernel_size": 2, "stride": 0}, ValueError, "stride must be at least 1"),
        ((1, 1, 4, 4), {"kernel_size": 2, "padding": -1}, ValueError, "padding must be at least 0"),
        ((1, 1, 4, 4), {"kernel_size": 3, "padding": 2}, ValueError, r"at most half of kernel_size \(3, 3\)"),
        ((1, 1, 4, 4), {"kernel_size": (5, 2)}, ValueError, r"spans \(5, 2\) pixels, but .* \(4, 4\)"),
    ],
)
def test_error_messages(pool, shape, options, error, message):
    with pytest.raises(error, match=message):
        pool(Tensor(np.zeros(shape)), **options)


def test_more_error_messages():
    x = Tensor(np.zeros((1, 1, 4, 4)))
    with pytest.raises(ValueError, match="dilation must be at least 1"):
        F.max_pool2d(x, 2, dilation=0)
    with pytest.raises(ValueError, match=r"divisor_override must not be 0"):
        F.avg_pool2d(x, 2, divisor_override=0)
    with pytest.raises(ValueError, match="output_size must be at least 1"):
        F.adaptive_avg_pool2d(x, 0)
    with pytest.raises(TypeError, match="output_size must be an integer or a pair"):
        F.adaptive_avg_pool2d(x, (1, 2, 3))
    for pool in (F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d):
        with pytest.raises(TypeError, match="floating-point"):
            pool(Tensor(np.zeros((1, 1, 4, 4), np.int64)), 2)


def test_indices_of_maxima_select_the_maxima(device):
    """With wide steps and dilation, positions exceed the 8 bits in which the tap is saved."""
    x = Tensor(to_device(np.random.default_rng(0).standard_normal((2, 3, 40, 700)), device))
    y, indices = F.max_pool2d(x, (3, 5), (7, 90), (1, 2), (2, 130), return_indices=True)
    assert indices.dtype == np.int64 and indices.shape == y.shape
    rows = to_device(x.reshape(6, -1).data, "cpu")
    found = np.take_along_axis(rows, to_device(indices.reshape(6, -1).data, "cpu"), axis=1)
    np.testing.assert_array_equal(found, to_device(y.reshape(6, -1).data, "cpu"))
    one, of_one = F.max_pool2d(x[0], 3, return_indices=True)
    assert of_one.shape == one.shape == (3, 13, 233)
