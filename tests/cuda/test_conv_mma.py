"""Convolution on tensor cores without im2col, run on the CPU, against the reference in float64: bounds as in
test_conv.py."""

from itertools import product
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minigrad import Tensor
from minigrad import functional as F
from minigrad.kernels.cuda import attention_mma, conv_mma
from tests.cuda import comparison
from tests.cuda.comparison import BFLOAT16, FLOAT16, FLOAT32, HALF_PRECISION, kernel_names, normal, run_op
from tests.cuda.runner import ORDERS, barriers, emulated, needs_compiler, recorded
from tests.cuda.test_conv import LAYOUTS, assert_matches_reference, conv2d, in_float32, random_images

pytestmark = needs_compiler

KERNELS = ["conv_mma_correlate", "conv_mma_correlate", "conv_mma_grad_weight", "sum_rows"]
SIDES = st.tuples(st.integers(0, 3), st.integers(0, 3))


def inputs(N, C, O, size, kernel=(3, 3), dtype=BFLOAT16, layout="channels-last"):  # noqa: E741
    """x and weight."""
    return random_images(0, N, C, *size, layout=layout, dtype=dtype), normal(1, O, C, *kernel, dtype=dtype)


@example(1, 64, 64, (9, 17), (3, 3), 1, ((1, 1), (1, 1)), True, *LAYOUTS[:2], 2048, "after", ORDERS[0], BFLOAT16)
@example(2, 64, 32, (10, 20), (3, 3), 2, ((0, 1), (0, 1)), False, *LAYOUTS[:2], 1, "before", ORDERS[1], FLOAT16)
@given(
    st.integers(1, 2), st.sampled_from([32, 64]), st.sampled_from([32, 64]),
    st.tuples(st.integers(1, 10), st.integers(1, 20)), st.sampled_from([(3, 3), (3, 3), (2, 3), (1, 3), (2, 1)]),
    st.integers(1, 2), st.tuples(SIDES, SIDES), st.booleans(), st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS),
    st.sampled_from([1, 2048]), st.sampled_from(["after", "before"]), st.sampled_from(ORDERS),
    st.sampled_from(HALF_PRECISION),
)  # fmt: skip
def test_matches_reference(
    N, C, O, size, kernel, stride, padding, bias, layout, grad_layout, warps, guard, order, dtype  # noqa: E741
):  # fmt: skip
    """Tiles cross the edges, some pixels are in no window, windows lie in the padding, and a block loops over tiles."""
    size = [max(side, k - sum(pad)) for side, k, pad in zip(size, kernel, padding, strict=True)]
    x, weight = inputs(N, C, O, size, kernel, dtype, layout)
    bias = normal(2, O, dtype=dtype) if bias else None
    with patch.object(conv_mma, "WARPS", warps):
        launches = assert_matches_reference(
            x, weight, bias, (1, 1, 1), order, guard, grad_layout, stride=stride, padding=padding
        )
    assert kernel_names(launches) == KERNELS


CASES = {
    "stride 1": (*inputs(2, 32, 64, (6, 9)), {"padding": 1}),
    "stride 2": (*inputs(1, 64, 32, (9, 12), dtype=FLOAT16), {"padding": ((0, 1), (1, 1)), "stride": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_thread_order_changes_no_bit(case):
    x, weight, options = CASES[case]
    with patch.object(conv_mma, "WARPS", 1):
        comparison.assert_thread_order_changes_no_bit(lambda: run_op(conv2d(**options), x, in_float32(weight)).results)


@pytest.mark.parametrize("barrier", [b for b in barriers("conv_mma.cu") if b.startswith("conv_mma.cu")])
def test_every_barrier_is_needed(barrier):
    """With two chunks of channels, and a block that loops over tiles."""
    x, weight = inputs(2, 64, 32, (6, 9))
    with patch.object(conv_mma, "WARPS", 1):
        assert comparison.barrier_is_needed(barrier, lambda: run_op(conv2d(padding=1), x, in_float32(weight)).results)


@pytest.mark.parametrize(("case", "side"), list(product(CASES, ["after", "before"])))
def test_accesses_stay_within_the_arrays(case, side):
    x, weight, options = CASES[case]
    x = comparison.guarded_copy(x.transpose(0, 2, 3, 1), side).transpose(0, 3, 1, 2)
    arrays = [x, comparison.guarded_copy(weight, side), comparison.guarded_copy(np.ones(len(weight), x.dtype), side)]
    with recorded(guard=side) as launches:
        y = F.conv2d(*(Tensor(a, requires_grad=True) for a in arrays), **options)
        grad_y = normal(9, y.shape[0], *y.shape[2:], y.shape[1], dtype=x.dtype)
        y.backward(Tensor(comparison.guarded_copy(grad_y, side).transpose(0, 3, 1, 2)))
    assert kernel_names(launches) == KERNELS


@pytest.mark.parametrize("wanted", [w for w in product([True, False], repeat=3) if any(w)])
def test_unneeded_gradients_are_not_computed(wanted):
    x, weight, options = CASES["stride 1"]
    launches = assert_matches_reference(x, weight, np.ones(len(weight), x.dtype), wanted=wanted, **options)
    assert kernel_names(launches) == KERNELS[:1] + KERNELS[1:2] * wanted[0] + KERNELS[2:] * wanted[1]


@pytest.mark.parametrize("dtype", HALF_PRECISION, ids=str)
def test_unaligned_images_give_the_same_result(dtype):
    """Images at an address that is no multiple of 16 bytes are copied."""
    x = comparison.unaligned(normal(0, 2, 7, 9, 32, dtype=dtype)).transpose(0, 3, 1, 2)
    assert kernel_names(assert_matches_reference(x, normal(1, 32, 32, 3, 3, dtype=dtype))) == KERNELS


def test_weight_and_bias_in_any_layout_give_the_same_result():
    """The weight is channels-last, at an address that is no multiple of 16 bytes; the bias is a strided view."""
    x, weight = inputs(1, 32, 32, (5, 6))
    bias, grad_y = normal(2, 32, dtype=x.dtype), normal(3, 1, 32, 3, 4, dtype=x.dtype)
    other = comparison.unaligned(weight.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2), np.repeat(bias, 2)[::2]
    with recorded() as launches:
        found, expected = (run_op(F.conv2d, x, *arrays, grad_y=grad_y).results for arrays in (other, (weight, bias)))
    assert comparison.same_bits(found, expected) and kernel_names(launches) == 2 * KERNELS
    assert all(launch.args[1] % 16 == 0 for launch in launches if launch.kernel.name == KERNELS[0])


def test_infinite_and_nan_pixels_reach_the_windows_that_read_them():
    x, weight = inputs(1, 32, 32, (6, 9))
    x[0, 3, 2, 4], x[0, 5, 5, 8] = np.inf, np.nan
    with emulated():
        y = F.conv2d(Tensor(x), Tensor(weight), padding=1).numpy().astype(np.float64)
    wrong = ~np.isfinite(y).all(axis=(0, 1))
    expected = np.zeros((6, 9), bool)
    expected[1:4, 3:6] = expected[4:, 7:] = True
    np.testing.assert_array_equal(wrong, expected)


@pytest.mark.parametrize(
    ("C", "O", "kernel", "options", "dtype"),
    [
        (32, 32, (3, 3), {}, FLOAT32),
        (16, 32, (3, 3), {}, BFLOAT16),
        (32, 40, (3, 3), {}, BFLOAT16),
        (32, 96, (3, 3), {}, BFLOAT16),
        (128, 32, (3, 3), {}, BFLOAT16),
        (32, 32, (1, 1), {"stride": 2}, BFLOAT16),
        (32, 32, (4, 3), {}, BFLOAT16),
        (32, 32, (3, 3), {"stride": (1, 2)}, BFLOAT16),
        (32, 32, (3, 3), {"stride": 3}, BFLOAT16),
        (32, 32, (2, 2), {"dilation": 2}, BFLOAT16),
    ],
)
def test_other_convolutions_use_im2col(C, O, kernel, options, dtype):  # noqa: E741
    x, weight = inputs(1, C, O, (7, 7), kernel, dtype)
    assert "unfold" in kernel_names(assert_matches_reference(x, weight, **options))


def test_gpus_without_bfloat16_or_with_little_shared_memory_use_im2col():
    x, weight, options = CASES["stride 2"]
    with patch.dict(attention_mma._capabilities, cpu=75):
        assert "unfold" in kernel_names(assert_matches_reference(x, weight, **options))
    with patch.object(conv_mma, "most_shared", lambda x: 48 << 10):
        assert "unfold" in kernel_names(assert_matches_reference(x, weight, **options))


def test_shared_memory_is_within_the_limit_of_every_gpu_that_has_bfloat16():
    """99 KiB a block on compute capability 8.6 and 8.9, for the largest kernel, stride and number of channels."""
    with recorded() as launches:
        x, weight = inputs(1, 64, 64, (9, 20))
        run_op(conv2d(stride=2), x, in_float32(weight))
    assert kernel_names(launches) == KERNELS and max(launch.shared for launch in launches) <= 99 << 10


def test_two_runs_make_the_same_launches():
    for x, weight, options in CASES.values():
        runs = [assert_matches_reference(x, weight, **options) for _ in range(2)]
        first, second = ([launch._replace(args=()) for launch in run] for run in runs)
        assert first == second
