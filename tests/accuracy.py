"""Ops that sum many float32 values, and memory layouts, for tests of rounding errors."""

from collections.abc import Callable
from typing import Any

import numpy as np

Run = Callable[..., Any]


def rand(seed, *shape, offset=0.0):
    """Uniform float32 values in [offset, offset + 1). The values are positive: sums do not cancel."""
    return np.asarray(np.random.default_rng(seed).random(shape) + offset, np.float32)


def ulps(actual, exact):
    """The maximum error, in units in the last place (ulps) of the maximum entry."""
    assert actual.dtype == np.float32 and actual.shape == exact.shape
    return float(abs(actual - exact.astype(np.float64)).max() / np.spacing(np.float32(abs(exact).max())))


LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": np.asfortranarray,
    "channels last": lambda x: np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1),
    "strided": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "reversed": lambda x: np.flip(np.ascontiguousarray(np.flip(x))),
}

REDUCTIONS: dict[str, Run] = {
    "sum": lambda x, axis: x.sum(axis),
    "mean": lambda x, axis: x.mean(axis),
    "var": lambda x, axis: x.var(axis),
    "std": lambda x, axis: x.std(axis),
    "logsumexp": lambda x, axis: x.logsumexp(axis),
}
AXES = [((20_000, 3), (0,)), ((40, 6, 500), (0, 2)), ((6, 900, 4), (1,)), ((64, 5, 4, 7), (0, 2, 3)), ((30, 40), (0,))]

N, C = 20_000, 6
ALONG_ONE_AXIS: dict[str, tuple[Run, np.ndarray]] = {
    "softmax": (lambda F, x: F.softmax(x, 0), rand(0, N, C)),
    "log_softmax": (lambda F, x: F.log_softmax(x, 0), rand(0, N, C)),
    "cumsum": (lambda F, x: x.cumsum(0), rand(0, N, C)),
    "normalize": (lambda F, x: F.normalize(x, dim=0), rand(0, N, C)),
    "adaptive_avg_pool2d": (lambda F, x: F.adaptive_avg_pool2d(x, (2, 3)), rand(0, 2, 4, 120, 100)),
    "global average": (lambda F, x: x.mean((2, 3)), rand(0, 2, 4, 120, 100)),
    "var far from 0": (lambda F, x: x.var(1), rand(0, 50, 700, offset=1e6)),
    "var of columns far from 0": (lambda F, x: x.var(0), rand(0, N, C, offset=1e6)),
    "std far from 0": (lambda F, x: x.std(0), rand(0, N, C, offset=1e4)),
    "norm": (lambda F, x: x.norm(dim=0), rand(0, N, C)),
    "1-norm": (lambda F, x: x.norm(1, dim=0), rand(0, N, C)),
    "l1 loss": (lambda F, x: F.l1_loss(x, 0 * x), rand(0, N, C)),
    "bce with logits": (lambda F, x: F.binary_cross_entropy_with_logits(x, 0 * x + 0.5), rand(0, N, C)),
    "kl_div": (lambda F, x: F.kl_div(x, 0 * x + 0.5, reduction="batchmean"), rand(0, N, C)),
    "cumprod": (lambda F, x: x.cumprod(0), rand(0, 4_000, C, offset=0.5)),
    "mean of squares": (lambda F, x: F.mse_loss(x, 0 * x), rand(0, N, C)),
}

_images, _scale, _bias = rand(1, 30, 16, 20, 20), rand(2, 16), rand(3, 16)
_class = np.arange(N) % C
PARAMETERS: dict[str, tuple[Run, list[np.ndarray]]] = {
    "bias": (lambda F, x, b: x + b, [rand(0, N, C), rand(1, C)]),
    "factor per column": (lambda F, x, w: x * w, [rand(0, N, C), rand(1, 1, C)]),
    "factor per row": (lambda F, x, w: x * w, [rand(0, C, N), rand(1, C, 1)]),
    "position embedding": (lambda F, x, p: x + p, [rand(0, 400, 9, 8), rand(1, 1, 9, 8)]),
    "layer scale": (lambda F, x, b, s: x + s * b, [rand(0, 99, 50, C), rand(1, 99, 50, C), rand(2, C)]),
    "expand": (lambda F, x: x.expand(N, C), [rand(0, 1, C)]),
    "linear": (lambda F, x, w, b: F.linear(x, w, b), [rand(0, N, 8), rand(1, C, 8), rand(2, C)]),
    "convolution": (
        lambda F, x, w, b: F.conv2d(x, w, b, padding=1), [_images, rand(4, 16, 16, 3, 3), _bias]
    ),
    "transposed convolution": (
        lambda F, x, w, b: F.conv_transpose2d(x, w, b, stride=2), [_images, rand(4, 16, 16, 3, 3), _bias]
    ),
    "depthwise": (
        lambda F, x, w, b: F.conv2d(x, w, b, padding=3, groups=16), [_images, rand(4, 16, 1, 7, 7), _bias]
    ),
    "layer norm": (lambda F, x, w, b: F.layer_norm(x, (16,), w, b), [rand(0, N, 16), _scale, _bias]),
    "layer norm far from 0": (
        lambda F, x, w, b: F.layer_norm(x, (16,), w, b), [rand(0, N, 16, offset=1e3), _scale, _bias]
    ),
    "group norm": (lambda F, x, w, b: F.group_norm(x, 4, w, b), [_images, _scale, _bias]),
    "group norm of channels last, far from 0": (
        lambda F, x, w, b: F.group_norm(x, 4, w, b), [LAYOUTS["channels last"](_images + 1000), _scale, _bias]
    ),
    "batch norm": (lambda F, x, w, b: F.batch_norm(x, None, None, w, b, True), [_images, _scale, _bias]),
    "batch norm of channels last, far from 0": (
        lambda F, x, w, b: F.batch_norm(x, None, None, w, b, True),
        [LAYOUTS["channels last"](_images + 1000), _scale, _bias],
    ),
    "attention": (
        lambda F, q, k, v, m: F.scaled_dot_product_attention(q, k, v, m),
        [rand(0, 900, 2, 5, 4), rand(1, 900, 2, 5, 4), rand(2, 900, 2, 5, 4), rand(3, 2, 5, 5)],
    ),
}  # fmt: skip
