"""Kernels in half precision cast once, at the end: each element is within half a unit in the last place (ulp) of the
reference in float64 on the same inputs, plus the errors of float32 arithmetic.

The bound is half an ulp of each element, not of the maximum, so a cast of an intermediate mean or sum would fail.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad
from minigrad import functional as F
from minigrad.kernels.cuda import norm
from tests.cuda import comparison
from tests.cuda.comparison import DIGITS, FLOAT16, HALF_PRECISION, as_float64, guarded_copy, packs, run_op
from tests.cuda.runner import ORDERS, needs_compiler, recorded

pytestmark = needs_compiler


def half_ulp(exact, dtype):
    """Half an ulp of each element: 2^(e - digits) for 2^e ≤ |x| < 2^(e + 1)."""
    exponent = np.frexp(exact)[1] - 1
    return np.ldexp(1.0, np.maximum(exponent, -14 if dtype == FLOAT16 else -126) - DIGITS[dtype])


def beyond_rounding(found, exact):
    """The maximum of |found - exact| minus half an ulp, relative to the maximum absolute value (at least 1)."""
    assert found.shape == exact.shape and np.isfinite(found.astype(np.float64)).all()
    rest = abs(found.astype(np.float64) - exact) - half_ulp(exact, found.dtype)
    return float(rest.max() / max(abs(exact).max(), 1))


def random_array(seed, *shape, **options):
    """A random array that is aligned to 32 bytes, for loads in packs."""
    return guarded_copy(comparison.random_array(seed, *shape, **options), aligned=32)


def assert_rounds_once(op, arrays, grad_y, pack, order):
    with recorded(order) as launches:
        found = run_op(op, *arrays, grad_y=grad_y).results
    assert packs(launch for launch in launches if launch.kernel.name != "sum_rows") == [pack] * 2
    assert [a.dtype for a in found] == [grad_y.dtype, *(a.dtype for a in arrays)]
    for ours, theirs in zip(found, comparison.run_reference(op, *arrays, grad_y=grad_y), strict=True):
        assert beyond_rounding(ours, theirs) <= 1e-5


@pytest.mark.parametrize("dtype", HALF_PRECISION, ids=str)
@given(
    st.integers(1, 20), st.sampled_from([(96, 8), (192, 8), (768, 8), (33, 1), (1028, 1), (2056, 8)]),
    st.sampled_from([0.0, 3.3, -40.0]), st.sampled_from(ORDERS), st.integers(0, 99),
)  # fmt: skip
def test_layer_norm_rounds_once(dtype, rows, width, offset, order, seed):
    C, pack = width
    arrays = random_array(seed, rows, C, dtype=dtype, offset=offset), random_array(1, C), random_array(2, C)
    grad_y = random_array(seed + 1, rows, C, dtype=dtype)
    assert_rounds_once(lambda x, *params: F.layer_norm(x, C, *params), arrays, grad_y, pack, order)


@pytest.mark.parametrize("dtype", HALF_PRECISION, ids=str)
@pytest.mark.parametrize(("width", "pack"), [(3, 1), (2, 2), (4, 4), (8, 8), (24, 8)])
@given(st.integers(2, 40), st.sampled_from([0.0, 3.3, -40.0]), st.sampled_from(ORDERS), st.integers(0, 99))
def test_group_norm_rounds_once(dtype, width, pack, H, offset, order, seed):
    """With up to 40 · 37 pixels a thread loops over several pixels."""
    C, shape = 2 * width, (2, H, 37, 2 * width)
    x = random_array(seed, *shape, dtype=dtype, offset=offset).transpose(0, 3, 1, 2)
    grad_y = random_array(seed + 1, *shape, dtype=dtype).transpose(0, 3, 1, 2)
    params = random_array(1, C), random_array(2, C)
    assert_rounds_once(lambda x, *params: F.group_norm(x, 2, *params), (x, *params), grad_y, pack, order)


@pytest.mark.parametrize("dtype", HALF_PRECISION, ids=str)
@pytest.mark.parametrize("run", [F.gelu, F.relu])
@given(st.integers(1, 5000), st.sampled_from(ORDERS), st.integers(0, 99))
def test_activations_round_once(dtype, run, count, order, seed):
    x, grad_y = (random_array(seed + i, count, dtype=dtype) for i in range(2))
    assert_rounds_once(run, [x], grad_y, 8, order)


@pytest.mark.parametrize("dtype", HALF_PRECISION, ids=str)
@given(
    st.integers(1, 5), st.integers(1, 9), st.sampled_from([(96, 8), (768, 8), (33, 1), (2056, 8)]),
    st.sampled_from([0.0, 0.4]), st.sampled_from([0.0, -40.0]), st.booleans(), st.sampled_from(ORDERS),
    st.integers(0, 99),
)  # fmt: skip
def test_residual_layer_norm_rounds_once(dtype, N, L, width, p, offset, s_is_used, order, seed):
    """s is cast once; y, the norm of the stored s, is cast once; ∂x and ∂b, sums of two terms, are cast once."""
    (C, pack), shape = width, (N, L, width[0])
    x = random_array(seed, *shape, dtype=dtype, offset=offset)
    branch, grad_s, grad_y = (random_array(seed + i, *shape, dtype=dtype) for i in (1, 2, 3))
    weight, bias = random_array(1, C), random_array(2, C)
    with recorded(order) as launches:
        minigrad.manual_seed(seed)
        op = norm.CUDAResidualLayerNorm()
        op.needs_input_grad = (True,) * 4
        s, y = op.forward(x, branch, weight, bias, p=p, eps=1e-5)
        found = op.backward([grad_s if s_is_used else None, grad_y])
    assert set(packs(launches)) == {pack}
    wide = [as_float64(a) for a in (x, branch, weight, bias, grad_s, grad_y)]
    m = (minigrad.manual_seed(seed).uniform((N, 1, 1)) >= p) / (1 - p) if p else 1.0
    assert beyond_rounding(s, wide[0] + m * wide[1]) <= 1e-5
    normed = lambda s, *params: F.layer_norm(s, C, *params)  # noqa: E731
    exact_y, exact, *exact_params = comparison.run_reference(normed, s, weight, bias, grad_y=grad_y)
    exact = exact + wide[4] if s_is_used else exact
    for ours, theirs in zip((y, *found), (exact_y, exact, m * exact, *exact_params), strict=True):
        assert beyond_rounding(ours, theirs) <= 1e-5
