"""Convolution: `Columns` and `Depthwise` agree; views instead of copies; error messages."""

import numpy as np
import pytest

import minigrad.functional as F
from minigrad import Tensor
from minigrad.ops import conv as module
from minigrad.ops.conv import Columns, Conv2d, Depthwise
from minigrad.ops.windows import Windows, blocks
from tests.compare import randn


def forward_backward(x, weight, bias=None, **options):
    """The output and the gradients of x and weight, for a fixed upstream gradient."""
    x, weight = Tensor(x, requires_grad=True), Tensor(weight, requires_grad=True)
    y = F.conv2d(x, weight, bias, **options)
    y.backward(Tensor(np.cos(np.arange(y.numpy().size)).reshape(y.shape)))
    return y.numpy(), x.grad.numpy(), weight.grad.numpy()


@pytest.mark.parametrize("multiplier", [1, 3])
@pytest.mark.parametrize(
    "windows",
    [
        Windows(kernel=(3, 2), stride=(1, 1), dilation=(1, 1), before=(1, 0), after=(1, 1), out=(7, 6)),
        Windows(kernel=(2, 3), stride=(2, 1), dilation=(1, 2), before=(0, 2), after=(0, 2), out=(3, 6)),
        Windows(kernel=(1, 1), stride=(1, 1), dilation=(1, 1), before=(0, 0), after=(0, 0), out=(7, 6)),
    ],
)
def test_depthwise_and_columns_methods_agree(windows, multiplier):
    x, weight, grad_y = (
        randn(2, 7, 6, 4),
        randn(4 * multiplier, 1, *windows.kernel),
        randn(2, *windows.out, 4 * multiplier),
    )
    depthwise, columns = Depthwise(windows), Columns(windows, groups=4)
    for a, b in (
        (depthwise.correlate(x, weight), columns.correlate(x, weight)),
        (depthwise.grad_x(grad_y, weight, x.shape), columns.grad_x(grad_y, weight, x.shape)),
        (depthwise.grad_weight(grad_y, x, weight.shape), columns.grad_weight(grad_y, x, weight.shape)),
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_blocks_of_the_batch_give_the_same_results(monkeypatch, groups):
    x, weight = randn(5, 4, 6, 6), randn(8, 4 // groups, 3, 3)
    expected = forward_backward(x, weight, padding=1, groups=groups)
    monkeypatch.setattr(module, "blocks", lambda x, per_image: (slice(n, n + 2) for n in range(0, len(x), 2)))
    for a, b in zip(expected, forward_backward(x, weight, padding=1, groups=groups), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_blocks_cover_the_batch_once():
    x = np.arange(7)
    for per_image in (0, 1, 1 << 18, 1 << 19, 1 << 30):
        parts = [x[block] for block in blocks(x, per_image)]
        np.testing.assert_array_equal(np.concatenate(parts), x)
        assert all(len(part) == 1 or len(part) * per_image <= 1 << 20 for part in parts)
    assert list(blocks(x[:0], 1)) == []


@pytest.mark.parametrize("kernel_size", [1, (3, 4), (1, 4)])  # a pixel, the image, a row: a view would be possible
def test_unfold_copies(kernel_size):
    x = Tensor(np.ones((1, 1, 3, 4)))
    assert not np.shares_memory(F.unfold(x, kernel_size).data, x.data)


@pytest.mark.parametrize("groups", [1, 2])
def test_fold_is_the_adjoint_of_unfold(groups):
    windows = Windows(kernel=(3, 2), stride=(2, 1), dilation=(1, 2), before=(1, 2), after=(1, 2), out=(4, 8))
    method, x = Columns(windows, groups), randn(2, 7, 6, 4)
    columns = method.unfold(x)
    assert columns.shape == (groups, 2 * 4 * 8, 3 * 2 * 4 // groups)
    other = randn(*columns.shape)
    np.testing.assert_allclose(np.vdot(columns, other), np.vdot(x, method.fold(other, x.shape)), rtol=1e-12)


def test_a_1_by_1_convolution_copies_nothing():
    windows = Windows(kernel=(1, 1), stride=(1, 1), dilation=(1, 1), before=(0, 0), after=(0, 0), out=(7, 6))
    x = randn(2, 7, 6, 4)
    assert np.shares_memory(Columns(windows, groups=1).unfold(x), x)


def test_patch_embedding_tokens_are_a_contiguous_view():
    y = F.conv2d(Tensor(randn(2, 3, 8, 8)), Tensor(randn(5, 3, 4, 4)), stride=4).numpy()  # (N, O, OH, OW)
    tokens = y.reshape(2, 5, 4).swapaxes(1, 2)  # (B, D, L) -> (B, L, D)
    assert np.shares_memory(tokens, y)
    assert tokens.flags.c_contiguous


def test_patch_embedding_equals_a_linear_layer_on_patches():
    x, weight, bias = randn(2, 3, 8, 12), randn(5, 3, 4, 4), randn(5)
    # (N, C, OH·4, OW·4) -> (N, OH, OW, C, 4, 4) -> (N, OH, OW, C·16)
    patches = x.reshape(2, 3, 2, 4, 3, 4).transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, 3, 48)
    y = F.conv2d(Tensor(x), Tensor(weight), Tensor(bias), stride=4).numpy()
    np.testing.assert_allclose(y.transpose(0, 2, 3, 1), patches @ weight.reshape(5, 48).T + bias, atol=1e-12)


def test_same_padding_pads_more_at_the_end():
    row = Tensor(np.arange(1.0, 5.0).reshape(1, 1, 1, 4))
    weight = Tensor(np.array([1.0, 10.0]).reshape(1, 1, 1, 2))
    np.testing.assert_array_equal(F.conv2d(row, weight, padding="same").numpy().ravel(), [21, 32, 43, 4])


def test_pixels_outside_all_windows_get_zero_gradient():
    _, grad_x, _ = forward_backward(randn(1, 2, 6, 6), randn(3, 2, 2, 2), stride=3)
    outside = np.ones((6, 6), bool)
    outside[np.ix_([0, 1, 3, 4], [0, 1, 3, 4])] = False
    assert not grad_x[:, :, outside].any()
    assert grad_x[:, :, ~outside].all()


def test_gradients_that_are_not_needed_are_not_computed():
    node = Conv2d()
    node.needs_input_grad = (False, False, True)
    y = node.forward(randn(2, 3, 5, 5), randn(4, 3, 3, 3), randn(4), stride=1, padding=0, dilation=1, groups=1)
    node.method = None
    grad_x, grad_weight, grad_bias = node.backward(np.ones(y.shape))
    assert grad_x is None
    assert grad_weight is None
    np.testing.assert_allclose(grad_bias, 2 * 3 * 3)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "options", "error", "message"),
    [
        ((4, 4), (1, 1, 3, 3), None, {}, ValueError, "4-D"),
        ((1, 3, 4, 4), (8, 3, 3), None, {}, ValueError, r"weight must be \(O, C / groups, KH, KW\)"),
        ((1, 3, 4, 4), (8, 3, 0, 1), None, {}, ValueError, "each at least 1"),
        ((1, 4, 4, 3), (8, 3, 3, 3), None, {}, ValueError, r"expects x with C = 3 .* with C = 4; is x channels-first"),
        ((1, 4, 4, 4), (8, 4, 3, 3), None, {"groups": 2}, ValueError, r"with groups=2 expects x with C = 8"),
        ((1, 4, 4, 4), (9, 2, 3, 3), None, {"groups": 2}, ValueError, "groups must divide the 9 output channels"),
        ((1, 4, 4, 4), (8, 4, 3, 3), None, {"groups": 0}, ValueError, "groups must divide"),
        ((1, 4, 4, 4), (8, 4, 3, 3), None, {"groups": 1.0}, TypeError, "groups must be an integer"),
        ((1, 3, 4, 4), (8, 3, 3, 3), (1, 8), {}, ValueError, r"bias must have shape \(8,\)"),
        ((1, 3, 4, 4), (8, 3, 7, 7), None, {"padding": 1}, ValueError, r"spans \(7, 7\) .* has \(6, 6\); pad more"),
        ((1, 3, 4, 4), (8, 3, 3, 3), None, {"dilation": 2}, ValueError, r"spans \(5, 5\)"),
        ((1, 3, 4, 0), (8, 3, 1, 1), None, {}, ValueError, r"the padded image has \(4, 0\)"),
        ((1, 3, 4, 4), (8, 3, 3, 3), None, {"stride": 0}, ValueError, "stride must be at least 1"),
        ((1, 3, 4, 4), (8, 3, 3, 3), None, {"stride": (1, 1, 1)}, TypeError, "stride must be an integer or a pair"),
        ((1, 3, 4, 4), (8, 3, 3, 3), None, {"dilation": -1}, ValueError, "dilation must be at least 1"),
        ((1, 3, 4, 4), (8, 3, 3, 3), None, {"padding": -1}, ValueError, "padding must be at least 0"),
        ((1, 3, 4, 4), (8, 3, 3, 3), None, {"padding": ((0, 1), (0, -1))}, ValueError, "padding must be at least 0"),
        ((1, 3, 4, 4), (8, 3, 3, 3), None, {"padding": ((0, 1), 1)}, TypeError, "padding must be an integer or a pair"),
        ((1, 3, 4, 4), (8, 3, 3, 3), None, {"padding": "full"}, ValueError, "'valid' or 'same', got 'full'"),
        ((1, 3, 4, 4), (8, 3, 3, 3), None, {"padding": "same", "stride": 2}, ValueError, "needs stride 1"),
    ],
)
def test_error_messages(x, weight, bias, options, error, message):
    with pytest.raises(error, match=message):
        F.conv2d(Tensor(randn(*x)), Tensor(randn(*weight)), None if bias is None else Tensor(randn(*bias)), **options)


def test_integers_are_refused():
    with pytest.raises(TypeError, match="conv2d: needs floating-point numbers, got int64"):
        F.conv2d(Tensor(np.ones((1, 1, 3, 3), np.int64)), Tensor(randn(1, 1, 3, 3)))


def test_transposed_convolution_is_the_gradient_of_convolution():
    x, weight = Tensor(randn(2, 6, 9, 8), requires_grad=True), Tensor(randn(4, 3, 3, 2))
    options = {"stride": (2, 3), "padding": 1, "groups": 2}
    y = F.conv2d(x, weight, **options)
    grad_y = Tensor(randn(*y.shape))
    y.backward(grad_y)
    extra = [n - ((m - 1) * s - 2 + k) for n, m, s, k in zip((9, 8), y.shape[2:], (2, 3), (3, 2), strict=True)]
    transposed = F.conv_transpose2d(grad_y, weight, output_padding=tuple(extra), **options)
    np.testing.assert_allclose(transposed.numpy(), x.grad.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: F.conv_transpose2d(ones(1, 3, 4, 4), ones(4, 1, 2, 2)), ValueError, "x must have the 4 channels"),
        (lambda: F.conv_transpose2d(ones(1, 4, 4, 4), ones(4, 1, 2)), ValueError, "weight must be .C, O / groups"),
        (lambda: F.conv_transpose2d(ones(1, 4, 4, 4), ones(4, 1, 2, 2), groups=3), ValueError, "groups 3"),
        (
            lambda: F.conv_transpose2d(ones(1, 4, 4, 4), ones(4, 1, 2, 2), output_padding=1),
            ValueError, "output_padding .* must be smaller than stride",
        ),
        (lambda: F.conv_transpose2d(ones(1, 4, 2, 2), ones(4, 1, 1, 1), padding=1), ValueError, "would be 0 x 0"),
        (lambda: F.conv_transpose2d(ones(1, 4, 4, 4), ones(4, 1, 2, 2), ones(2)), ValueError, "bias must have shape"),
        (lambda: F.conv_transpose2d(ones(1, 4, 4, 4) > 0, ones(4, 1, 2, 2)), TypeError, "2d: needs floating"),
        (lambda: F.conv1d(ones(1, 4, 4, 4), ones(4, 4, 2)), ValueError, r"conv1d: input must be \(N, C, L\)"),
        (lambda: F.unfold(ones(1, 1, 2, 2), 3), ValueError, "unfold: a window spans"),
        (lambda: F.unfold(ones(2, 2), 1), ValueError, "unfold: the input must be"),
        (lambda: F.fold(ones(1, 5, 4), 3, 2), ValueError, "fold: the input must be .N, C · 2 · 2, 2 · 2."),
        (lambda: F.fold(ones(1, 4, 5), 3, 2), ValueError, "fold: the input must be"),
    ],
)  # fmt: skip
def test_error_messages_of_transposed_convolution_and_fold(call, error, message):
    with pytest.raises(error, match=message):
        call()


def ones(*shape):
    return Tensor(np.ones(shape))
