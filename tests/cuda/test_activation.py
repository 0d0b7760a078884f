"""Activations in CUDA, run on the CPU through `F.gelu` and `F.relu`, against the reference in float64."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad import Tensor
from minigrad import functional as F
from minigrad.kernels.cuda import activation
from minigrad.kernels.cuda.launch import FOLDER, Kernel
from minigrad.ops.activation import GELU, ReLU
from tests.cuda import comparison
from tests.cuda.comparison import BFLOAT16, HALF_PRECISION, guarded_copy, packs, random_array, run_op, unaligned
from tests.cuda.runner import ORDERS, barriers, emulated, guarded, kernels, needs_compiler

pytestmark = needs_compiler

FAST_PATHS = {F.gelu: activation.CUDAGELU, F.relu: activation.CUDAReLU}
SIZES = st.integers(1, 7) | st.sampled_from([40, 300])


def assert_matches_reference(op, x, grad_y, **options):
    """Returns the launches."""
    return comparison.assert_matches_reference(
        op, x, grad_y=grad_y, fast_path=FAST_PATHS[op], tolerance=6e-7, **options
    )[1]


@pytest.mark.parametrize("run", FAST_PATHS)
@given(SIZES, SIZES, st.sampled_from(["C", "F", "channels-last"]), st.sampled_from(ORDERS), st.integers(0, 99))
def test_activations_match_reference(run, rows, columns, layout, order, seed):
    x = random_array(seed, 2, rows, columns, layout=layout)
    assert_matches_reference(run, x, random_array(seed + 1, *x.shape), order=order)


@pytest.mark.parametrize("run", FAST_PATHS)
def test_output_and_gradient_keep_the_memory_order(run):
    x = Tensor(random_array(0, 2, 4, 3, 5, layout="channels-last"), requires_grad=True)
    with emulated():
        y = run(x)
        grad_x = y.grad_fn.backward(y.numpy())
    assert y.numpy().strides == grad_x.strides == x.numpy().strides


@pytest.mark.parametrize("run", FAST_PATHS)
@pytest.mark.parametrize("axes", [(0, 1), (1, 0)])
def test_gradient_of_any_memory_layout(run, axes):
    x, grad_y = random_array(0, 33, 5).transpose(axes), random_array(1, 33, 5).transpose(axes)
    assert_matches_reference(run, x, np.asfortranarray(grad_y))
    assert_matches_reference(run, x, np.broadcast_to(grad_y[:1], grad_y.shape))


@pytest.mark.parametrize("run", FAST_PATHS)
@pytest.mark.parametrize("side", ["after", "before"])
@pytest.mark.parametrize("count", [1, 3, 1023, 1024, 1025])
def test_accesses_stay_within_the_arrays(run, side, count):
    """A block has 1024 elements."""
    x, grad_y = (guarded_copy(random_array(i, count), side) for i in range(2))
    assert_matches_reference(run, x, grad_y, guard=side)


@pytest.mark.parametrize("name", kernels(FOLDER / "activation.cu"))
@pytest.mark.parametrize("count", [1, 2, 3, 1022, 1023, 1025])
def test_partial_last_pack_writes_nothing_beyond(name, count):
    """If the last pack is partial, the memory after the array is not written."""
    memory = [guarded(1028, side="before") for _ in range(3 if "backward" in name else 2)]
    *inputs, result = (x[:count] for x in memory)
    for i, x in enumerate(inputs):
        x[...] = random_array(i, count)
    with emulated():
        Kernel("activation.cu", name, PACK=4, STORED="float")(2, 256, *inputs, result, np.int64(count))
    assert np.isfinite(result).all() and np.isnan(memory[-1][count:]).all()


@pytest.mark.parametrize("run", FAST_PATHS)
@pytest.mark.parametrize(("x_shift", "grad_shift"), [(0, 0), (1, 0), (0, 1), (2, 2), (3, 1)])
def test_unaligned_arrays_give_the_same_result(run, x_shift, grad_shift):
    """Packs of 4 need all arrays aligned to 16 bytes; else PACK is 1."""
    x, grad_y = unaligned(random_array(0, 1100), x_shift), unaligned(random_array(1, 1100), grad_shift)
    launches = assert_matches_reference(run, x, grad_y)
    read_by_backward = grad_shift if run is F.relu else x_shift or grad_shift  # ReLU saves y, which is aligned
    assert packs(launches) == [1 if x_shift else 4, 1 if read_by_backward else 4]
    assert launches[0].grid[0] == (5 if x_shift else 2)


def test_gelu_of_large_and_non_finite_values():
    x = np.linspace(-40, 40, 4001, dtype=np.float32)
    exact = np.array([v * 0.5 * math.erfc(-v / 2**0.5) for v in x.astype(np.float64)])
    with emulated():
        y = F.gelu(Tensor(x)).numpy()
        assert (abs(y - exact) <= 2e-7 * np.maximum(abs(exact), 1)).all()
        odd = F.gelu(Tensor(np.array([np.inf, 0, np.nan, 3e38, -3e38], np.float32))).numpy()
        np.testing.assert_array_equal(odd, np.array([np.inf, 0, np.nan, 3e38, 0], np.float32))
        x = np.array([0, np.nan, 3e38, -3e38], np.float32)
        _, slope = run_op(F.gelu, x, grad_y=np.ones(4, np.float32)).results
        np.testing.assert_array_equal(slope, [0.5, np.nan, 1, 0])


@pytest.mark.parametrize("dtype", HALF_PRECISION, ids=str)
def test_gelu_of_every_16_bit_value(dtype):
    """The error is that of one cast, also for negative x, where Φ(x) is much smaller than 1."""
    x = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):  # signaling NaNs
        x = x[np.isfinite(x)]
    with emulated():
        y, slope = (a.astype(np.float64) for a in run_op(F.gelu, x, grad_y=np.ones_like(x)).results)
    with np.errstate(over="ignore"):
        x = x.astype(np.float64)
        cdf = np.array([0.5 * math.erfc(-v / 2**0.5) for v in x])
        density = np.exp(-0.5 * x * x) / (2 * np.pi) ** 0.5
    # float32 values below 2⁻¹²⁶ are flushed to 0: Φ(x) of x < -12.9, so that y = x Φ(x) may be 0 instead of x · 2⁻¹²⁶
    flushed = 2.0**-126 * np.clip(abs(x), 1, 16)
    u, tiny = 1.02 * comparison.UNIT_ROUNDOFF[dtype], flushed if dtype == BFLOAT16 else 2.0**-24
    assert (abs(y - x * cdf) <= u * abs(x * cdf) + tiny).all()
    assert (abs(slope - (cdf + x * density)) <= u * abs(cdf + x * density) + 3e-7).all()


def test_relu_keeps_nan_and_masks_non_finite_gradients():
    grad_y = np.array([np.inf, np.nan, np.inf, 1.0, -1.0], np.float32)
    with emulated():
        y, grad_x = run_op(F.relu, np.array([-1.0, 0.0, 2.0, np.nan, np.inf], np.float32), grad_y=grad_y).results
    np.testing.assert_array_equal(y, [0, 0, 2, np.nan, np.inf])
    np.testing.assert_array_equal(grad_x, [0, 0, np.inf, 1, -1])


@pytest.mark.parametrize("run", FAST_PATHS)
def test_forward_saves_only_what_backward_reads(run):
    with emulated():
        x = Tensor(random_array(0, 300), requires_grad=True)
        node = run(x).grad_fn
        kept = [value for value in vars(node).values() if isinstance(value, np.ndarray)]
        assert len(kept) == 1 and (kept[0] is x.data or run is F.relu)
        op = FAST_PATHS[run]()
        op.forward(random_array(0, 300))
        assert not vars(op)


def test_there_are_no_barriers():
    assert barriers("activation.cu") == []


@pytest.mark.parametrize("run", FAST_PATHS)
@pytest.mark.parametrize(
    "x",
    [
        random_array(0, 3, 4, dtype=np.float64), random_array(0, 3, 8)[:, ::2], random_array(0, 4)[::-1],
        random_array(0, 0, 3),
    ],
)  # fmt: skip
def test_unsupported_arrays_run_the_reference(run, x):
    with emulated():
        node = run(Tensor(x, requires_grad=True)).grad_fn
    assert isinstance(node, GELU | ReLU) and type(node) is not FAST_PATHS[run]
