"""Where an argument must be an integer, a float or a bool is refused by name, and a NumPy integer is taken."""

import numpy as np
import pytest

import minigrad
import minigrad.functional as F
from minigrad import Tensor, nn

X, W = Tensor(np.ones((1, 2, 4, 4), np.float32)), Tensor(np.ones((2, 2, 2, 2), np.float32))
CALLS = {
    "num_groups": lambda n: F.group_norm(X, n),
    "GroupNorm: num_groups": lambda n: nn.GroupNorm(n, 2),
    "num_channels": lambda n: nn.GroupNorm(1, n),
    "kernel_size": lambda n: F.max_pool2d(X, n),
    "stride": lambda n: F.conv2d(X, W, stride=n),
    "padding": lambda n: F.conv2d(X, W, padding=n),
    "dilation": lambda n: F.max_pool2d(X, 2, dilation=n),
    "groups": lambda n: F.conv2d(X, W, groups=n),
    "divisor_override": lambda n: F.avg_pool2d(X, 2, divisor_override=n),
    "output_size": lambda n: F.adaptive_avg_pool2d(X, n),
    "normalized_shape": lambda n: F.layer_norm(X[..., :1], (n,)),
    "LayerNorm: normalized_shape": nn.LayerNorm,
    "num_features": nn.BatchNorm2d,
    "features": lambda n: nn.Linear(n, 2),
    "Conv2d": lambda n: nn.Conv2d(n, 2, 1),
    "num_classes": lambda n: F.one_hot(Tensor([0]), n),
    "chunks": lambda n: X.chunk(n),
    "split_size": lambda n: X.split(n),
    "each split size": lambda n: X[:, :1].split([n], 1),
    "reshape": lambda n: X.reshape(n, 32),
    "expand": lambda n: X.expand(n, 2, 4, 4),
    "shift": lambda n: X.roll(n, 0),
    "width": lambda n: F.pad(X, (n, 1)),
    "size": lambda n: F.interpolate(X, size=n),
    "zeros": lambda n: minigrad.zeros(n, 2),
    "full": lambda n: minigrad.full((n, 2), 1.0),
    "num_heads": lambda n: F.window_attention(X[:, :1].expand(1, 3, 4, 4).permute(0, 2, 3, 1), None, n, 2),
    "window_size": lambda n: F.window_attention(X[:, :1].expand(1, 3, 4, 4).permute(0, 2, 3, 1), None, 1, n),
}


@pytest.mark.parametrize("name", CALLS)
def test_floats_and_bools_are_refused_by_name(name):
    CALLS[name](np.int64(1))
    for wrong in (1.0, True, np.float32(1)):
        with pytest.raises(TypeError, match=rf"(?s){name}.*(must be|is) an integer"):
            CALLS[name](wrong)


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 0, -1.0, (2, 2, 2), (2,), (1.0, float("nan"))])
def test_scale_factors_are_two_finite_numbers(factor):
    with pytest.raises(ValueError, match="scale_factor is a finite number above 0"):
        F.interpolate(X, scale_factor=factor)
