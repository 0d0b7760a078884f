"""Convolution beyond the table of cases: the two methods agree, what costs no copy, errors that teach."""

import numpy as np
import pytest

import minigrad.functional as F
from minigrad import Tensor
from minigrad.ops import conv as module
from minigrad.ops.conv import Columns, Conv2d, Depthwise
from minigrad.ops.windows import Windows, blocks

RANDOM = np.random.default_rng(0)


def draw(*shape):
    return RANDOM.standard_normal(shape)


def run(x, weight, bias=None, **options):
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
def test_both_methods_agree_on_a_depthwise_convolution(windows, multiplier):
    x, weight, grad_y = (
        draw(2, 7, 6, 4),
        draw(4 * multiplier, 1, *windows.kernel),
        draw(2, *windows.out, 4 * multiplier),
    )
    one, other = Depthwise(windows), Columns(windows, groups=4)
    for a, b in (
        (one.correlate(x, weight), other.correlate(x, weight)),
        (one.grad_x(grad_y, weight, x.shape), other.grad_x(grad_y, weight, x.shape)),
        (one.grad_weight(grad_y, x, weight.shape), other.grad_weight(grad_y, x, weight.shape)),
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_batch_may_be_taken_in_blocks(monkeypatch, groups):
    x, weight = draw(5, 4, 6, 6), draw(8, 4 // groups, 3, 3)
    together = run(x, weight, padding=1, groups=groups)
    monkeypatch.setattr(module, "blocks", lambda x, per_image: (slice(n, n + 2) for n in range(0, len(x), 2)))
    for a, b in zip(together, run(x, weight, padding=1, groups=groups), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_blocks_cover_the_batch_once():
    x = np.arange(7)
    for per_image in (0, 1, 1 << 18, 1 << 19, 1 << 30):
        taken = [x[some] for some in blocks(x, per_image)]
        np.testing.assert_array_equal(np.concatenate(taken), x)
        assert all(len(part) == 1 or len(part) * per_image <= 1 << 20 for part in taken)
    assert list(blocks(x[:0], 1)) == []


@pytest.mark.parametrize("groups", [1, 2])
def test_fold_is_the_adjoint_of_unfold(groups):
    windows = Windows(kernel=(3, 2), stride=(2, 1), dilation=(1, 2), before=(1, 2), after=(1, 2), out=(4, 8))
    method, x = Columns(windows, groups), draw(2, 7, 6, 4)
    columns = method.unfold(x)
    assert columns.shape == (groups, 2 * 4 * 8, 3 * 2 * 4 // groups)
    other = draw(*columns.shape)
    np.testing.assert_allclose(np.vdot(columns, other), np.vdot(x, method.fold(other, x.shape)), rtol=1e-12)


def test_a_pointwise_convolution_copies_no_windows():
    windows = Windows(kernel=(1, 1), stride=(1, 1), dilation=(1, 1), before=(0, 0), after=(0, 0), out=(7, 6))
    x = draw(2, 7, 6, 4)
    assert np.shares_memory(Columns(windows, groups=1).unfold(x), x)


def test_tokens_of_a_patch_embedding_are_a_view():
    y = F.conv2d(Tensor(draw(2, 3, 8, 8)), Tensor(draw(5, 3, 4, 4)), stride=4).numpy()  # (N, O, OH, OW)
    tokens = y.reshape(2, 5, 4).swapaxes(1, 2)  # (B, D, L) -> (B, L, D)
    assert np.shares_memory(tokens, y)
    assert tokens.flags.c_contiguous


def test_a_patch_embedding_is_a_linear_layer_on_patches():
    x, weight, bias = draw(2, 3, 8, 12), draw(5, 3, 4, 4), draw(5)
    # (N, C, OH·4, OW·4) -> (N, OH, OW, C, 4, 4) -> (N, OH, OW, C·16)
    patches = x.reshape(2, 3, 2, 4, 3, 4).transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, 3, 48)
    y = F.conv2d(Tensor(x), Tensor(weight), Tensor(bias), stride=4).numpy()
    np.testing.assert_allclose(y.transpose(0, 2, 3, 1), patches @ weight.reshape(5, 48).T + bias, atol=1e-12)


def test_same_padding_puts_the_odd_pixel_after():
    row = Tensor(np.arange(1.0, 5.0).reshape(1, 1, 1, 4))
    weight = Tensor(np.array([1.0, 10.0]).reshape(1, 1, 1, 2))
    np.testing.assert_array_equal(F.conv2d(row, weight, padding="same").numpy().ravel(), [21, 32, 43, 4])


def test_pixels_that_no_window_sees_have_gradient_zero():
    _, grad_x, _ = run(draw(1, 2, 6, 6), draw(3, 2, 2, 2), stride=3)
    unseen = np.ones((6, 6), bool)
    unseen[np.ix_([0, 1, 3, 4], [0, 1, 3, 4])] = False
    assert not grad_x[:, :, unseen].any()
    assert grad_x[:, :, ~unseen].all()


def test_unwanted_gradients_are_not_computed():
    node = Conv2d()
    node.needs_input_grad = (False, False, True)
    y = node.forward(draw(2, 3, 5, 5), draw(4, 3, 3, 3), draw(4), stride=1, padding=0, dilation=1, groups=1)
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
        ((1, 4, 4, 3), (8, 3, 3, 3), None, {}, ValueError, r"expects 3 input channels .* has 4; is x channels-first"),
        ((1, 4, 4, 4), (8, 4, 3, 3), None, {"groups": 2}, ValueError, r"in 2 group\(s\) expects 8 input channels"),
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
        ((1, 3, 4, 4), (8, 3, 3, 3), None, {"padding": "full"}, ValueError, "'valid' or 'same', got 'full'"),
        ((1, 3, 4, 4), (8, 3, 3, 3), None, {"padding": "same", "stride": 2}, ValueError, "needs stride 1"),
    ],
)
def test_errors_teach(x, weight, bias, options, error, message):
    with pytest.raises(error, match=message):
        F.conv2d(Tensor(draw(*x)), Tensor(draw(*weight)), None if bias is None else Tensor(draw(*bias)), **options)


def test_integers_are_refused():
    with pytest.raises(TypeError, match="conv2d: needs floating-point numbers, got int64"):
        F.conv2d(Tensor(np.ones((1, 1, 3, 3), np.int64)), Tensor(draw(1, 1, 3, 3)))
