"""Rounding errors of float32 sums, in units in the last place (ulps) of the maximum value, against float64.

tests/reference/test_accuracy.py compares these errors with PyTorch's errors.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad import Tensor
from minigrad import functional as F
from minigrad.backend.fast_paths import FAST_PATHS
from minigrad.backend.sums import cumulative_sum, sum_over
from tests.accuracy import ALONG_ONE_AXIS, AXES, LAYOUTS, PARAMETERS, REDUCTIONS, rand, ulps

BOUNDS = {  # in ulps, for sums whose terms cancel; the bound of all others is 4
    "log_softmax": 20, "layer norm": 20, "layer norm far from 0": 20, "group norm": 8,
    "group norm of channels last, far from 0": 8, "batch norm": 60, "batch norm of channels last, far from 0": 60,
    "convolution": 6, "attention": 8, "bce with logits": 8, "transposed convolution": 10,
}  # fmt: skip
REFERENCE_BOUNDS = {"convolution": 9}  # y is one matrix product over 144 terms: 8.1 ulps, as in PyTorch


def forward_backward(run, arrays):
    """Output and gradients of `run`, for a positive upstream gradient."""
    tensors = [Tensor(x, requires_grad=True) for x in arrays]
    y = run(*tensors)
    y.backward(Tensor(rand(9, *y.shape), dtype=y.dtype))
    return [y.numpy(), *(t.grad.numpy() for t in tensors)]


def ulp_errors(run, *arrays):
    exact = forward_backward(run, [x.astype(np.float64) for x in arrays])
    return [ulps(actual, expected) for actual, expected in zip(forward_backward(run, arrays), exact, strict=True)]


@given(st.data())
def test_sums_over_any_axes_and_layout_are_accurate(data):
    shape = data.draw(st.lists(st.sampled_from([1, 2, 3, 9, 33, 300]), min_size=1, max_size=4).filter(
        lambda shape: np.prod(shape) < 200_000
    ))  # fmt: skip
    axes = data.draw(st.sets(st.integers(0, len(shape) - 1)))
    x = rand(data.draw(st.integers(0, 99)), *shape).transpose(data.draw(st.permutations(range(len(shape)))))
    x = np.ascontiguousarray(x) if data.draw(st.booleans()) else x
    x = x[tuple(data.draw(st.sampled_from([slice(None), slice(None, None, -1), slice(None, None, 2)])) for _ in shape)]
    repeated = data.draw(st.sampled_from([1, 1, 70]))
    x = np.broadcast_to(x[..., None], (*x.shape, repeated)) if repeated > 1 else x
    axes = tuple(sorted(axes | ({x.ndim - 1} if repeated > 1 and data.draw(st.booleans()) else set())))
    keepdims = data.draw(st.booleans())
    exact = x.astype(np.float64).sum(axis=axes, keepdims=keepdims)
    assert ulps(np.asarray(sum_over(x, axes, keepdims)), exact) <= 3


def test_sums_of_shapes_with_axes_of_size_1():
    for shape in [(40, 1), (1, 40), (40, 1, 3), (1, 40, 1), (2, 40, 1), (40,), (1,)]:
        for axes in [(0,), (-1,), (0, len(shape) - 1) if len(shape) > 1 else (0,)]:
            for keepdims in (False, True):
                x = rand(0, *shape)
                expected = x.sum(axis=axes, keepdims=keepdims)
                actual = np.asarray(sum_over(x, axes, keepdims))
                assert actual.shape == expected.shape
                np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_are_accurate(name, layout):
    for shape, axis in AXES:
        x = LAYOUTS[layout](rand(0, *shape))
        assert max(ulp_errors(lambda x: REDUCTIONS[name](x, axis), x)) <= 4, shape  # noqa: B023


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ALONG_ONE_AXIS)
def test_ops_along_one_axis_are_accurate(name, layout):
    run, x = ALONG_ONE_AXIS[name]
    assert max(ulp_errors(lambda x: run(F, x), LAYOUTS[layout](x))) <= BOUNDS.get(name, 4)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_gradients_are_accurate(name):
    run, arrays = PARAMETERS[name]
    bounds = BOUNDS if FAST_PATHS else BOUNDS | REFERENCE_BOUNDS
    assert max(ulp_errors(lambda *tensors: run(F, *tensors), *arrays)) <= bounds.get(name, 4)


def test_cross_entropy_of_many_rows_is_accurate():
    logits, target = rand(0, 60_000, 7), np.arange(60_000) % 7
    for options in ({}, {"label_smoothing": 0.1}, {"reduction": "sum"}):
        assert max(ulp_errors(lambda x: F.cross_entropy(x, Tensor(target), **options), logits)) <= 4  # noqa: B023


@pytest.mark.parametrize(
    "equation, shape", [("nc->c", (20_000, 3)), ("ncl->c", (300, 4, 50)), ("nlc->c", (300, 50, 4))]
)
def test_einsum_sums_are_accurate(equation, shape):
    assert max(ulp_errors(lambda x: F.einsum(equation, x), rand(0, *shape))) <= 2


def test_layer_scale_and_relative_position_bias_gradients():
    run = lambda x, b, s: F.residual(x, b, s)  # noqa: E731
    assert max(ulp_errors(run, rand(0, 90, 60, 8), rand(1, 90, 60, 8), rand(2, 8))) <= 3
    run = lambda x, b: F.window_attention(x, b, 2, 4)  # noqa: E731
    assert max(ulp_errors(run, rand(0, 100, 8, 8, 12), rand(1, 2, 16, 16))) <= 5


def test_sums_of_more_than_2_to_the_24_ones():
    """In float32, 2²⁴ + 1 = 2²⁴, so a naive sum of ones stops at 2²⁴."""
    n = 2**24 + 8
    ones = Tensor(np.ones((1, 1), np.float32)).expand(n, 1)
    np.testing.assert_array_equal(ones.sum(0).numpy(), n)
    np.testing.assert_array_equal(cumulative_sum(ones.numpy(), 0)[-1], n)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gradients_are_summed_in_float32(dtype):
    """A naive sum of ones stops at 2048 in float16, at 256 in bfloat16."""
    pytest.importorskip("ml_dtypes")
    bias = Tensor(np.zeros(4), dtype=dtype, requires_grad=True)
    (Tensor(np.zeros((4096, 4)), dtype=dtype) + bias).sum().backward()
    np.testing.assert_array_equal(bias.grad.float().numpy(), 4096)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_reach_only_their_own_sum(value):
    x = rand(0, 500, 8)
    x[77, 3] = value
    for layout in LAYOUTS.values():
        for axis in (0, 1):
            actual, expected = sum_over(layout(x), axis), x.sum(axis=axis)
            np.testing.assert_array_equal(actual[~np.isfinite(expected)], value)
            assert np.isfinite(actual).sum() == actual.size - 1
    x[78, 3] = -value
    with np.errstate(invalid="ignore"):
        assert np.isnan(sum_over(x, 0)[3])
