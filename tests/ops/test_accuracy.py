"""Rounding errors of float32 sums, against the same in float64, in units in the last place of the largest entry.

PyTorch's own errors stand beside these in tests/reference/test_accuracy.py.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad import Tensor
from minigrad import functional as F
from minigrad.backend.fast_paths import FAST_PATHS
from minigrad.backend.sums import cumulative_sum, sum_over
from tests.accuracy import ALONG_ONE_AXIS, AXES, LAYOUTS, PARAMETERS, REDUCTIONS, drawn, ulps

BOUNDS = {  # where terms of both signs cancel, what is left is small beside their rounding; the others have 4
    "log_softmax": 20, "layer norm": 20, "layer norm far from 0": 20, "group norm": 8,
    "group norm of channels last, far from 0": 8, "batch norm": 60, "batch norm of channels last, far from 0": 60,
    "convolution": 6, "attention": 8,
}  # fmt: skip
REFERENCE_BOUNDS = {"convolution": 9}  # y is one matrix product over 144 terms: 8.1, and PyTorch's 8.1 too


def outcome(run, arrays):
    """Output and gradients of `run`, with positive gradients of the output."""
    tensors = [Tensor(x, requires_grad=True) for x in arrays]
    y = run(*tensors)
    y.backward(Tensor(drawn(9, *y.shape), dtype=y.dtype))
    return [y.numpy(), *(t.grad.numpy() for t in tensors)]


def errors(run, *arrays):
    exact = outcome(run, [x.astype(np.float64) for x in arrays])
    return [ulps(ours, theirs) for ours, theirs in zip(outcome(run, arrays), exact, strict=True)]


@given(st.data())
def test_sums_over_any_axes_in_any_layout(data):
    shape = data.draw(st.lists(st.sampled_from([1, 2, 3, 9, 33, 300]), min_size=1, max_size=4).filter(
        lambda shape: np.prod(shape) < 200_000
    ))  # fmt: skip
    axes = data.draw(st.sets(st.integers(0, len(shape) - 1)))
    x = drawn(data.draw(st.integers(0, 99)), *shape).transpose(data.draw(st.permutations(range(len(shape)))))
    x = np.ascontiguousarray(x) if data.draw(st.booleans()) else x
    x = x[tuple(data.draw(st.sampled_from([slice(None), slice(None, None, -1), slice(None, None, 2)])) for _ in shape)]
    repeated = data.draw(st.sampled_from([1, 1, 70]))
    x = np.broadcast_to(x[..., None], (*x.shape, repeated)) if repeated > 1 else x
    axes = tuple(sorted(axes | ({x.ndim - 1} if repeated > 1 and data.draw(st.booleans()) else set())))
    keepdims = data.draw(st.booleans())
    exact = x.astype(np.float64).sum(axis=axes, keepdims=keepdims)
    assert ulps(np.asarray(sum_over(x, axes, keepdims)), exact) <= 3


def test_shapes_with_axes_of_size_1():
    for shape in [(40, 1), (1, 40), (40, 1, 3), (1, 40, 1), (2, 40, 1), (40,), (1,)]:
        for axes in [(0,), (-1,), (0, len(shape) - 1) if len(shape) > 1 else (0,)]:
            for keepdims in (False, True):
                x = drawn(0, *shape)
                expected = x.sum(axis=axes, keepdims=keepdims)
                found = np.asarray(sum_over(x, axes, keepdims))
                assert found.shape == expected.shape
                np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name, layout):
    for shape, axis in AXES:
        x = LAYOUTS[layout](drawn(0, *shape))
        assert max(errors(lambda x: REDUCTIONS[name](x, axis), x)) <= 4, shape  # noqa: B023


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ALONG_ONE_AXIS)
def test_ops_along_one_axis(name, layout):
    run, x = ALONG_ONE_AXIS[name]
    assert max(errors(lambda x: run(F, x), LAYOUTS[layout](x))) <= BOUNDS.get(name, 4)


@pytest.mark.parametrize("name", PARAMETERS)
def test_gradients_of_parameters(name):
    run, arrays = PARAMETERS[name]
    bounds = BOUNDS if FAST_PATHS else BOUNDS | REFERENCE_BOUNDS
    assert max(errors(lambda *tensors: run(F, *tensors), *arrays)) <= bounds.get(name, 4)


def test_losses():
    logits, target = drawn(0, 60_000, 7), np.arange(60_000) % 7
    for options in ({}, {"label_smoothing": 0.1}, {"reduction": "sum"}):
        assert max(errors(lambda x: F.cross_entropy(x, Tensor(target), **options), logits)) <= 4  # noqa: B023


@pytest.mark.parametrize(
    "equation, shape", [("nc->c", (20_000, 3)), ("ncl->c", (300, 4, 50)), ("nlc->c", (300, 50, 4))]
)
def test_einsum_over_labels_of_one_operand(equation, shape):
    assert max(errors(lambda x: F.einsum(equation, x), drawn(0, *shape))) <= 2


def test_residual_scale_and_relative_position_bias():
    run = lambda x, b, s: F.residual(x, b, s)  # noqa: E731
    assert max(errors(run, drawn(0, 90, 60, 8), drawn(1, 90, 60, 8), drawn(2, 8))) <= 3
    run = lambda x, b: F.window_attention(x, b, 2, 4)  # noqa: E731
    assert max(errors(run, drawn(0, 100, 8, 8, 12), drawn(1, 2, 16, 16))) <= 5


def test_more_than_2_to_the_24_ones():
    """2²⁴ is where float32 stops counting: 2²⁴ + 1 = 2²⁴."""
    n = 2**24 + 8
    ones = Tensor(np.ones((1, 1), np.float32)).expand(n, 1)
    np.testing.assert_array_equal(ones.sum(0).numpy(), n)
    np.testing.assert_array_equal(cumulative_sum(ones.numpy(), 0)[-1], n)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_16_bit_gradients_are_added_in_float32(kind):
    """Ones added in float16 stop at 2048, in bfloat16 at 256."""
    pytest.importorskip("ml_dtypes")
    bias = Tensor(np.zeros(4), dtype=kind, requires_grad=True)
    (Tensor(np.zeros((4096, 4)), dtype=kind) + bias).sum().backward()
    np.testing.assert_array_equal(bias.grad.float().numpy(), 4096)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stay_in_their_sums(bad):
    x = drawn(0, 500, 8)
    x[77, 3] = bad
    for layout in LAYOUTS.values():
        for axis in (0, 1):
            found, expected = sum_over(layout(x), axis), x.sum(axis=axis)
            np.testing.assert_array_equal(found[~np.isfinite(expected)], bad)
            assert np.isfinite(found).sum() == found.size - 1
    x[78, 3] = -bad
    with np.errstate(invalid="ignore"):
        assert np.isnan(sum_over(x, 0)[3])
