"""products.timed records every matrix product of a block, and nothing afterwards."""

import numpy as np
import pytest

from minigrad import Tensor
from minigrad import functional as F
from minigrad.backend import products


def randn(*shape):
    return Tensor(np.random.default_rng(0).standard_normal(shape).astype(np.float32), requires_grad=True)


@pytest.mark.parametrize(
    ("op", "arguments", "count"),
    [
        (F.linear, [randn(8, 16), randn(4, 16)], 3),
        (F.scaled_dot_product_attention, [randn(2, 8, 16)] * 3, 6),
        (lambda x, w: F.conv2d(x, w, padding=1), [randn(2, 16, 8, 8), randn(16, 16, 3, 3)], 3),
        (F.conv2d, [randn(2, 16, 8, 8), randn(16, 16, 1, 1)], 3),
        (lambda x, w: F.conv2d(x, w, padding=3, groups=16), [randn(64, 16, 8, 8), randn(16, 1, 7, 7)], 3),
    ],
    ids=["linear", "attention", "Winograd", "pointwise", "depthwise"],
)
def test_forward_and_backward_products_are_timed(op, arguments, count):
    with products.timed() as seconds:
        op(*arguments).sum().backward()
    assert len(seconds) == count and min(seconds) >= 0
    assert products.matmul is np.matmul


def test_time_grows_with_the_size_of_the_product():
    a = np.ones((400, 400), np.float32)
    with products.timed() as seconds:
        for size in (4, 400):
            products.matmul(a[:size], a)
            products.matmul(a[:size], a)
    assert seconds[3] > seconds[1]


def test_timing_ends_after_an_error():
    with pytest.raises(ValueError, match="mismatch"), products.timed():
        products.matmul(np.ones((2, 3)), np.ones((2, 3)))
    assert products.matmul is np.matmul
