"""Norms and activations in CUDA in half precision (float16, bfloat16), on the CPU, against the reference in float64.

The reference gets the same 16-bit inputs, so the results differ by one cast, of relative error u = 2⁻⁸ in bfloat16 and
2⁻¹¹ in float16, plus the errors of float32 arithmetic. The gradients of float32 parameters are not cast.
"""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad import functional as F
from minigrad.kernels.cuda import activation, group_norm, norm
from tests.cuda import comparison
from tests.cuda.comparison import HALF_PRECISION, guarded_copy, random_array, run_op, unaligned
from tests.cuda.runner import ORDERS, emulated, needs_compiler

pytestmark = needs_compiler


def layer_norm(x, weight, bias):
    return F.layer_norm(x, x.shape[-1], weight, bias)


def group_norm_2(x, weight, bias):
    return F.group_norm(x, 2, weight, bias)


FAST_PATHS = {
    layer_norm: norm.CUDALayerNorm, group_norm_2: group_norm.CUDAGroupNorm,
    F.gelu: activation.CUDAGELU, F.relu: activation.CUDAReLU,
}  # fmt: skip


def assert_matches_reference(op, *arrays, **options):
    comparison.assert_matches_reference(op, *arrays, fast_path=FAST_PATHS[op], **options)


def images(x):
    """(N, H, W, C) -> the view (N, C, H, W)."""
    return x.transpose(0, 3, 1, 2)


def parameters(run, C, dtype=np.float32):
    """Weight and bias of the norms."""
    return [random_array(i, C, dtype=dtype) for i in (1, 2)] if run in (layer_norm, group_norm_2) else []


@given(
    st.integers(1, 9), st.sampled_from([1, 6, 8, 32, 192, 1028, 1032]), st.sampled_from(HALF_PRECISION),
    st.sampled_from(ORDERS), st.integers(0, 99),
)  # fmt: skip
def test_layer_norm_matches_reference(rows, C, dtype, order, seed):
    x = random_array(seed, rows, C, dtype=dtype)
    assert_matches_reference(layer_norm, x, *parameters(layer_norm, C), order=order)


@given(
    st.integers(1, 3), st.sampled_from([2, 6, 16, 48, 128]), st.integers(2, 5), st.integers(2, 9),
    st.sampled_from(HALF_PRECISION), st.sampled_from(ORDERS), st.integers(0, 99),
)  # fmt: skip
def test_group_norm_matches_reference(N, C, H, W, dtype, order, seed):
    x = images(random_array(seed, N, H, W, C, dtype=dtype))
    assert_matches_reference(group_norm_2, x, *parameters(group_norm_2, C), order=order)


@pytest.mark.parametrize("run", [F.gelu, F.relu])
@given(st.integers(1, 300), st.integers(1, 40), st.booleans(), st.sampled_from(HALF_PRECISION), st.sampled_from(ORDERS))
def test_activations_match_reference(run, rows, columns, transposed, dtype, order):
    x = random_array(0, rows, columns, dtype=dtype)
    assert_matches_reference(run, x.T if transposed else x, order=order)


@pytest.mark.parametrize(("run", "side", "dtype"), list(product(FAST_PATHS, ["after", "before"], HALF_PRECISION)))
def test_accesses_stay_within_the_arrays(run, side, dtype):
    for C in (32, 34):
        shape = (2, 3, 3, C) if run is group_norm_2 else (9, C)
        x, *params = (guarded_copy(x, side) for x in (random_array(0, *shape, dtype=dtype), *parameters(run, C)))
        assert_matches_reference(run, images(x) if run is group_norm_2 else x, *params, guard=side)


@pytest.mark.parametrize(("run", "dtype"), list(product(FAST_PATHS, HALF_PRECISION)))
def test_unaligned_arrays_give_the_same_result(run, dtype):
    x = unaligned(random_array(0, 2, 3, 3, 32, dtype=dtype))
    assert_matches_reference(run, images(x) if run is group_norm_2 else x, *parameters(run, 32))


@pytest.mark.parametrize("run", [layer_norm, group_norm_2])
def test_16_bit_parameters_are_upcast(run):
    x = random_array(0, 2, 3, 3, 8, dtype=np.float16)
    x = images(x) if run is group_norm_2 else x
    with emulated():
        found = run_op(run, x, *parameters(run, 8, np.float16))
    assert found.results[0].dtype == np.float16 and type(found.node) is FAST_PATHS[run]  # upcast, and cast back
