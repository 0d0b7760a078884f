"""Norms and activations in CUDA in half precision (float16, bfloat16), on the CPU, against the reference in float64.

The reference gets the same 16-bit inputs, so the results differ by one cast, of relative error u = 2⁻⁸ in bfloat16 and
2⁻¹¹ in float16, plus the errors of float32 arithmetic. The gradients of float32 parameters are not cast.
"""

from itertools import product

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from minigrad import functional as F
from minigrad.kernels.cuda import activation, group_norm, norm
from tests.cuda.runner import ORDERS, emulated, guarded, needs_compiler, worst

pytestmark = needs_compiler

ROUNDING = {np.dtype(ml_dtypes.bfloat16): 2**-8, np.dtype(np.float16): 2**-11}
DTYPES = list(ROUNDING)


def drawn(seed, *shape, dtype=np.float32):
    return (np.random.default_rng(seed).standard_normal(shape) * 3).astype(dtype)


def layer_norm(x, weight, bias):
    return F.layer_norm(x, x.shape[-1], weight, bias)


def group_norm_2(x, weight, bias):
    return F.group_norm(x, 2, weight, bias)


FAST_PATHS = {
    layer_norm: norm.CUDALayerNorm, group_norm_2: group_norm.CUDAGroupNorm,
    F.gelu: activation.CUDAGELU, F.relu: activation.CUDAReLU,
}  # fmt: skip


def outcome(run, x, *params):
    """The class that ran, the output, and all gradients."""
    tensors = [Tensor(a, requires_grad=True) for a in (x, *params)]
    y = run(*tensors)
    grad_y = drawn(9, *y.shape, dtype=np.float16)  # values that every dtype represents
    y.backward(Tensor(grad_y.astype(ml_dtypes.bfloat16).astype(y.dtype)))
    return type(y.grad_fn), [t.numpy() for t in (y.detach(), *(t.grad for t in tensors))]


def assert_matches_reference(run, x, *params, **options):
    with emulated(**options):
        kind, (y, grad_x, *grads) = outcome(run, x, *params)
    assert kind is FAST_PATHS[run]
    with minigrad.without_fast_paths():
        _, (exact, exact_x, *exact_grads) = outcome(run, *(a.astype(np.float64) for a in (x, *params)))
    assert worst([y, grad_x], [exact, exact_x], x.dtype) <= ROUNDING[x.dtype] + 1e-5
    assert worst(grads, exact_grads) <= 1e-5


def images(x):
    """(N, H, W, C) -> the view (N, C, H, W)."""
    return x.transpose(0, 3, 1, 2)


@given(
    st.integers(1, 9), st.sampled_from([1, 6, 8, 32, 192, 1028, 1032]), st.sampled_from(DTYPES),
    st.sampled_from(ORDERS), st.integers(0, 99),
)  # fmt: skip
def test_layer_norm_matches_reference(rows, C, dtype, order, seed):
    assert_matches_reference(layer_norm, drawn(seed, rows, C, dtype=dtype), drawn(1, C), drawn(2, C), order=order)


@given(
    st.integers(1, 3), st.sampled_from([2, 6, 16, 48, 128]), st.integers(2, 5), st.integers(2, 9),
    st.sampled_from(DTYPES), st.sampled_from(ORDERS), st.integers(0, 99),
)  # fmt: skip
def test_group_norm_matches_reference(N, C, H, W, dtype, order, seed):
    x = images(drawn(seed, N, H, W, C, dtype=dtype))
    assert_matches_reference(group_norm_2, x, drawn(1, C), drawn(2, C), order=order)


@pytest.mark.parametrize("run", [F.gelu, F.relu])
@given(st.integers(1, 300), st.integers(1, 40), st.booleans(), st.sampled_from(DTYPES), st.sampled_from(ORDERS))
def test_activations_match_reference(run, rows, columns, transposed, dtype, order):
    x = drawn(0, rows, columns, dtype=dtype)
    assert_matches_reference(run, x.T if transposed else x, order=order)


@pytest.mark.parametrize(("run", "side", "dtype"), list(product(FAST_PATHS, ["after", "before"], DTYPES)))
def test_accesses_stay_within_the_arrays(run, side, dtype):
    for C in (32, 34):
        shape = (2, 3, 3, C) if run is group_norm_2 else (9, C)
        x, params = guarded(shape, dtype, side), [guarded(C, side=side) for _ in range(2)]
        for i, array in enumerate((x, *params)):
            array[...] = drawn(i, *array.shape)
        if run is group_norm_2:
            x = images(x)
        assert_matches_reference(run, x, *(params if run in (layer_norm, group_norm_2) else ()), guard=side)


@pytest.mark.parametrize(("run", "dtype"), list(product(FAST_PATHS, DTYPES)))
def test_unaligned_arrays_give_the_same_result(run, dtype):
    room = drawn(0, 2 * 9 * 32 + 16, dtype=dtype)
    start = (-room.ctypes.data % 16) // 2 + 1
    x = room[start : start + 2 * 9 * 32].reshape(2, 3, 3, 32)
    params = () if run in (F.gelu, F.relu) else (drawn(1, 32), drawn(2, 32))
    assert_matches_reference(run, images(x) if run is group_norm_2 else x, *params)


@pytest.mark.parametrize("run", [layer_norm, group_norm_2])
def test_16_bit_parameters_are_upcast(run):
    x = images(drawn(0, 2, 3, 3, 8, dtype=np.float16)) if run is group_norm_2 else drawn(0, 4, 8, dtype=np.float16)
    with emulated():
        kind, _ = outcome(run, x, drawn(1, 8, dtype=np.float16), drawn(2, 8, dtype=np.float16))
        y = run(Tensor(x), Tensor(drawn(1, 8, dtype=np.float16)), Tensor(drawn(2, 8, dtype=np.float16)))
    assert y.dtype == np.float16 and kind is FAST_PATHS[run]  # upcast to float32, and cast back
