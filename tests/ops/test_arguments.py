"""Invalid arguments: floats in place of integers, invalid scale factors; and negative padding, which crops."""

import numpy as np
import pytest

import minigrad
import minigrad.functional as F
from minigrad import Tensor, nn

X = minigrad.ones(2, 4, 6, 6)
W = minigrad.ones(4, 4, 1, 1)
ROW = Tensor([[1.0, 2.0, 3.0, 4.0]])

INTEGER_ARGUMENTS = {
    "group_norm": lambda v: F.group_norm(X, v), "GroupNorm": lambda v: nn.GroupNorm(v, 4),
    "layer_norm": lambda v: F.layer_norm(minigrad.ones(2, 2), v), "LayerNorm": lambda v: nn.LayerNorm(v),
    "layer_norm, a sequence": lambda v: F.layer_norm(minigrad.ones(2, 2), (v,)),
    "conv2d, stride": lambda v: F.conv2d(X, W, stride=v), "conv2d, padding": lambda v: F.conv2d(X, W, padding=v),
    "conv2d, dilation": lambda v: F.conv2d(X, W, dilation=v),
    "conv2d, groups": lambda v: F.conv2d(X, W[:, :2], groups=v),
    "Conv2d": lambda v: nn.Conv2d(v, 2, 1), "Conv2d, kernel": lambda v: nn.Conv2d(2, 2, v),
    "Conv2d, groups": lambda v: nn.Conv2d(2, 2, 1, groups=v), "Linear": lambda v: nn.Linear(v, 2),
    "BatchNorm2d": lambda v: nn.BatchNorm2d(v), "max_pool2d": lambda v: F.max_pool2d(X, v),
    "avg_pool2d": lambda v: F.avg_pool2d(X, v), "avg_pool2d, stride": lambda v: F.avg_pool2d(X, 2, v),
    "avg_pool2d, divisor": lambda v: F.avg_pool2d(X, 2, divisor_override=v),
    "adaptive_avg_pool2d": lambda v: F.adaptive_avg_pool2d(X, v), "interpolate": lambda v: F.interpolate(X, v),
    "pad": lambda v: F.pad(X, (v, 0)), "pad, reflect": lambda v: F.pad(X, (v, 0), mode="reflect"),
    "one_hot": lambda v: F.one_hot(Tensor([0, 1]), v), "softmax": lambda v: F.softmax(X, v),
    "cross_entropy": lambda v: F.cross_entropy(minigrad.ones(2, 3), Tensor([0, 1]), ignore_index=v),
    "window_attention": lambda v: F.window_attention(minigrad.ones(1, 4, 4, 12), None, v, 2),
    "window_attention, size": lambda v: F.window_attention(minigrad.ones(1, 4, 4, 12), None, 2, v),
    "sum": lambda v: X.sum(v), "mean": lambda v: X.mean(dim=(0, v)), "argmax": lambda v: X.argmax(v),
    "cumsum": lambda v: X.cumsum(v), "cat": lambda v: minigrad.cat([X, X], v), "split": lambda v: X.split(v, 1),
    "split, a sequence": lambda v: X.split([v, 2], 1), "chunk": lambda v: X.chunk(v, 1),
    "reshape": lambda v: X.reshape(v, -1), "unflatten": lambda v: X.unflatten(1, (v, -1)),
    "expand": lambda v: minigrad.ones(1).expand(v, 1), "roll": lambda v: X.roll(v, 0), "flip": lambda v: X.flip(v),
    "transpose": lambda v: X.transpose(v, 0), "unsqueeze": lambda v: X.unsqueeze(v),
    "zeros": lambda v: minigrad.zeros(v, 3),
    "topk": lambda v: X.topk(v), "max": lambda v: X.max(v), "sort": lambda v: X.sort(v),
    "norm": lambda v: X.norm(dim=v), "cumprod": lambda v: X.cumprod(v), "any": lambda v: X.any(v),
    "round": lambda v: X.round(decimals=v),
    "scatter": lambda v: X.scatter(v, minigrad.zeros(2, 4, 6, 6, dtype=np.int64), 1.0),
    "conv1d": lambda v: F.conv1d(X[0], minigrad.ones(4, 6, 1), stride=v),
    "conv_transpose2d": lambda v: F.conv_transpose2d(X, W, stride=v),
    "conv_transpose2d, groups": lambda v: F.conv_transpose2d(X, W, groups=v), "unfold": lambda v: F.unfold(X, v),
    "fold": lambda v: F.fold(minigrad.ones(2, 4, 1), v, 2), "embedding": lambda v: F.embedding(Tensor([0]), X[0, 0], v),
    "nll_loss": lambda v: F.nll_loss(minigrad.ones(2, 3), Tensor([0, 1]), ignore_index=v),
    "gather": lambda v: X.gather(v, minigrad.zeros(2, 4, 6, 6, dtype=np.int64)),
}  # fmt: skip


@pytest.mark.parametrize("name", INTEGER_ARGUMENTS)
def test_integer_arguments_refuse_floats(name):
    for integer in (2, np.int64(2)):
        INTEGER_ARGUMENTS[name](integer)
    for value in (2.0, 1.5, np.float64(2)):
        with pytest.raises(TypeError, match="integer"):
            INTEGER_ARGUMENTS[name](value)


@pytest.mark.parametrize("name", ["group_norm", "max_pool2d", "softmax", "conv2d, groups", "split"])
def test_integer_arguments_refuse_booleans(name):
    with pytest.raises(TypeError, match="got True"):
        INTEGER_ARGUMENTS[name](True)


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (float("nan"), ValueError, "above 0 and finite, got nan"), (float("inf"), ValueError, "above 0 and finite"),
        (0, ValueError, "above 0 and finite, got 0"), (-1.5, ValueError, "above 0 and finite, got -1.5"),
        ((1.0, float("nan")), ValueError, "above 0 and finite"), ((2.0, 0.0), ValueError, "above 0 and finite"),
        ((1.0, 2.0, 3.0), ValueError, "a number or a pair .* 3 values"), ((2.0,), ValueError, "got 1 values"),
        (0.1, ValueError, r"scale_factor 0.1 of images \(6, 6\) gives size \(0, 0\)"),
        ("22", TypeError, "must be a number or a pair"),
        ((None, 2), TypeError, "must be a number or a pair"), (np.ones(2), TypeError, "must be a number or a pair"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["nearest", "bicubic"])
def test_error_messages_of_scale_factor(scale, error, message, mode):
    with pytest.raises(error, match=message):
        F.interpolate(X, scale_factor=scale, mode=mode)


@pytest.mark.parametrize(
    ("mode", "widths", "expected"),
    [
        ("reflect", (-1, 0), [2, 3, 4]), ("reflect", (1, -1), [2, 1, 2, 3]), ("reflect", (-4, 3), [3, 2, 1]),
        ("reflect", (3, -4), [4, 3, 2]), ("reflect", (-1, 3), [2, 3, 4, 3, 2, 1]), ("reflect", (-1, -1), [2, 3]),
        ("replicate", (-2, 2), [3, 4, 4, 4]), ("replicate", (2, -3), [1, 1, 1]), ("replicate", (-4, 1), [4]),
        ("replicate", (4, -2), [1, 1, 1, 1, 1, 2]), ("circular", (1, -1), [3, 1, 2, 3]),
        ("circular", (-2, 2), [3, 4, 3, 4]), ("circular", (3, -1), [1, 2, 3, 1, 2, 3]), ("circular", (-3, 1), [4, 4]),
        ("circular", (-4, 0), []), ("circular", (-3, -1), []), ("circular", (4, 4), [1, 2, 3, 4] * 3),
    ],
)  # fmt: skip
def test_negative_padding_crops(mode, widths, expected):
    x = ROW.detach().requires_grad_()
    y = F.pad(x, widths, mode=mode)
    np.testing.assert_array_equal(y.numpy(), np.array([expected], y.dtype), strict=True)
    y.sum().backward()
    assert x.grad.tolist() == [[expected.count(value) for value in (1, 2, 3, 4)]]


@pytest.mark.parametrize(
    ("mode", "widths"),
    [
        ("reflect", (-4, 0)), ("reflect", (-3, -1)), ("reflect", (-5, 0)), ("reflect", (-3, 4)), ("reflect", (4, -1)),
        ("replicate", (-4, 0)), ("replicate", (-3, -2)), ("circular", (-2, 3)), ("circular", (2, -3)),
        ("circular", (-4, 1)), ("circular", (-5, 0)), ("circular", (-3, -2)), ("circular", (5, 0)),
        ("constant", (-5, 0)),
    ],
)  # fmt: skip
def test_padding_beyond_the_input_is_refused(mode, widths):
    with pytest.raises(ValueError, match="pad: "):
        F.pad(ROW, widths, mode=mode)
